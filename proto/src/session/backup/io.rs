//! What the backup's end takes in, wants done and is.

use crate::quantity::{LogPosition, StopNumber};
use crate::session::{Record, Verdict};
use crate::{Diverged, Heartbeat, HeartbeatReply, Hello, JoinState, ToBackup, ToPrimary};

/// Where the backup stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupState {
    /// No primary is connected.
    Waiting,
    /// A primary is connected and has said nothing yet.
    Connected,
    /// Memory is on its way here.
    Syncing,
    /// The machine is here and replays; this node was not told that the record names it.
    Joined,
    /// The record names this node: it may claim the term.
    Protected,
    /// The primary is lost; the arbiter is asked for the next term, once the primary has been silent for the deadline.
    /// Nothing is acknowledged any more.
    Claiming,
    /// The same, and the arbiter does not answer.
    Frozen,
    /// The term is won.
    Live,
}

/// What happens to the backup.
// Few are alive at a time, and none is kept.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum BackupInput {
    /// A primary has connected, and is known by this name.
    Connected(String),
    /// The connection is gone.
    Disconnected,
    /// A message on the control stream.
    Message(ToBackup),
    /// A datagram.
    Heartbeat(Heartbeat),
    /// The machine is built as the join's state says.
    Built,
    /// The machine cannot be built; for this reason.
    Unfit(String),
    /// The log is here, whole, up to this position.
    Received(LogPosition),
    /// It was executed and compared up to this position, where the machine has made so many natural stops.
    Verified(LogPosition, StopNumber),
    /// The machine went another way; with a report for people.
    Diverged(Diverged),
    /// The arbiter's answer to [`BackupAction::Arbitrate`]: exactly one to each. An answer that comes after
    /// [`Verdict::Unknown`] was given is dropped.
    Arbiter(Verdict),
    /// Time has passed.
    Tick,
}

/// What the backup wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum BackupAction {
    /// Send on the control stream.
    Send(ToPrimary),
    /// Send as a datagram.
    Reply(HeartbeatReply),
    /// Prepare for a machine like the hello's: its memory comes on the bulk stream.
    Prepare(Box<Hello>),
    /// All pages and chunks of disks that the state counts being there, build the machine.
    Build(Box<JoinState>),
    /// Throw the machine away, and whatever of it has come.
    Discard,
    /// Close the connection; for this reason. Nothing more of it is wanted, [`BackupInput::Disconnected`] neither.
    Disconnect(String),
    /// End the process: an operator has shut the machine down. Comes last.
    End,
    /// Ask the arbiter to replace the record.
    Arbitrate {
        /// What must be there.
        expected: Record,
        /// What is to be there.
        new: Record,
    },
    /// The term is won: replay what was received, then go live.
    Promote(Record),
}
