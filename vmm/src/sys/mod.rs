//! The system calls that no crate wraps. All `unsafe` code of this crate is in this folder, each block with its reason.

pub mod kick;
pub mod perf;
pub mod requests;
pub(crate) mod slots;
pub mod vcpu;
