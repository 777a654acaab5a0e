//! How far the backup's execution lags behind what it has.

use std::collections::VecDeque;

use super::Nanos;

/// Arrivals that are remembered; of those beyond, the lag counts from the last remembered one before them.
const REMEMBERED: usize = 1 << 16;

/// When the parts of the log came that are not verified yet.
#[derive(Debug, Default)]
pub(super) struct Lag {
    /// Position and time, oldest first.
    arrivals: VecDeque<(u64, Nanos)>,
}

impl Lag {
    /// The log came up to `position` at `now`.
    pub(super) fn received(&mut self, position: u64, now: Nanos) {
        if self.arrivals.len() < REMEMBERED && self.arrivals.back().is_none_or(|(last, _)| *last < position) {
            self.arrivals.push_back((position, now));
        }
    }

    /// It was verified up to `position`.
    pub(super) fn verified(&mut self, position: u64) {
        while self.arrivals.front().is_some_and(|(first, _)| *first <= position) {
            self.arrivals.pop_front();
        }
    }

    /// How long the oldest of what is not verified has been here.
    pub(super) fn at(&self, now: Nanos) -> Nanos {
        self.arrivals.front().map_or(0, |(_, came)| now.saturating_sub(*came))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_from_the_oldest() {
        let mut lag = Lag::default();
        assert_eq!(lag.at(100), 0);
        lag.received(3, 100);
        lag.received(5, 200);
        lag.received(5, 250);
        assert_eq!(lag.at(300), 200);
        lag.verified(2);
        assert_eq!(lag.at(300), 200);
        lag.verified(3);
        assert_eq!(lag.at(300), 100);
        lag.verified(5);
        assert_eq!(lag.at(300), 0);
    }

    #[test]
    fn is_bounded() {
        let mut lag = Lag::default();
        for position in 0..REMEMBERED as u64 + 10 {
            lag.received(position, position);
        }
        assert_eq!(lag.arrivals.len(), REMEMBERED);
    }
}
