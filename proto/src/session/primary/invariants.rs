//! What is so of the primary's end after every event.

use super::Primary;
use super::state::Phase;

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
        let needs_name = self.state.phase().is_some_and(Phase::needs_name);
        assert!(
            !needs_name || self.record.peer.is_some(),
            "{:?} with a backup that nobody has named",
            self.state
        );
    }
}
