//! Where the backup's end stands, with what is known there and nowhere else.

use super::io::BackupState;
use crate::quantity::SessionTime;
use crate::session::Timing;
use crate::session::question::Question;

#[derive(Debug)]
pub(super) enum State {
    /// No primary is connected.
    Waiting,
    /// There is a connection to a primary.
    Connected(Connection),
    /// The primary is lost, or hands over.
    Claiming(Claim),
    /// The term is won; it was this node's.
    Live { primary: String },
}

/// A connection to a primary, and what is known of that.
#[derive(Debug)]
pub(super) struct Connection {
    /// Its name.
    pub(super) primary: String,
    pub(super) last_heard: SessionTime,
    /// When the last heartbeat came.
    pub(super) last_beat: Option<SessionTime>,
    pub(super) phase: Phase,
}

/// How far it is with the primary; [`BackupState`] has the words.
#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    Connected,
    Syncing {
        /// The join's state has come.
        has_state: bool,
    },
    Joined,
    Protected,
}

/// What is asked before the machine goes live here.
#[derive(Debug)]
pub(super) struct Claim {
    /// Whose term it is.
    pub(super) primary: String,
    pub(super) question: Question,
    /// The arbiter did not answer.
    pub(super) unanswered: bool,
}

impl State {
    /// In the words for others.
    pub(super) fn told(&self) -> BackupState {
        match self {
            Self::Waiting => BackupState::Waiting,
            Self::Connected(connection) => match connection.phase {
                Phase::Connected => BackupState::Connected,
                Phase::Syncing { .. } => BackupState::Syncing,
                Phase::Joined => BackupState::Joined,
                Phase::Protected => BackupState::Protected,
            },
            Self::Claiming(Claim { unanswered: false, .. }) => BackupState::Claiming,
            Self::Claiming(Claim { unanswered: true, .. }) => BackupState::Frozen,
            Self::Live { .. } => BackupState::Live,
        }
    }

    pub(super) fn connection(&self) -> Option<&Connection> {
        match self {
            Self::Connected(connection) => Some(connection),
            Self::Waiting | Self::Claiming(_) | Self::Live { .. } => None,
        }
    }

    pub(super) fn connection_mut(&mut self) -> Option<&mut Connection> {
        match self {
            Self::Connected(connection) => Some(connection),
            Self::Waiting | Self::Claiming(_) | Self::Live { .. } => None,
        }
    }

    /// The primary's name.
    pub(super) fn primary(&self) -> Option<&str> {
        match self {
            Self::Waiting => None,
            Self::Connected(Connection { primary, .. })
            | Self::Claiming(Claim { primary, .. })
            | Self::Live { primary } => Some(primary),
        }
    }
}

impl Connection {
    /// To the primary of this name, since `now`.
    pub(super) fn new(primary: String, now: SessionTime) -> Self {
        Self {
            primary,
            last_heard: now,
            last_beat: None,
            phase: Phase::Connected,
        }
    }

    /// When the primary is taken for dead, if nothing is heard until then.
    pub(super) fn deadline(&self, timing: &Timing) -> SessionTime {
        self.last_heard.plus_ns(timing.deadline_ns)
    }

    /// Whether the machine is here and replays.
    pub(super) fn has_machine(&self) -> bool {
        matches!(self.phase, Phase::Joined | Phase::Protected)
    }
}
