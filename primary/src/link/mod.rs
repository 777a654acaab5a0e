//! The link of a pair: the session over QUIC, the output gate and the join, in a thread of their own.
//!
//! - [`wire`], [`net`]: messages on streams, and the endpoints.
//! - [`port`]: what the vCPU thread sees of it.
//! - [`join`]: how a new backup gets the machine while it runs.
//! - [`live`]: the primary's end. The backup's is in the backup crate.
//!
//! Invariants: nothing leaves the machine but through the gate, and the gate asks the session before each turn's effects;
//! the vCPU thread never waits for the network but when a bounded queue is full.

pub mod join;
pub mod live;
pub mod net;
pub mod port;
pub mod wire;

pub use live::{Live, LiveOptions};
pub use port::{Command, LinkPort};
