//! The side of a machine that faces the world: the recorder, its host I/O, and the commands built on them.

pub mod api;
pub mod arbiter;
pub mod cli;
mod durable;
pub mod history;
pub mod host;
pub mod kicker;
pub mod link;
pub mod pair;
pub mod pki;
pub mod recorder;
pub mod recording;
pub mod session;
pub mod start;
pub mod sys;
