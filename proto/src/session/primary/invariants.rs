//! What is so of the primary's end after every event.

use super::{Primary, PrimaryState};

impl Primary {
    /// Stops where it is not so: whatever breaks it would let effects out that nobody has, or two nodes go on: better no
    /// primary than such a one.
    pub(super) fn check(&self) {
        assert!(
            self.ack.verified <= self.ack.received && self.received() <= self.logged,
            "acknowledged: {:?} of {} logged",
            self.ack,
            self.logged
        );
        // Alone, fencing and frozen there is nobody to talk to, and who talks has a connection.
        let talks = match self.state {
            PrimaryState::Alone(_) | PrimaryState::Fencing { .. } | PrimaryState::Frozen(_) => false,
            PrimaryState::Greeting
            | PrimaryState::Syncing { .. }
            | PrimaryState::Naming { .. }
            | PrimaryState::Protected
            | PrimaryState::HandingOver { .. } => true,
        };
        assert_eq!(
            talks,
            self.peer.is_some(),
            "a peer and {:?} do not go together",
            self.state
        );
        // The arbiter is asked to name a backup or to do without one, and for nothing else.
        let asks = matches!(
            self.state,
            PrimaryState::Naming { .. } | PrimaryState::Fencing { .. } | PrimaryState::Frozen(_)
        );
        assert!(asks || self.question.is_none(), "a question in {:?}", self.state);
        let needs_name = matches!(self.state, PrimaryState::Protected | PrimaryState::HandingOver { .. });
        assert!(
            !needs_name || self.is_named(),
            "{:?} with a backup that nobody has named",
            self.state
        );
    }
}
