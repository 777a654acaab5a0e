//! The host's calendar, while the machine runs: whoever sets it (an NTP client that finds it wrong after the start) has guest
//! time follow, slewed, as on a new host.
//!
//! How far guest time is behind is looked at now and then. It changes by slewing, which is known, and else only where the
//! calendar was set or the host was suspended: clocks that are kept right otherwise change calendar and monotonic time alike.

use lockstep_proto::quantity::HostTime;

/// From one look to the next, in nanoseconds.
const EVERY: u64 = 10_000_000_000;
/// A calendar that has gone by so much, in nanoseconds, more or less than time did was set.
const SET: u64 = 100_000_000;

/// What is known of the calendar.
#[derive(Debug, Default)]
pub struct Calendar {
    /// When it is looked at next.
    next: HostTime,
    /// How far guest time was behind, in nanoseconds, what was being made good left aside: a machine boots with whole seconds.
    usual: Option<i64>,
}

impl Calendar {
    /// One that is never looked at.
    pub fn ignored() -> Self {
        Self {
            next: HostTime::from_ns(u64::MAX),
            usual: None,
        }
    }

    /// Whether it is time to look.
    pub fn is_due(&self, now: HostTime) -> bool {
        now >= self.next
    }

    /// Guest time is so far behind, of which so much is being made good. True: the calendar was set.
    pub fn look(&mut self, now: HostTime, behind: i64, slewing: i64) -> bool {
        self.next = now.plus_ns(EVERY);
        let still = behind.saturating_sub(slewing);
        still.abs_diff(*self.usual.get_or_insert(still)) >= SET
    }

    /// From now on this is what stays.
    pub fn settle(&mut self, still: i64) {
        self.usual = Some(still);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn at(ns: u64) -> HostTime {
        HostTime::from_ns(ns)
    }

    #[test]
    fn a_calendar_that_is_set_is_found_and_one_that_goes_its_way_is_not() {
        let mut calendar = Calendar::default();
        assert!(calendar.is_due(at(5)));
        // A machine that was booted in the middle of a second.
        assert!(!calendar.look(at(5), 600_000_000, 0));
        assert!(!calendar.is_due(at(5 + EVERY - 1)) && calendar.is_due(at(5 + EVERY)));
        assert!(!calendar.look(at(6), 690_000_000, 0));
        // Set, either way, and told until somebody has done something about it.
        assert!(calendar.look(at(7), 600_000_000 + 7200 * SECOND, 0));
        assert!(calendar.look(at(8), 600_000_000 - 40 * SECOND, 0));
        assert!(calendar.look(at(9), 600_000_000 - 40 * SECOND, 0));
        // It is being made good: what is left changes as it should.
        calendar.settle(0);
        assert!(!calendar.look(at(10), -39 * SECOND, -39 * SECOND));
        assert!(!calendar.look(at(11), -20 * SECOND, -20 * SECOND + 50_000_000));
        // Set once more meanwhile.
        assert!(calendar.look(at(12), 30 * SECOND, -20 * SECOND));
        // Too far to be made good: that is told once.
        calendar.settle(i64::MAX);
        assert!(!calendar.look(at(13), i64::MAX, 0));
        assert!(calendar.look(at(14), i64::MIN, 0));
    }

    #[test]
    fn a_calendar_that_is_ignored_is_never_looked_at() {
        assert!(!Calendar::ignored().is_due(at(u64::MAX - 1)));
        assert!(Calendar::default().is_due(at(0)));
    }
}
