//! Standing by: a machine that comes over the link, replays the primary's log, and may have to go live.
//!
//! Two threads. The link's (`link`) runs the session over QUIC and acknowledges; the replica's (`replica`) builds the
//! machine, replays and compares. Orders and records go from the first to the second, what was verified comes back.
//!
//! Invariants:
//! - A record is acknowledged when it is here, whole, and in order; what was acknowledged is replayed before the machine
//!   goes live.
//! - Effects are kept until the primary says that they left; what remains is let go when the machine goes live.

mod chunks;
mod healing;
mod kept;
mod link;
mod recording;
mod replica;
mod room;
mod source;
mod streams;

pub use link::{Standby, StandbyOptions};
pub use recording::Recordings;
pub use replica::{Outcome, Promoted, Replica, ReplicaOptions};

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use lockstep_logcodec::Record as LogRecord;
use lockstep_primary::link::peer::Heard;
use lockstep_proto::quantity::{LogPosition, StopNumber};
use lockstep_proto::session::{Record, Verdict};
use lockstep_proto::{DiskChunk, Diverged, Heartbeat, Hello, JoinState, PageChunk, ToBackup};
use quinn::{Connection, Incoming, RecvStream, SendStream};
use tokio::sync::mpsc;

use self::room::Rooms;

/// What the link's thread orders.
enum Order {
    /// Memory for the hello's machine is to be there; the log comes through this inlet.
    Prepare(Box<Hello>, Inlet),
    /// Pages of a join, and what they weigh in KiB.
    Pages(PageChunk, u32),
    /// A piece of a disk, and what it weighs in KiB.
    Chunk(DiskChunk, u32),
    /// The join's end.
    Build(Box<JoinState>),
    /// The term is won: replay what came, then go live.
    Promote(Takeover),
    /// Throw the machine away.
    Discard,
    /// The process is to end.
    Quit,
}

/// A term that was won.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Takeover {
    record: Record,
    /// When the arbiter was first asked for it.
    asked: Instant,
    won: Instant,
    /// The machine was stalled where it ran before.
    stalled: bool,
}

/// A record of the log, what it weighs in KiB, and when it came.
struct Queued {
    record: LogRecord,
    weight: u32,
    came: Instant,
}

/// What the replica's thread reports.
enum Report {
    Built,
    Unfit(String),
    /// Position up to which the log is verified, and the stop.
    Verified(LogPosition, StopNumber),
    Diverged(Diverged),
}

/// What comes to the link's thread from its own tasks, with the number of its connection.
enum Event {
    Incoming(Incoming),
    Connected(u64, Connection, SendStream, RecvStream),
    /// A connection from there that was not made.
    Refused(SocketAddr, anyhow::Error),
    Heard(u64, Heard<ToBackup, Heartbeat>),
    Bulk(u64, Order),
    /// So many batches have come since the join's state.
    Log(u64, u64),
    Verdict(Verdict),
    /// Whether the arbiter answers.
    Arbiter(bool),
}

/// What one connection brings for the replica, bounded by bytes.
struct Inlet {
    log: Receiver<Queued>,
    /// What the replica has taken it gives back here.
    rooms: Rooms,
    /// Takes what this side has already; dropped when all is told.
    have: Option<mpsc::Sender<Bytes>>,
}

/// Position up to which effects left the primary.
type Released = Arc<AtomicU64>;

/// The ends of the channels between the two threads.
struct ReplicaEnds {
    orders: Receiver<Order>,
    reports: mpsc::UnboundedSender<Report>,
    released: Released,
}

struct LinkEnds {
    orders: Sender<Order>,
    reports: mpsc::UnboundedReceiver<Report>,
    released: Released,
}

fn ends() -> (ReplicaEnds, LinkEnds) {
    let (orders_in, orders) = unbounded();
    let (reports, reports_out) = mpsc::unbounded_channel();
    let released = Released::default();
    let replica = ReplicaEnds {
        orders,
        reports,
        released: released.clone(),
    };
    let link = LinkEnds {
        orders: orders_in,
        reports: reports_out,
        released,
    };
    (replica, link)
}
