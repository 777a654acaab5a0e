//! How far the backup's execution lags behind what it has.

use std::collections::VecDeque;

use crate::quantity::{LogPosition, SessionTime};

/// Arrivals that are remembered; of those beyond, the lag counts from the last remembered one before them.
const REMEMBERED: usize = 1 << 16;

/// When the parts of the log came that are not verified yet.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// Position and time, oldest first.
    arrivals: VecDeque<(LogPosition, SessionTime)>,
}

impl Lag {
    /// The log came up to `position` at `now`.
    pub(super) fn received(&mut self, position: LogPosition, now: SessionTime) {
        if self.arrivals.len() < REMEMBERED && self.arrivals.back().is_none_or(|(last, _)| *last < position) {
            self.arrivals.push_back((position, now));
        }
    }

    /// It was verified up to `position`.
    pub(super) fn verified(&mut self, position: LogPosition) {
        while self.arrivals.front().is_some_and(|(first, _)| *first <= position) {
            self.arrivals.pop_front();
        }
    }

    /// How long the oldest of what is not verified has been here, in nanoseconds.
    pub(super) fn ns_at(&self, now: SessionTime) -> u64 {
        self.arrivals.front().map_or(0, |(_, came)| now.ns_since(*came))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: u64) -> LogPosition {
        LogPosition::new(position)
    }

    fn time(ns: u64) -> SessionTime {
        SessionTime::from_ns(ns)
    }

    #[test]
    fn counts_from_the_oldest() {
        let mut lag = Lag::default();
        assert_eq!(lag.ns_at(time(100)), 0);
        lag.received(at(3), time(100));
        lag.received(at(5), time(200));
        lag.received(at(5), time(250));
        assert_eq!(lag.ns_at(time(300)), 200);
        lag.verified(at(2));
        assert_eq!(lag.ns_at(time(300)), 200);
        lag.verified(at(3));
        assert_eq!(lag.ns_at(time(300)), 100);
        lag.verified(at(5));
        assert_eq!(lag.ns_at(time(300)), 0);
    }

    #[test]
    fn is_bounded() {
        let mut lag = Lag::default();
        for position in 0..REMEMBERED as u64 + 10 {
            lag.received(at(position), time(position));
        }
        assert_eq!(lag.arrivals.len(), REMEMBERED);
    }
}
