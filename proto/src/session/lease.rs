//! The primary's heartbeats, and the lease that their answers give.

use std::collections::VecDeque;

use super::{Nanos, Timing};

/// Heartbeats whose sending times are remembered; an answer to an older one gives no lease any more anyway.
const REMEMBERED: usize = 64;

/// Output may leave for a while after the *sending* of a heartbeat that was answered: the backup had it later than that,
/// and counts its deadline from then.
#[derive(Debug)]
pub(super) struct Lease {
    timing: Timing,
    /// Number and sending time of those not answered, oldest first.
    sent: VecDeque<(u64, Nanos)>,
    number: u64,
    next: Nanos,
    until: Nanos,
    /// Heartbeats that were not answered before the next one was sent.
    missed: u64,
}

impl Lease {
    pub(super) fn new(timing: Timing) -> Self {
        Self {
            timing,
            sent: VecDeque::new(),
            number: 0,
            next: 0,
            until: 0,
            missed: 0,
        }
    }

    /// Starts over with a new connection. Numbers go on, so that no answer fits two connections.
    pub(super) fn restart(&mut self, now: Nanos) {
        self.sent.clear();
        self.next = now;
        self.until = 0;
    }

    /// Gives up what it has.
    pub(super) fn end(&mut self) {
        self.sent.clear();
        self.until = 0;
    }

    /// When the next heartbeat is due.
    pub(super) fn next(&self) -> Nanos {
        self.next
    }

    /// The number of the heartbeat to be sent at `now`, if one is due.
    pub(super) fn beat(&mut self, now: Nanos) -> Option<u64> {
        if now < self.next {
            return None;
        }
        self.next = now.saturating_add(self.timing.heartbeat);
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
            self.until = self.until.max(sent.saturating_add(self.timing.lease()));
        }
    }

    /// Heartbeats that were not answered before the next one was sent, since the last call.
    pub(super) fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }

    /// Whether output may leave at `now`.
    pub(super) fn holds(&self, now: Nanos) -> bool {
        now < self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing {
        heartbeat: 50_000_000,
        deadline: 150_000_000,
    };

    #[test]
    fn counts_from_the_sending() {
        let mut lease = Lease::new(TIMING);
        lease.restart(1_000);
        assert_eq!(lease.beat(1_000), Some(1));
        assert_eq!(lease.beat(2_000), None);
        assert!(!lease.holds(2_000));
        lease.answered(1);
        assert!(lease.holds(1_000 + TIMING.lease() - 1));
        assert!(!lease.holds(1_000 + TIMING.lease()));
    }

    #[test]
    fn what_is_not_answered_before_the_next_is_missed() {
        let mut lease = Lease::new(TIMING);
        lease.restart(0);
        for beat in 0..4 {
            lease.beat(beat * TIMING.heartbeat);
            if beat != 1 {
                lease.answered(beat + 1);
            }
        }
        // One was; a late answer does not change that, nor does a connection that is new.
        lease.answered(2);
        assert_eq!((lease.take_missed(), lease.take_missed()), (1, 0));
        lease.beat(4 * TIMING.heartbeat);
        lease.restart(5 * TIMING.heartbeat);
        lease.beat(5 * TIMING.heartbeat);
        assert_eq!(lease.take_missed(), 0);
    }

    #[test]
    fn an_older_answer_takes_nothing_back_and_an_invented_one_gives_nothing() {
        let mut lease = Lease::new(TIMING);
        lease.restart(0);
        for beat in 0..3 {
            assert_eq!(lease.beat(beat * TIMING.heartbeat), Some(beat + 1));
        }
        lease.answered(u64::MAX);
        assert!(!lease.holds(0));
        lease.answered(2);
        let until = TIMING.heartbeat + TIMING.lease();
        lease.answered(1);
        assert!(lease.holds(until - 1) && !lease.holds(until));
        lease.answered(3);
        assert!(lease.holds(until));
    }

    #[test]
    fn an_answer_of_the_last_connection_gives_nothing() {
        let mut lease = Lease::new(TIMING);
        lease.restart(0);
        let number = lease.beat(0).unwrap();
        lease.end();
        lease.restart(10);
        lease.beat(10);
        lease.answered(number);
        assert!(!lease.holds(11));
    }

    #[test]
    fn forgets_the_oldest() {
        let mut lease = Lease::new(TIMING);
        lease.restart(0);
        for beat in 0..=REMEMBERED as u64 {
            lease.beat(beat * TIMING.heartbeat);
        }
        lease.answered(1);
        assert!(!lease.holds(0));
        assert_eq!(lease.sent.len(), REMEMBERED);
    }
}
