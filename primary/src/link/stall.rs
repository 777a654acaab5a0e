//! Whether the guest moves: a machine that does not, though it should, is *stalled*.
//!
//! The vCPU thread tells since when something has been due (an interrupt, a device's timer, an input, a command) that no stop
//! has served, and beats wherever it comes by. Only a clock beside it can tell that it does neither. What holds a guest back
//! on purpose (its pace, the cost of deltas, a pause, a machine that stands still) is not due.

use std::time::{Duration, Instant};

use lockstep_node::status::pulse::{Doctor, Pulse};
use lockstep_node::status::{Status, count};
use lockstep_node::watch::LOOK;
use lockstep_proto::session::{PrimaryState, Timing, Unprotected};

/// Never called stalled sooner, however short the deadline is: a host with more to do than processors lets a thread wait for
/// seconds.
const SHORTEST: Duration = Duration::from_secs(5);
/// A machine that was handed over because it was stalled is not handed back for as long.
const STAYS: Duration = Duration::from_secs(3600);

/// What shows that the guest does not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// Something is due, and it makes no stop at which that could enter.
    NoStop,
    /// Its thread does not come by.
    Silent,
}

/// A machine that does not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stall {
    pub sign: Sign,
    /// It was handed over because of that shortly before: it stays.
    pub stays: bool,
}

impl Stall {
    /// The state in the words that operators know.
    pub fn words(self) -> String {
        let sign = match self.sign {
            Sign::NoStop => "no-stop",
            Sign::Silent => "vcpu-silent",
        };
        let stays = if self.stays { ", also after a handover" } else { "" };
        format!("stalled{stays} ({sign})")
    }
}

/// Looks at a machine again and again.
pub(super) struct Stalls {
    limit: Duration,
    vcpu: Doctor,
    looked: Instant,
    /// Since when what is due now has been, by the vCPU thread's clock, and for how long that was seen.
    due_since: u64,
    due: Duration,
    /// For how long no beat was seen.
    silent: Duration,
    /// The machine came here, then, because it was stalled.
    came: Option<Instant>,
    stall: Option<Stall>,
}

impl Stalls {
    /// Of the machine that `status` tells of, which is not protected yet for this reason.
    pub fn of(status: &Status, timing: &Timing, why: &Unprotected) -> Self {
        let came = *why == Unprotected::Stalled;
        // The node that it came from does not count any more: it has started over.
        count(&status.gauges().stalls, u64::from(came));
        Self::new(&status.pulses().vcpu, timing, came, Instant::now())
    }

    fn new(vcpu: &Pulse, timing: &Timing, came: bool, now: Instant) -> Self {
        Self {
            limit: Duration::from_nanos(timing.stall_ns()).max(SHORTEST),
            vcpu: Doctor::of(vcpu),
            looked: now,
            due_since: 0,
            due: Duration::ZERO,
            silent: Duration::ZERO,
            came: came.then_some(now),
            stall: None,
        }
    }

    /// One look. `due_since`: since when something has been due; 0: nothing is. True when a stall begins.
    pub fn look(&mut self, now: Instant, due_since: u64) -> bool {
        // A process that stood still itself has seen nothing meanwhile.
        let passed = now.saturating_duration_since(self.looked).min(2 * LOOK);
        self.looked = now;
        let waits = due_since != 0 && due_since == self.due_since;
        self.due = if waits { self.due + passed } else { Duration::ZERO };
        self.due_since = due_since;
        self.silent = if self.vcpu.feels() {
            Duration::ZERO
        } else {
            self.silent + passed
        };
        self.vcpu.tell();
        let sign = if self.silent >= self.limit {
            Some(Sign::Silent)
        } else {
            (self.due >= self.limit).then_some(Sign::NoStop)
        };
        let was = self.stall;
        self.stall = sign.map(|sign| Stall {
            sign,
            stays: was.map_or_else(|| self.came.is_some_and(|came| now < came + STAYS), |was| was.stays),
        });
        was.is_none() && self.stall.is_some()
    }

    /// The stall, if there is one.
    pub fn now(&self) -> Option<Stall> {
        self.stall
    }
}

/// What stands for the state of a machine that does not move, also while the backup is to go on with it. Where it is not to
/// move, that is what counts.
pub(super) fn words_instead(stall: Option<Stall>, state: &PrimaryState) -> Option<String> {
    match state {
        PrimaryState::Fencing { .. } | PrimaryState::Frozen(_) => None,
        PrimaryState::Alone(_)
        | PrimaryState::Greeting
        | PrimaryState::Syncing { .. }
        | PrimaryState::Naming { .. }
        | PrimaryState::Protected
        | PrimaryState::HandingOver { .. } => stall.map(Stall::words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_proto::quantity::LogPosition;
    use lockstep_proto::session::Freeze;

    const QUICK: Timing = Timing {
        heartbeat_ns: 50_000_000,
        deadline_ns: 150_000_000,
    };

    fn stays(stall: Option<Stall>) -> Option<Stall> {
        stall.map(|stall| Stall { stays: true, ..stall })
    }

    /// A machine that is looked at, its clock, and the vCPU thread's pulse.
    struct Looked {
        stalls: Stalls,
        pulse: Pulse,
        now: Instant,
    }

    impl Looked {
        fn new(timing: &Timing, came: bool) -> Self {
            let (pulse, now) = (Pulse::default(), Instant::now());
            let stalls = Stalls::new(&pulse, timing, came, now);
            Self { stalls, pulse, now }
        }

        /// Looks every second for so many; how it is then.
        fn looks(&mut self, seconds: u32, due_since: u64, beats: bool) -> Option<Stall> {
            for _ in 0..seconds {
                self.now += LOOK;
                if beats {
                    self.pulse.beat();
                }
                self.stalls.look(self.now, due_since);
            }
            self.stalls.now()
        }
    }

    const NO_STOP: Option<Stall> = Some(Stall {
        sign: Sign::NoStop,
        stays: false,
    });
    const SILENT: Option<Stall> = Some(Stall {
        sign: Sign::Silent,
        stays: false,
    });

    #[test]
    fn what_is_due_and_not_served_is_a_stall() {
        let mut looked = Looked::new(&QUICK, false);
        let _alive = looked.pulse.begin(|| {});
        assert_eq!(looked.looks(100, 0, true), None, "nothing is due");
        assert_eq!(
            looked.looks(5, 7, true),
            None,
            "it is seen for the first time, then for four seconds"
        );
        assert_eq!(looked.looks(1, 7, true), NO_STOP);
        // A stop was made, and something else is due.
        assert_eq!(looked.looks(5, 9, true), None);
        assert_eq!(looked.looks(1, 0, true), None);
    }

    #[test]
    fn a_thread_that_does_not_come_by_is_a_stall() {
        let mut looked = Looked::new(&QUICK, false);
        assert_eq!(looked.looks(100, 0, false), None, "it does not run yet");
        let alive = looked.pulse.begin(|| {});
        assert_eq!(looked.looks(5, 0, false), None);
        assert_eq!(looked.looks(1, 0, false), SILENT);
        assert_eq!(looked.looks(1, 0, true), None);
        drop(alive);
        assert_eq!(looked.looks(100, 0, false), None, "it has ended");
    }

    #[test]
    fn a_thread_that_is_stopped_while_it_waits_is_a_stall() {
        let mut looked = Looked::new(&QUICK, false);
        let _alive = looked.pulse.begin(|| {});
        let (stops, has_stopped) = std::sync::mpsc::channel();
        let (let_go, held) = std::sync::mpsc::channel::<()>();
        let pulse = looked.pulse.clone();
        let wait = async move {
            stops.send(()).unwrap();
            let _ = held.recv();
        };
        let waits = std::thread::spawn(move || pulse.wait(wait));
        has_stopped.recv().unwrap();
        assert_eq!(
            looked.looks(6, 0, false),
            SILENT,
            "it does not come by at the wait's end either"
        );
        drop(let_go);
        waits.join().unwrap();
        assert_eq!(looked.looks(1, 0, false), None);
    }

    #[test]
    fn the_limit_goes_with_the_deadline() {
        let mut looked = Looked::new(&Timing::CALM, false);
        assert_eq!(looked.looks(10, 7, true), None);
        assert_eq!(looked.looks(1, 7, true), NO_STOP);
    }

    #[test]
    fn a_process_that_stood_still_has_seen_nothing() {
        let mut looked = Looked::new(&QUICK, false);
        let _alive = looked.pulse.begin(|| {});
        looked.looks(2, 7, true);
        looked.now += 1000 * LOOK;
        assert_eq!(looked.looks(1, 7, false), None);
    }

    #[test]
    fn a_machine_that_came_because_of_a_stall_stays_for_a_while() {
        let mut looked = Looked::new(&QUICK, true);
        let _alive = looked.pulse.begin(|| {});
        assert_eq!(looked.looks(6, 7, true), stays(NO_STOP));
        // This one does, however long it lasts.
        assert_eq!(looked.looks(4000, 7, true), stays(NO_STOP));
        assert_eq!(looked.looks(1, 0, true), None);
        assert_eq!(looked.looks(6, 8, true), NO_STOP);
    }

    #[test]
    fn a_stall_is_told_where_the_guest_should_move() {
        let stall = stays(SILENT);
        let words = |state| words_instead(stall, &state);
        let told = Some("stalled, also after a handover (vcpu-silent)".to_owned());
        assert_eq!(words(PrimaryState::Protected), told);
        assert_eq!(words(PrimaryState::Alone(Unprotected::NeedBackup)), told);
        assert_eq!(words(PrimaryState::Frozen(Freeze::LostTerm)), None);
        let handing_over = PrimaryState::HandingOver {
            at: LogPosition::START,
            stalled: true,
            told: false,
        };
        assert_eq!(words(handing_over), told);
        assert_eq!(words_instead(None, &PrimaryState::Protected), None);
        let first = NO_STOP.map(Stall::words);
        assert_eq!(first.as_deref(), Some("stalled (no-stop)"));
    }
}
