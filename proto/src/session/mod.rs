//! The session of a pair, as state machines without I/O and without a clock: time and messages are passed in, actions
//! come out. The same code runs over QUIC and in the simulator. Time is the caller's [`SessionTime`], which never goes back;
//! lengths of time are plain nanoseconds, and named `_ns`.
//!
//! [`SessionTime`]: crate::quantity::SessionTime
//!
//! Invariants (docs/protocol.md says why they are enough):
//! - Whoever releases output holds the arbiter's term. From the moment that a record naming the backup may have reached
//!   the arbiter, only output that the backup acknowledged leaves, and only within the lease.
//! - A record names a backup only when it has all of the log behind what left before.
//! - A primary that has asked for a backup to be named goes on alone only after the arbiter took its record of the next
//!   term, without a peer.
//! - A backup that has begun to claim the term acknowledges nothing any more.
//! - A record is set against the value last held; nobody reads again to retry.

mod backup;
mod ending;
mod gate;
mod greeting;
mod lag;
mod lease;
mod limits;
mod primary;
mod question;
pub mod record;

pub use backup::{Backup, BackupAction, BackupIdentity, BackupInput, BackupState};
pub use ending::{Ending, GuestEnd};
pub use gate::Gate;
pub use limits::{
    MAX_CONTROL_BYTES, MAX_DATAGRAM_BYTES, MAX_DEADLINE_NS, MAX_NAME_BYTES, MAX_POSITION, MAX_REASON_BYTES,
    MIN_HEARTBEAT_NS, PROTOCOL_VERSION, bounded,
};
pub use primary::{Primary, PrimaryAction, PrimaryInput, PrimaryState};
pub use record::Record;

/// How fast a pair notices that the other side is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From one heartbeat to the next.
    pub heartbeat_ns: u64,
    /// Silence after which the other side is suspected.
    pub deadline_ns: u64,
}

impl Timing {
    /// The defaults: 200 ms and 1 s.
    pub const CALM: Self = Self {
        heartbeat_ns: 200_000_000,
        deadline_ns: 1_000_000_000,
    };

    /// How long output may leave, counted from the sending of the last heartbeat that was answered. Shorter than the
    /// deadline, which the backup counts from when that heartbeat came: a primary that was cut off has fallen silent
    /// when the backup begins to claim the term.
    pub fn lease_ns(&self) -> u64 {
        self.deadline_ns / 3 * 2
    }

    /// Silence after which the primary suspects the backup: between the lease, after which nothing leaves anyway, and the
    /// deadline. A healthy pair that merely loses each other stays with the primary.
    pub fn suspicion_ns(&self) -> u64 {
        self.lease_ns() + (self.deadline_ns - self.lease_ns()) / 2
    }

    /// How long a backup may answer heartbeats and acknowledge nothing of what waits for it: output is held meanwhile.
    pub fn stall_ns(&self) -> u64 {
        self.deadline_ns.saturating_mul(10)
    }

    /// Whether the two are of any use together.
    pub fn is_sound(&self) -> bool {
        self.heartbeat_ns >= MIN_HEARTBEAT_NS
            && self.deadline_ns <= MAX_DEADLINE_NS
            && self.heartbeat_ns <= self.deadline_ns / 2
    }
}

/// Which acknowledgement makes it safe to let an effect go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Commit {
    /// The backup has the log behind it.
    #[default]
    Received,
    /// The backup has executed the log behind it, and found nothing to differ.
    Replayed,
}

/// What the arbiter said to a compare-and-set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The record is the new one: it was set, or found there already, as after an answer that was lost. Nobody else ever
    /// asks for the same one.
    Won,
    /// Another value was there.
    Lost,
    /// The arbiter was not reached; the record may have been set or not.
    Unknown,
}

/// Why a machine stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freeze {
    /// Another node holds the term.
    LostTerm,
    /// No arbiter is reachable.
    NoArbiter,
    /// The backup is to go on with it.
    Handover,
}

/// Why a machine is not protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unprotected {
    /// No backup is there yet.
    NeedBackup,
    /// The connection was lost.
    LostConnection,
    /// The backup's machine went another way.
    Divergence,
    /// The backup refused, or said goodbye; its reason.
    Refused(String),
    /// An operator has asked for it.
    Suspended,
    /// It was stalled where it ran before.
    Stalled,
}
