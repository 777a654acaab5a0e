//! The vCPU: profile, MSRs, state, and the instructions that we answer ourselves.

pub mod assist;
pub mod fxsave;
pub mod msr;
pub mod profile;
pub mod state;
pub mod uniform;
pub mod vm;
pub mod walk;

pub use state::StateError;
pub use vm::{Vm, VmError};
