//! The side of a machine that faces the world: the recorder, its host I/O, and the commands built on them.

// They panic where a reader has gone: `out` has what does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod api;
pub mod arbiter;
pub mod cli;
pub mod copying;
mod durable;
pub mod history;
pub mod host;
pub mod kicker;
pub mod link;
pub mod out;
pub mod pair;
pub mod pki;
pub mod recorder;
pub mod recording;
pub mod reports;
pub mod sandbox;
pub mod session;
pub mod start;
pub mod sys;
mod version;

pub use version::VERSION;
