//! When a sample is taken, and what time it stands for.
//!
//! Guest time is known where the log has samples of the clock; a *stretch* lies between two of them. In a stretch the natural
//! stops are taken for evenly spaced, and what a delta carried lies at its end and has the length that the log tells. Ticks
//! come at the rate that was asked for. All of it follows from the log: it is the same each time.

use lockstep_proto::quantity::StopNumber;

const SECOND: u128 = 1_000_000_000;

/// Ticks at a rate, from a guest time on.
#[derive(Clone, Debug)]
pub struct Ticks {
    from_ns: u64,
    /// In a second.
    rate: u32,
    /// Those that were taken.
    taken: u64,
}

impl Ticks {
    /// The first one comes one period after `from_ns`.
    pub fn from(from_ns: u64, rate: u32) -> Self {
        Self {
            from_ns,
            rate,
            taken: 0,
        }
    }

    /// How many were taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Takes those up to and including `ns`, and tells how many they are.
    pub fn take(&mut self, ns: u64) -> u64 {
        let Some(since) = ns.checked_sub(self.from_ns) else {
            return 0;
        };
        let all = u64::try_from(u128::from(since) * u128::from(self.rate) / SECOND).unwrap_or(u64::MAX);
        let more = all.saturating_sub(self.taken);
        self.taken += more;
        more
    }
}

/// What lies between two samples of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The natural stop where it begins, or the one before.
    pub from_stop: StopNumber,
    /// Guest time there, in nanoseconds.
    pub from_ns: u64,
    /// The natural stop where it ends, or the one before.
    pub to_stop: StopNumber,
    /// Guest time there, in nanoseconds.
    pub to_ns: u64,
    /// It ends with a slice that a delta carried, which took so many nanoseconds.
    pub carried: Option<u64>,
}

impl Stretch {
    /// Guest time where what a delta carried begins; without one, where the stretch ends.
    pub fn carried_from(&self) -> u64 {
        match self.carried {
            // Nothing but the delta is there to have taken the time.
            Some(_) if self.from_stop >= self.to_stop => self.from_ns,
            Some(ns) => self.to_ns.saturating_sub(ns).max(self.from_ns),
            None => self.to_ns,
        }
    }

    /// Guest time at a natural stop in it.
    pub fn time_at(&self, stop: StopNumber) -> u64 {
        let end = self.carried_from();
        if stop >= self.to_stop {
            return end;
        }
        if stop <= self.from_stop {
            return self.from_ns;
        }
        let (done, all) = (stop.since(self.from_stop), self.to_stop.since(self.from_stop));
        let part = u128::from(end - self.from_ns) * u128::from(done) / u128::from(all.max(1));
        // Less than the whole stretch.
        self.from_ns + part as u64
    }
}

/// What of `from..to` lies between `begin` and `end`.
pub fn overlap(from: u64, to: u64, begin: u64, end: u64) -> u64 {
    to.min(end).saturating_sub(from.max(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(stops: (u64, u64), times: (u64, u64), carried: Option<u64>) -> Stretch {
        Stretch {
            from_stop: StopNumber::new(stops.0),
            from_ns: times.0,
            to_stop: StopNumber::new(stops.1),
            to_ns: times.1,
            carried,
        }
    }

    #[test]
    fn ticks_come_at_their_rate_however_time_moves() {
        for rate in [1, 7, 99, 999, 1000, 1_000_000] {
            let mut small = Ticks::from(5, rate);
            let mut steps = 0;
            let mut at = 5u64;
            for step in (0u64..).map(|n| 1 + n * n * 7919 % 3_000_000) {
                if at >= 3_000_000_005 {
                    break;
                }
                at = (at + step).min(3_000_000_005);
                steps += small.take(at);
            }
            assert_eq!(steps, 3 * u64::from(rate));
            assert_eq!(Ticks::from(5, rate).take(3_000_000_005), steps, "in one go");
        }
        let mut ticks = Ticks::from(100, 1000);
        assert_eq!(ticks.take(99), 0, "before the beginning");
        assert_eq!(ticks.take(1_000_099), 0, "a nanosecond before the first");
        assert_eq!(ticks.take(1_000_100), 1);
        assert_eq!(ticks.take(1_000_100), 0, "each one once");
        assert_eq!(ticks.take(500), 0, "time that goes back");
        assert!(Ticks::from(0, 1_000_000).take(u64::MAX) > 0);
    }

    #[test]
    fn stops_share_what_no_delta_carried() {
        let even = stretch((10, 14), (1000, 1400), None);
        let times = [9, 10, 11, 12, 13, 14, 15].map(|stop| even.time_at(StopNumber::new(stop)));
        assert_eq!(times, [1000, 1000, 1100, 1200, 1300, 1400, 1400]);
        let carried = stretch((10, 12), (1000, 1400), Some(300));
        assert_eq!(carried.carried_from(), 1100);
        assert_eq!(carried.time_at(StopNumber::new(11)), 1050);
        assert_eq!(carried.time_at(StopNumber::new(12)), 1100);
        // The host's time in a slice can be longer than guest time that passed, and there may be no stop at all.
        assert_eq!(stretch((10, 12), (1000, 1400), Some(900)).carried_from(), 1000);
        assert_eq!(stretch((10, 10), (1000, 1400), Some(100)).carried_from(), 1000);
    }

    #[test]
    fn of_a_stretch_that_reaches_beyond_the_ends_the_part_within_counts() {
        assert_eq!(overlap(10, 20, 0, 100), 10);
        assert_eq!(overlap(10, 20, 15, 100), 5);
        assert_eq!(overlap(10, 20, 0, 12), 2);
        assert_eq!(overlap(10, 20, 30, 40), 0);
    }
}
