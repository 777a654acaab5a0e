//! The link of a pair: the session over QUIC, the output gate and the join, in a thread of their own.
//!
//! - [`wire`], [`net`], [`peer`]: messages on streams, the endpoints, a connection.
//! - [`port`]: what the vCPU thread sees of it.
//! - [`channels`]: what goes from there to a backup.
//! - [`join`], [`have`]: how a new backup gets the machine while it runs, and what of it it has already.
//! - `stall`: whether the guest moves.
//! - [`greet`]: a look at the peer before there is a session.
//! - [`live`]: the primary's end; `look`: what it looks at, and tells; `operator`: what it does when asked to. The backup's is in the backup crate.
//!
//! Invariants: nothing leaves the machine but through the gate, and the gate asks the session before each turn's effects;
//! the vCPU thread never waits for the network but when a bounded queue is full.

mod announce;
pub mod channels;
pub mod greet;
pub mod have;
pub mod join;
pub mod live;
pub mod net;
pub mod peer;
pub mod port;
mod stall;
mod streams;
pub mod wire;

/// Why a connection is closed by a node that has one already.
pub const BUSY: &str = "another connection is in use";

pub use announce::macs;
pub use live::{Live, LiveOptions};
pub use port::LinkState;
pub use port::{Command, LinkPort};
