//! The backup's end of a pair: a replica that stands by for a machine, and goes live when its primary is gone.

#![forbid(unsafe_code)]
// They panic where a reader has gone: `out` has what does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod standby;
