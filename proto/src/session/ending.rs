//! How a primary's machine comes to its end, as its link sees it: an operator has asked the guest to shut down, it is ended by
//! force where it does not, and what it gave has left when its backup is told. One that is booted anew takes the next term before.
//!
//! Invariants:
//! - The backup is told once, and not before everything has left.
//! - A machine that an operator ends is not booted anew, nor by its backup where that was told, or the term can be taken from it.
//! - A machine that is being handed over is not ended by force: it may be the other node's already.
//! - Once the guest has ended there is an end to the waiting, whatever the peer does.

use super::{Freeze, PrimaryState};
use crate::quantity::SessionTime;

/// When a machine that is being handed over is looked at again, to end it if it stayed.
const LOOK_AGAIN_NS: u64 = 1_000_000_000;
/// How long a guest that has ended is waited for: for its last output to be safe, and its backup to have heard of it.
const LAST_WAIT_NS: u64 = 5_000_000_000;

/// What of the end has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// Nothing.
    #[default]
    Running,
    /// An operator has asked the guest to shut down.
    Asked {
        /// It is ended by force then.
        force_at: SessionTime,
    },
    /// The machine was ended by force, and has still to say that it has.
    Forced,
    /// The guest has ended, and what it gave leaves.
    Leaving(GuestEnd),
    /// The backup was told, if there is one: it has to hang up. Or else this end has, and takes the next term.
    Told {
        /// Nobody waits for it longer.
        until: SessionTime,
        /// An operator has asked for it.
        shut_down: bool,
        /// The machine is booted anew.
        restarts: bool,
        /// This end has hung up: until the next term is taken the backup may go on.
        hung_up: bool,
    },
}

/// How a guest has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestEnd {
    /// In words, for the backup.
    pub how: &'static str,
    /// An operator has asked for it: the backup's process ends too.
    pub shut_down: bool,
    /// The machine is booted anew: the backup is not told, as it may have to do so.
    pub restarts: bool,
    /// What has not left by then stays.
    until: SessionTime,
}

impl Ending {
    /// An operator asks, `now`, the guest to shut down within so many nanoseconds. Asked once more, they begin anew.
    pub fn ask(&mut self, now: SessionTime, patience_ns: u64) {
        match self {
            Self::Running | Self::Asked { .. } | Self::Forced => {
                *self = Self::Asked {
                    force_at: now.plus_ns(patience_ns),
                };
            }
            Self::Leaving(_) | Self::Told { .. } => self.stay_ended(),
        }
    }

    /// An operator ends the machine at once.
    pub fn force(&mut self) {
        match self {
            Self::Running | Self::Asked { .. } | Self::Forced => *self = Self::Forced,
            Self::Leaving(_) | Self::Told { .. } => self.stay_ended(),
        }
    }

    /// An operator wants the end of a guest that has ended already.
    fn stay_ended(&mut self) {
        match self {
            Self::Running | Self::Asked { .. } | Self::Forced => {}
            Self::Leaving(end) => (end.shut_down, end.restarts) = (true, false),
            Self::Told {
                shut_down, restarts, ..
            } => (*shut_down, *restarts) = (true, false),
        }
    }

    /// Whether the machine is to be ended by force now: the guest was asked to shut down and has not in time. While it is handed
    /// over its end is not for this node to say.
    pub fn forces(&mut self, now: SessionTime, state: &PrimaryState) -> bool {
        let Self::Asked { force_at } = *self else { return false };
        if now < force_at {
            return false;
        }
        let is_leaving = match state {
            PrimaryState::Frozen(why) => *why != Freeze::NoArbiter,
            state => state.is_being_handed_over(),
        };
        *self = if is_leaving {
            Self::Asked {
                force_at: now.plus_ns(LOOK_AGAIN_NS),
            }
        } else {
            Self::Forced
        };
        !is_leaving
    }

    /// The guest has ended, `now`, in this way, and `restarts` if nobody has wanted its end. Of the first time only.
    pub fn guest_ended(&mut self, now: SessionTime, how: &'static str, restarts: bool) {
        let shut_down = match self {
            Self::Running => false,
            Self::Asked { .. } | Self::Forced => true,
            Self::Leaving(_) | Self::Told { .. } => return,
        };
        *self = Self::Leaving(GuestEnd {
            how,
            shut_down,
            restarts: restarts && !shut_down,
            until: now.plus_ns(LAST_WAIT_NS),
        });
    }

    /// What to tell the backup, once: all that the guest gave has left. Of a machine that is booted anew nothing: the connection
    /// is closed, and the session fences as after any other loss.
    pub fn take_goodbye(&mut self, all_has_left: bool) -> Option<GuestEnd> {
        let Self::Leaving(end) = *self else { return None };
        all_has_left.then(|| {
            *self = Self::Told {
                until: end.until,
                shut_down: end.shut_down,
                restarts: end.restarts,
                hung_up: end.restarts,
            };
            end
        })
    }

    /// Whether nothing is left to wait for. A machine that is booted anew waits for its term, in which no backup is named, and so
    /// does one that was to be: its backup was not told, and would boot it. Without an answer of the arbiter, whoever is started
    /// next waits for that.
    pub fn is_over(&self, now: SessionTime, all_has_left: bool, has_peer: bool, state: &PrimaryState) -> bool {
        let (until, needs_term) = match self {
            Self::Running | Self::Asked { .. } | Self::Forced => return false,
            Self::Leaving(GuestEnd { until, restarts, .. }) => (*until, *restarts),
            Self::Told { until, hung_up, .. } => (*until, *hung_up),
        };
        let is_settled = matches!(state, PrimaryState::Alone(_) | PrimaryState::Frozen(Freeze::LostTerm));
        (all_has_left && !has_peer && (is_settled || !needs_term)) || now >= until
    }

    /// Whether the guest has ended as an operator wants it: then the machine is not booted anew.
    pub fn is_shut_down(&self) -> bool {
        match self {
            Self::Running | Self::Asked { .. } | Self::Forced => false,
            Self::Leaving(GuestEnd { shut_down, .. }) | Self::Told { shut_down, .. } => *shut_down,
        }
    }

    /// Whether the guest has ended.
    pub fn has_ended(&self) -> bool {
        matches!(self, Self::Leaving(_) | Self::Told { .. })
    }

    /// When the guest is ended by force, if it was asked to shut down.
    pub fn force_at(&self) -> Option<SessionTime> {
        match self {
            Self::Asked { force_at } => Some(*force_at),
            _ => None,
        }
    }

    /// When it wants to be looked at again at the latest.
    pub fn wake(&self) -> Option<SessionTime> {
        match self {
            Self::Running | Self::Forced => None,
            Self::Asked { force_at: at } | Self::Leaving(GuestEnd { until: at, .. }) | Self::Told { until: at, .. } => {
                Some(*at)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantity::LogPosition;
    use crate::session::Unprotected;

    const SECOND_NS: u64 = 1_000_000_000;
    const ZERO: SessionTime = SessionTime::ZERO;
    /// The end of the last wait for a guest that has ended at zero.
    const WAITED: SessionTime = ZERO.plus_ns(LAST_WAIT_NS);

    fn at(seconds: u64) -> SessionTime {
        SessionTime::from_ns(seconds * SECOND_NS)
    }

    fn asked() -> Ending {
        let mut ending = Ending::default();
        ending.ask(at(5), 10 * SECOND_NS);
        ending
    }

    #[test]
    fn a_guest_that_does_not_shut_down_is_ended_once() {
        let mut ending = asked();
        assert_eq!(ending.wake(), Some(at(15)));
        assert!(!ending.forces(SessionTime::from_ns(15 * SECOND_NS - 1), &PrimaryState::Protected));
        assert!(ending.forces(at(15), &PrimaryState::Protected));
        assert!(!ending.forces(at(99), &PrimaryState::Protected));
        // Asked once more, it is given its time again.
        ending.ask(at(20), SECOND_NS);
        assert!(!ending.forces(at(20), &PrimaryState::Protected));
        assert!(ending.forces(at(21), &PrimaryState::Frozen(Freeze::NoArbiter)));
    }

    #[test]
    fn one_that_is_handed_over_is_not_ended_by_force() {
        for state in [
            PrimaryState::HandingOver {
                at: LogPosition::START,
                stalled: false,
                told: false,
            },
            PrimaryState::Fencing {
                why: Unprotected::LostConnection,
                still: true,
            },
            PrimaryState::Frozen(Freeze::Handover),
            PrimaryState::Frozen(Freeze::LostTerm),
        ] {
            let mut ending = asked();
            assert!(!ending.forces(at(20), &state));
            assert_eq!(ending.wake(), Some(at(20).plus_ns(LOOK_AGAIN_NS)));
            // It stayed.
            assert!(ending.forces(at(20).plus_ns(LOOK_AGAIN_NS), &PrimaryState::Protected));
        }
    }

    #[test]
    fn the_backup_hears_who_wanted_the_end() {
        let told = |mut ending: Ending| {
            ending.guest_ended(at(20), "reset", false);
            assert_eq!(ending.force_at(), None, "there is nothing to end by force");
            assert_eq!(ending.take_goodbye(false), None);
            let end = ending.take_goodbye(true).expect("a goodbye");
            assert_eq!(ending.take_goodbye(true), None, "once");
            assert_eq!(end.how, "reset");
            end.shut_down
        };
        assert!(!told(Ending::Running));
        assert!(told(asked()) && told(Ending::Forced));
        // Also one who asks while the last output waits.
        for late in [
            |ending: &mut Ending| ending.force(),
            |ending: &mut Ending| ending.ask(ZERO, 0),
        ] {
            let mut ending = Ending::default();
            ending.guest_ended(ZERO, "halt", true);
            late(&mut ending);
            assert!(ending.is_shut_down(), "it would be booted anew after an operator's end");
            assert!(ending.take_goodbye(true).is_some_and(|end| end.shut_down));
            late(&mut ending);
            assert!(ending.has_ended());
        }
    }

    #[test]
    fn the_waiting_ends() {
        let mut ending = Ending::default();
        let state = PrimaryState::Protected;
        assert!(
            !ending.is_over(SessionTime::from_ns(u64::MAX), true, false, &state),
            "the guest runs"
        );
        ending.guest_ended(ZERO, "halt", false);
        assert!(
            !ending.is_over(ZERO.plus_ns(LAST_WAIT_NS - 1), false, false, &state),
            "something has not left"
        );
        assert!(
            !ending.is_over(ZERO.plus_ns(LAST_WAIT_NS - 1), true, true, &state),
            "the backup has not hung up"
        );
        assert!(ending.is_over(ZERO, true, false, &state));
        assert!(ending.is_over(WAITED, false, true, &state));
        assert_eq!(ending.wake(), Some(WAITED));
    }

    #[test]
    fn a_machine_is_booted_anew_when_no_backup_is_named_any_more() {
        let why = Unprotected::LostConnection;
        let fencing = PrimaryState::Fencing {
            why: why.clone(),
            still: false,
        };
        let alone = PrimaryState::Alone(why);
        let soon = SessionTime::from_ns(1);
        let mut ending = Ending::default();
        ending.guest_ended(ZERO, "reset", true);
        for (state, is_over) in [
            (PrimaryState::Protected, false),
            (fencing.clone(), false),
            (PrimaryState::Frozen(Freeze::NoArbiter), false),
            (alone.clone(), true),
            (PrimaryState::Frozen(Freeze::LostTerm), true),
        ] {
            assert_eq!(ending.is_over(soon, true, false, &state), is_over, "leaving, {state:?}");
            assert!(!ending.is_over(soon, true, true, &state), "connected, {state:?}");
            let mut told = ending;
            let end = told.take_goodbye(true).expect("all has left");
            assert!(end.restarts && !end.shut_down);
            assert_eq!(told.is_over(soon, true, false, &state), is_over, "{state:?}");
            assert!(told.is_over(WAITED, false, true, &state) && !told.is_shut_down());
        }
        // An operator who ends it later ends it for good. The backup was not told, and would boot it until the term is taken.
        assert!(ending.take_goodbye(true).is_some());
        ending.ask(soon, SECOND_NS);
        assert!(ending.is_shut_down() && !ending.is_over(soon, true, false, &fencing));
        assert!(ending.is_over(soon, true, false, &alone) && ending.is_over(WAITED, true, false, &fencing));
        // And so does one who asked before.
        for mut ending in [asked(), Ending::Forced] {
            ending.guest_ended(at(6), "reset", true);
            assert!(ending.is_shut_down() && ending.is_over(at(6), true, false, &fencing));
        }
    }
}
