//! What any node has, whether it records a machine, stands by for one, or only looks at a recording: the host's side of a
//! machine's world, the arbiter, certificates, the sandbox, recordings as directories, what operators see and ask, and the
//! command line that the programs share.
//!
//! Invariant: nothing here records, sends or replays.

// They panic where a reader has gone: `out` has what does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod api;
pub mod arbiter;
pub mod bootdisk;
pub mod cli;
pub mod control;
pub mod copying;
pub mod devices;
mod durable;
pub mod fleet;
pub mod history;
pub mod host;
pub mod kicker;
pub mod out;
pub mod pair;
pub mod pki;
pub mod policy;
pub mod recording;
pub mod reports;
pub mod restart;
pub mod sandbox;
pub mod start;
pub mod status;
pub mod sys;
pub mod watch;
