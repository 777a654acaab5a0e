//! System calls that no crate wraps; all `unsafe` code of this crate, each block with its reason.

pub mod clock;
pub mod signals;
pub mod tap;
pub mod uplink;
