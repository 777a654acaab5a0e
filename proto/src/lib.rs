//! The messages of Lockstep: the replay log, the machine as data, snapshots, the session of a pair and its state machines.
//!
//! No I/O and no clock are here. A message that was decoded has the right types and nothing more; whoever uses a
//! value checks it (lengths of digests, page numbers, device indices), because every message may come from outside.
#![forbid(unsafe_code)]

/// Version 1 of the messages.
#[allow(missing_docs, clippy::pedantic, clippy::large_enum_variant)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/lockstep.v1.rs"));
}

pub use v1::*;

pub mod model;
pub mod program;
pub mod quantity;
pub mod session;
