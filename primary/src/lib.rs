//! What records a machine and sends it: the recorder, which is the oracle that asks the world, the link to a backup, and the
//! session that holds them together; and the commands of `lockstep-primary`.

#![forbid(unsafe_code)]
// They panic where a reader has gone: `out` has what does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod link;
pub mod recorder;
pub mod session;
