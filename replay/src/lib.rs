//! The other side of a recording: the replayer, which is the oracle that reads the log, and its verifier.

#![forbid(unsafe_code)]
// They panic where a reader has gone: `out` has what does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod divergence;
pub mod extent;
pub mod feed;
pub mod open;
pub mod pages;
pub mod patience;
pub mod replayer;

pub use divergence::{Divergence, Mismatch};
pub use replayer::{Progress, ReplayError, Replayer};
