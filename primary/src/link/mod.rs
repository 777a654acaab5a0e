//! The link of a pair: the session over QUIC, the output gate and the join, in a thread of their own.
//!
//! - [`wire`], [`net`], [`peer`]: messages on streams, the endpoints, a connection.
//! - [`port`]: what the vCPU thread sees of it.
//! - [`join`], [`have`]: how a new backup gets the machine while it runs, and what of it it has already.
//! - [`control`], [`status`], [`times`], [`pulse`], [`stall`], [`watch`]: operators, what they are told, and what is looked at for
//!   them.
//! - [`greet`]: a look at the peer before there is a session.
//! - [`live`]: the primary's end; `look`: what it looks at, and tells. The backup's is in the backup crate.
//!
//! Invariants: nothing leaves the machine but through the gate, and the gate asks the session before each turn's effects;
//! the vCPU thread never waits for the network but when a bounded queue is full.

mod announce;
pub mod control;
pub mod greet;
pub mod have;
pub mod join;
pub mod live;
pub mod net;
mod operator;
pub mod peer;
pub mod port;
pub mod pulse;
mod stall;
pub mod status;
mod streams;
pub mod times;
pub mod watch;
pub mod wire;

/// Why a connection is closed by a node that has one already.
pub const BUSY: &str = "another connection is in use";

pub use announce::macs;
pub use control::{Asked, Control, Request};
pub use live::{Live, LiveOptions};
pub use port::LinkState;
pub use port::{Command, LinkPort};
pub use status::{Gauges, Pulses, Recording, RecordingState, Role, Status, StatusInner};
