//! Where the primary's end stands, with what is known there and nowhere else.

use super::io::PrimaryState;
use crate::quantity::{LogPosition, SessionTime};
use crate::session::question::Question;
use crate::session::{Freeze, Record, Timing, Unprotected};

#[derive(Debug)]
pub(super) enum State {
    /// It goes on alone, for this reason, and would take a backup.
    Alone(Unprotected),
    /// There is a connection to a backup.
    Connected(Connection),
    /// The backup is lost, and may be named: the arbiter is asked for the next term.
    Fencing(Fence),
    /// Another node has the term: final.
    LostTerm,
}

/// A connection to a backup, and what is known of that.
#[derive(Debug)]
pub(super) struct Connection {
    /// Its name.
    pub(super) peer: String,
    pub(super) last_heard: SessionTime,
    /// Since when it acknowledges nothing of what waits for it.
    pub(super) stalled: Option<SessionTime>,
    /// Its service uplink has no carrier, as far as it said.
    pub(super) uplink_down: bool,
    pub(super) phase: Phase,
}

/// How far it is with the backup; [`PrimaryState`] has the words.
#[derive(Debug)]
pub(super) enum Phase {
    Greeting,
    Syncing {
        state_sent: bool,
    },
    Naming {
        catch_up: LogPosition,
        /// To name it, from when it has caught up until the record says so.
        question: Option<Question>,
    },
    Protected,
    HandingOver {
        at: LogPosition,
        stalled: bool,
        told: bool,
    },
}

/// What is asked before the machine goes on without the backup.
#[derive(Debug)]
pub(super) struct Fence {
    /// Why the backup is lost.
    pub(super) why: Unprotected,
    /// The machine was to be handed over.
    pub(super) still: bool,
    /// The arbiter did not answer.
    pub(super) frozen: bool,
    /// For the next term; or still to name the backup, and then for the term after that.
    pub(super) question: Question,
}

impl State {
    /// In the words for others.
    pub(super) fn told(&self) -> PrimaryState {
        match self {
            Self::Alone(why) => PrimaryState::Alone(why.clone()),
            Self::Connected(connection) => connection.phase.told(),
            Self::Fencing(Fence { frozen: true, .. }) => PrimaryState::Frozen(Freeze::NoArbiter),
            Self::Fencing(Fence { why, still, .. }) => PrimaryState::Fencing {
                why: why.clone(),
                still: *still,
            },
            Self::LostTerm => PrimaryState::Frozen(Freeze::LostTerm),
        }
    }

    pub(super) fn connection(&self) -> Option<&Connection> {
        match self {
            Self::Connected(connection) => Some(connection),
            Self::Alone(_) | Self::Fencing(_) | Self::LostTerm => None,
        }
    }

    pub(super) fn connection_mut(&mut self) -> Option<&mut Connection> {
        match self {
            Self::Connected(connection) => Some(connection),
            Self::Alone(_) | Self::Fencing(_) | Self::LostTerm => None,
        }
    }

    pub(super) fn phase(&self) -> Option<&Phase> {
        self.connection().map(|connection| &connection.phase)
    }

    pub(super) fn phase_mut(&mut self) -> Option<&mut Phase> {
        self.connection_mut().map(|connection| &mut connection.phase)
    }

    /// What the arbiter is asked.
    pub(super) fn question(&self) -> Option<&Question> {
        match self {
            Self::Connected(connection) => connection.phase.question(),
            Self::Fencing(fence) => Some(&fence.question),
            Self::Alone(_) | Self::LostTerm => None,
        }
    }

    pub(super) fn question_mut(&mut self) -> Option<&mut Question> {
        match self {
            Self::Connected(connection) => match &mut connection.phase {
                Phase::Naming { question, .. } => question.as_mut(),
                _ => None,
            },
            Self::Fencing(fence) => Some(&mut fence.question),
            Self::Alone(_) | Self::LostTerm => None,
        }
    }
}

impl Connection {
    /// To the backup of this name, since `now`.
    pub(super) fn new(peer: String, now: SessionTime) -> Self {
        Self {
            peer,
            last_heard: now,
            stalled: None,
            uplink_down: false,
            phase: Phase::Greeting,
        }
    }

    /// When the backup is taken for dead, if nothing is heard until then.
    pub(super) fn suspects_at(&self, timing: &Timing) -> SessionTime {
        self.last_heard.plus_ns(timing.suspicion_ns())
    }

    /// When it is given up, if it acknowledges nothing until then.
    pub(super) fn stalls_at(&self, timing: &Timing) -> Option<SessionTime> {
        self.stalled.map(|since| since.plus_ns(timing.stall_ns()))
    }
}

impl Phase {
    fn told(&self) -> PrimaryState {
        match *self {
            Self::Greeting => PrimaryState::Greeting,
            Self::Syncing { state_sent } => PrimaryState::Syncing { state_sent },
            Self::Naming { catch_up, .. } => PrimaryState::Naming { catch_up },
            Self::Protected => PrimaryState::Protected,
            Self::HandingOver { at, stalled, told } => PrimaryState::HandingOver { at, stalled, told },
        }
    }

    fn question(&self) -> Option<&Question> {
        match self {
            Self::Naming { question, .. } => question.as_ref(),
            Self::Greeting | Self::Syncing { .. } | Self::Protected | Self::HandingOver { .. } => None,
        }
    }

    /// Whether the backup acknowledges log, and effects wait for that.
    pub(super) fn takes_acks(&self) -> bool {
        match self {
            Self::Greeting | Self::Syncing { .. } => false,
            Self::Naming { .. } | Self::Protected | Self::HandingOver { .. } => true,
        }
    }

    /// Whether the record names the backup.
    pub(super) fn needs_name(&self) -> bool {
        match self {
            Self::Greeting | Self::Syncing { .. } | Self::Naming { .. } => false,
            Self::Protected | Self::HandingOver { .. } => true,
        }
    }
}

impl Fence {
    /// Asks at `at` for the term after `record`'s.
    pub(super) fn new(record: &Record, why: Unprotected, still: bool, at: SessionTime) -> Self {
        Self {
            why,
            still,
            frozen: false,
            question: next_term(record, at),
        }
    }
}

/// The question, at `at`, for the owner of `record` to be alone in the term after that.
pub(super) fn next_term(record: &Record, at: SessionTime) -> Question {
    Question::new(record.clone(), record.alone(&record.owner), at)
}
