//! What the recorder does at a stop: a guest that is halted and for which nothing is there sleeps on; else a turn enters, with
//! guest time if somebody can see it.

use lockstep_proto::quantity::GuestTime;

/// What is known at a stop.
#[derive(Clone, Copy, Debug, Default)]
pub struct Situation {
    /// Now, as the host's clock has it.
    pub now: GuestTime,
    /// As the machine has it: before this turn.
    pub seen: GuestTime,
    /// The next device timer that the guest would notice.
    pub timer: Option<GuestTime>,
    /// The guest waits in HLT.
    pub halted: bool,
    /// Somebody looks at the time here: the guest asks for it, is halted, or was stopped by force.
    pub looks: bool,
    /// Something enters.
    pub brings: bool,
    /// The guest must not be left asleep: an interrupt waits for it, somebody wants the machine between two steps, or its end.
    pub restless: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Wait until something comes, or so many nanoseconds; `None`: there is no timer.
    Sleep(Option<u64>),
    /// Let the turn enter, with this step of guest time, in nanoseconds.
    Enter(Option<u64>),
}

impl Situation {
    pub fn decide(&self) -> Decision {
        let timer_due = self.timer.is_some_and(|deadline| deadline <= self.now);
        // Sleeping is for a halted guest alone: every other one has its next instruction to execute.
        if self.halted && !timer_due && !self.restless && !self.brings {
            return Decision::Sleep(self.timer.map(|deadline| deadline.ns_since(self.now)));
        }
        // Where nobody looks and nothing is due, guest time stands still: what is not sampled need not be logged.
        let step = self.looks || timer_due;
        Decision::Enter(step.then(|| self.now.ns_since(self.seen)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stop where nobody looks, and nothing is due.
    const PLAIN: Situation = Situation {
        now: GuestTime::from_ns(1_000),
        seen: GuestTime::from_ns(900),
        timer: None,
        halted: false,
        looks: false,
        brings: false,
        restless: false,
    };
    const HALTED: Situation = Situation {
        halted: true,
        looks: true,
        ..PLAIN
    };

    #[test]
    fn each_row_of_the_table() {
        let timer = |timer, of: Situation| Situation {
            timer: Some(GuestTime::from_ns(timer)),
            ..of
        };
        let brings = |of| Situation { brings: true, ..of };
        let restless = |of| Situation { restless: true, ..of };
        let looks = |of| Situation { looks: true, ..of };
        for (row, (situation, decision)) in [
            // Time stands still where nobody sees it, whatever enters.
            (PLAIN, Decision::Enter(None)),
            (brings(PLAIN), Decision::Enter(None)),
            (restless(PLAIN), Decision::Enter(None)),
            (timer(1_001, PLAIN), Decision::Enter(None)),
            // It is seen by a timer that is due, and by who looks.
            (timer(1_000, PLAIN), Decision::Enter(Some(100))),
            (timer(5, PLAIN), Decision::Enter(Some(100))),
            (looks(PLAIN), Decision::Enter(Some(100))),
            (looks(timer(1_001, PLAIN)), Decision::Enter(Some(100))),
            // A halted guest sleeps until something comes.
            (HALTED, Decision::Sleep(None)),
            (timer(1_250, HALTED), Decision::Sleep(Some(250))),
            (timer(1_000, HALTED), Decision::Enter(Some(100))),
            (brings(HALTED), Decision::Enter(Some(100))),
            (restless(HALTED), Decision::Enter(Some(100))),
            (brings(timer(1_250, HALTED)), Decision::Enter(Some(100))),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(situation.decide(), decision, "row {row}: {situation:?}");
        }
    }

    /// A host's clock that is behind the machine's (the machine was carried here) takes nothing back.
    #[test]
    fn guest_time_does_not_go_back() {
        let behind = Situation {
            seen: GuestTime::from_ns(2_000),
            looks: true,
            ..PLAIN
        };
        assert_eq!(behind.decide(), Decision::Enter(Some(0)));
    }

    #[test]
    fn only_a_halted_guest_sleeps_and_time_is_taken_only_where_it_is_seen() {
        for bits in 0..64_u32 {
            let is = |bit: u32| bits & 1 << bit != 0;
            let situation = Situation {
                timer: [None, Some(999), Some(1_001)][(bits / 16 % 3) as usize].map(GuestTime::from_ns),
                halted: is(0),
                looks: is(0) || is(1),
                brings: is(2),
                restless: is(3),
                ..PLAIN
            };
            match situation.decide() {
                Decision::Sleep(_) => assert!(situation.halted && !situation.brings && !situation.restless),
                Decision::Enter(step) => {
                    let is_seen = situation.looks || situation.timer == Some(GuestTime::from_ns(999));
                    assert_eq!(step.is_some(), is_seen, "{situation:?}");
                }
            }
        }
    }
}
