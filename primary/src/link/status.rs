//! What a link tells about itself: the pair's state in the words that operators know.

use std::sync::{Arc, Mutex};

use lockstep_proto::session::{Freeze, PrimaryState, Unprotected};

/// Target of the messages that tell the pair's state, the same in both programs.
pub const STATE_MESSAGES: &str = "lockstep::state";

/// What the link tells about itself.
#[derive(Clone, Default)]
pub struct Status(Arc<Mutex<StatusInner>>);

/// A moment's status.
#[derive(Clone, Debug, Default)]
pub struct StatusInner {
    /// The session's state in words: `protected`, `not-protected (need-backup)` and so on.
    pub state: String,
    /// The term held.
    pub term: u64,
    /// The peer, if it is connected.
    pub peer: String,
    /// Position of the log that the peer has received, and that it has verified.
    pub received: u64,
    /// See above.
    pub verified: u64,
    /// Effects' position that left last.
    pub released: u64,
}

impl Status {
    /// The status now.
    pub fn get(&self) -> StatusInner {
        self.0.lock().map(|inner| inner.clone()).unwrap_or_default()
    }

    /// Changes it. True when the state's words are new.
    pub fn set(&self, new: StatusInner) -> bool {
        let Ok(mut inner) = self.0.lock() else { return false };
        let changed = inner.state != new.state;
        *inner = new;
        changed
    }
}

/// The state in the words that operators know (docs/protocol.md).
pub fn describe(state: &PrimaryState) -> String {
    let reason = |why: &Unprotected| match why {
        Unprotected::NeedBackup => "need-backup".to_owned(),
        Unprotected::LostConnection => "lost-connection".into(),
        Unprotected::Divergence => "divergence".into(),
        Unprotected::Refused(reason) => format!("refused: {reason}"),
    };
    match state {
        PrimaryState::Alone(why) => format!("not-protected ({})", reason(why)),
        PrimaryState::Greeting | PrimaryState::Syncing | PrimaryState::Naming => "syncing".into(),
        PrimaryState::Protected => "protected".into(),
        PrimaryState::Fencing(why) => format!("fencing ({})", reason(why)),
        PrimaryState::Frozen(Freeze::LostTerm) => "frozen (lost-term)".into(),
        PrimaryState::Frozen(Freeze::NoArbiter) => "frozen (no-arbiter)".into(),
    }
}
