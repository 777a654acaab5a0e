//! What the primary's end takes in, wants done and is.

use crate::quantity::LogPosition;
use crate::session::{Freeze, Record, Unprotected, Verdict};
use crate::{Diverged, Heartbeat, HeartbeatReply, ToBackup, ToPrimary};

/// Where the primary stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrimaryState {
    /// It goes on alone, and would take a backup.
    Alone(Unprotected),
    /// A backup is connected and has been greeted.
    Greeting,
    /// Memory is on its way to the backup.
    Syncing {
        /// The state of the join, which comes last, was handed to the transport.
        state_sent: bool,
    },
    /// The backup has the state. As soon as it has the log behind all that may have left, the arbiter is asked to name it;
    /// then it is told.
    Naming {
        /// Where the log ended when the backup had joined: effects up to here may have left unacknowledged.
        catch_up: LogPosition,
    },
    /// The backup can take over.
    Protected,
    /// The machine stands still for the backup to go on with it, or does not move by itself. While that has not executed all
    /// of the log, what it acknowledges leaves; once it was told to claim the term, nothing does.
    HandingOver {
        /// Where the machine stands still, or the log ended when it was given away.
        at: LogPosition,
        /// It is handed over because it does not move.
        stalled: bool,
        /// The backup was told to claim the term.
        told: bool,
    },
    /// The backup is lost; the arbiter is asked for the next term. Nothing leaves.
    Fencing {
        /// Why it is lost.
        why: Unprotected,
        /// The machine was to be handed over, and goes on when the term is won.
        still: bool,
    },
    /// The machine stands still.
    Frozen(Freeze),
}

impl PrimaryState {
    /// Whether the backup has been, or is about to be, told to go on with the machine, and nobody knows yet whether it does: the
    /// machine's end is not for this node to say.
    pub fn is_being_handed_over(&self) -> bool {
        matches!(self, Self::HandingOver { .. } | Self::Fencing { still: true, .. })
    }
}

/// What happens to the primary.
#[derive(Clone, Debug)]
pub enum PrimaryInput {
    /// The transport reached the peer, and knows it under this name.
    Connected(String),
    /// The connection is gone.
    Disconnected,
    /// A message on the control stream.
    Message(ToPrimary),
    /// A datagram.
    Reply(HeartbeatReply),
    /// The join's state was handed to the transport: the log goes on from here. Every effect made before it has left.
    StateSent,
    /// The machine stands still at this position of the log, until [`PrimaryAction::Thaw`]: the backup is to go on with it.
    HandOver(LogPosition),
    /// The machine does not move and cannot be made to stop: the backup is to go on with it where the log ends. Of use only
    /// while it is protected.
    GiveAway,
    /// No backup is wanted until [`PrimaryInput::Resume`].
    Suspend,
    /// A backup is wanted again.
    Resume,
    /// The arbiter's answer to [`PrimaryAction::Arbitrate`]: exactly one to each. An answer that comes after
    /// [`Verdict::Unknown`] was given is dropped.
    Arbiter(Verdict),
    /// Time has passed.
    Tick,
}

/// What the primary wants done.
// Few are alive at a time, and none is kept.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq)]
pub enum PrimaryAction {
    /// Send on the control stream.
    Send(ToBackup),
    /// Send as a datagram.
    Heartbeat(Heartbeat),
    /// Send memory and state to the backup, then the log.
    BeginJoin,
    /// No more of it to this backup.
    EndLog,
    /// Close the connection; for this reason. Nothing more of it is wanted, [`PrimaryInput::Disconnected`] neither.
    Disconnect(String),
    /// Ask the arbiter to replace the record.
    Arbitrate {
        /// What must be there.
        expected: Record,
        /// What is to be there.
        new: Record,
    },
    /// The vCPU must not run any more.
    Freeze(Freeze),
    /// The vCPU may run again: the term was won after all, or there is nobody to hand over to.
    Thaw,
    /// The backup's report of a divergence, to be told to people.
    Report(Diverged),
}
