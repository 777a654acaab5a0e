//! The primary's heartbeats, and the lease that their answers give.

use std::collections::VecDeque;

use super::Timing;
use crate::quantity::SessionTime;

/// Heartbeats whose sending times are remembered; an answer to an older one gives no lease any more anyway.
const REMEMBERED: usize = 64;

/// Output may leave for a while after the *sending* of a heartbeat that was answered: the backup had it later than that,
/// and counts its deadline from then.
#[derive(Debug)]
pub(super) struct Lease {
    timing: Timing,
    /// Number and sending time of those not answered, oldest first.
    sent: VecDeque<(u64, SessionTime)>,
    number: u64,
    /// When the next one is due.
    next: SessionTime,
    /// When no output may leave any more; zero where there is no lease.
    until: SessionTime,
    /// Heartbeats that were not answered before the next one was sent.
    missed: u64,
}

impl Lease {
    pub(super) fn new(timing: Timing) -> Self {
        Self {
            timing,
            sent: VecDeque::new(),
            number: 0,
            next: SessionTime::ZERO,
            until: SessionTime::ZERO,
            missed: 0,
        }
    }

    /// Starts over with a new connection. Numbers go on, so that no answer fits two connections.
    pub(super) fn restart(&mut self, now: SessionTime) {
        self.sent.clear();
        self.next = now;
        self.until = SessionTime::ZERO;
    }

    /// Gives up what it has.
    pub(super) fn end(&mut self) {
        self.sent.clear();
        self.until = SessionTime::ZERO;
    }

    /// When the next heartbeat is due.
    pub(super) fn next(&self) -> SessionTime {
        self.next
    }

    /// The number of the heartbeat to be sent at `now`, if one is due.
    pub(super) fn beat(&mut self, now: SessionTime) -> Option<u64> {
        if now < self.next {
            return None;
        }
        self.next = now.plus_ns(self.timing.heartbeat_ns);
        // An answer forgets what it answers and all before it.
        if self.sent.back().is_some_and(|(last, _)| *last == self.number) {
            self.missed += 1;
        }
        self.number += 1;
        if self.sent.len() == REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back((self.number, now));
        Some(self.number)
    }

    /// The heartbeat of this number was answered. A number that was never sent gives nothing.
    pub(super) fn answered(&mut self, number: u64) {
        if let Some(at) = self.sent.iter().position(|(sent, _)| *sent == number) {
            let sent = self.sent[at].1;
            self.sent.drain(..=at);
            self.until = self.until.max(sent.plus_ns(self.timing.lease_ns()));
        }
    }

    /// Heartbeats that were not answered before the next one was sent, since the last call.
    pub(super) fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }

    /// Whether output may leave at `now`.
    pub(super) fn holds(&self, now: SessionTime) -> bool {
        now < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing {
        heartbeat_ns: 50_000_000,
        deadline_ns: 150_000_000,
    };

    fn at(ns: u64) -> SessionTime {
        SessionTime::from_ns(ns)
    }

    /// When a heartbeat of this number is sent, from 0 on.
    fn of_beat(number: u64) -> SessionTime {
        at(number * TIMING.heartbeat_ns)
    }

    #[test]
    fn counts_from_the_sending() {
        let mut lease = Lease::new(TIMING);
        lease.restart(at(1_000));
        assert_eq!(lease.beat(at(1_000)), Some(1));
        assert_eq!(lease.beat(at(2_000)), None);
        assert!(!lease.holds(at(2_000)));
        lease.answered(1);
        assert!(lease.holds(at(1_000 + TIMING.lease_ns() - 1)));
        assert!(!lease.holds(at(1_000 + TIMING.lease_ns())));
    }

    #[test]
    fn what_is_not_answered_before_the_next_is_missed() {
        let mut lease = Lease::new(TIMING);
        lease.restart(at(0));
        for beat in 0..4 {
            lease.beat(of_beat(beat));
            if beat != 1 {
                lease.answered(beat + 1);
            }
        }
        // One was; a late answer does not change that, nor does a connection that is new.
        lease.answered(2);
        assert_eq!((lease.take_missed(), lease.take_missed()), (1, 0));
        lease.beat(of_beat(4));
        lease.restart(of_beat(5));
        lease.beat(of_beat(5));
        assert_eq!(lease.take_missed(), 0);
    }

    #[test]
    fn an_older_answer_takes_nothing_back_and_an_invented_one_gives_nothing() {
        let mut lease = Lease::new(TIMING);
        lease.restart(at(0));
        for beat in 0..3 {
            assert_eq!(lease.beat(of_beat(beat)), Some(beat + 1));
        }
        lease.answered(u64::MAX);
        assert!(!lease.holds(at(0)));
        lease.answered(2);
        let until = TIMING.heartbeat_ns + TIMING.lease_ns();
        lease.answered(1);
        assert!(lease.holds(at(until - 1)) && !lease.holds(at(until)));
        lease.answered(3);
        assert!(lease.holds(at(until)));
    }

    #[test]
    fn an_answer_of_the_last_connection_gives_nothing() {
        let mut lease = Lease::new(TIMING);
        lease.restart(at(0));
        let number = lease.beat(at(0)).unwrap();
        lease.end();
        lease.restart(at(10));
        lease.beat(at(10));
        lease.answered(number);
        assert!(!lease.holds(at(11)));
    }

    #[test]
    fn forgets_the_oldest() {
        let mut lease = Lease::new(TIMING);
        lease.restart(at(0));
        for beat in 0..=REMEMBERED as u64 {
            lease.beat(of_beat(beat));
        }
        lease.answered(1);
        assert!(!lease.holds(at(0)));
        assert_eq!(lease.sent.len(), REMEMBERED);
    }
}
