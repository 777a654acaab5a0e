//! Guest time from the host's monotonic clock.
//!
//! Guest time never steps. Where it is off the host's calendar (the machine has changed hosts, or stood still, or the calendar
//! was set), it goes a little faster or slower until it is not: it is *slewed*.

use std::time::{Duration, SystemTime};

use lockstep_proto::quantity::{GuestTime, HostTime, SessionTime};
use rustix::time::{ClockId, clock_gettime};

/// Guest time gains or loses one nanosecond in so many while it is slewed: 500 ppm, what NTP clients and kernels (adjtime)
/// take for the most that programs do not mind.
const SLEW: u64 = 2000;
/// A calendar that is further off, in nanoseconds, is set wrong: nobody is helped by slewing for weeks. NTP clients give
/// up here too.
pub const INSANE: i64 = 1_000_000_000_000;
/// Two clocks that are not read at one moment, within so many nanoseconds, are not compared.
pub const ONE_MOMENT: u64 = 10_000_000;

/// Host time: what `CLOCK_MONOTONIC` shows.
pub fn monotonic() -> HostTime {
    HostTime::from_ns(now_ns(ClockId::Monotonic))
}

/// Session time: what `CLOCK_BOOTTIME` shows. It goes on while the host is suspended, as a lease must.
pub fn boottime() -> SessionTime {
    SessionTime::from_ns(now_ns(ClockId::Boottime))
}

fn now_ns(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// `CLOCK_REALTIME` since 1970-01-01; zero on a host whose calendar is set to before that.
pub fn realtime() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

/// Nanoseconds from the calendar's `base` (seconds since 1970-01-01) to what the host's shows, `realtime`.
pub fn calendar_since(realtime: Duration, base: i64) -> i128 {
    realtime.as_nanos() as i128 - i128::from(base) * 1_000_000_000
}

/// Maps host time to guest time: guest time goes on from where the machine stands, at the host's pace, or slewed.
#[derive(Clone, Copy, Debug)]
pub struct GuestClock {
    guest: GuestTime,
    host: HostTime,
    /// Nanoseconds to gain (or to lose) by slewing, from there on.
    gap: i64,
}

impl GuestClock {
    /// Guest time is `guest` at this host time.
    pub fn starting_at(guest: GuestTime, host: HostTime) -> Self {
        Self { guest, host, gap: 0 }
    }

    /// How far guest time is behind `goal` at this host time, in nanoseconds.
    pub fn behind_at(&self, host: HostTime, goal: i128) -> i64 {
        (goal - i128::from(self.at(host).ns())).clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }

    /// Slews from this host time on, where guest time should be `goal`, until it is. Returns how far it is behind (or ahead)
    /// in nanoseconds; more than [`INSANE`] stays as it is.
    pub fn slew_at(&mut self, host: HostTime, goal: i128) -> i64 {
        let guest = self.at(host);
        let gap = self.behind_at(host, goal);
        let sane = gap.unsigned_abs() <= INSANE as u64;
        *self = Self {
            guest,
            host,
            gap: if sane { gap } else { 0 },
        };
        gap
    }

    /// Guest time at this host time, which is not before the last call's.
    pub fn at(&self, host: HostTime) -> GuestTime {
        let passed = host.ns_since(self.host);
        let slewed = self.slewed_in(passed);
        self.guest
            .plus_ns(if self.gap < 0 { passed - slewed } else { passed + slewed })
    }

    fn slewed_in(&self, passed: u64) -> u64 {
        (passed / SLEW).min(self.gap.unsigned_abs())
    }

    /// What is left of the gap at this host time.
    pub fn left_at(&self, host: HostTime) -> i64 {
        let slewed = self.slewed_in(host.ns_since(self.host)) as i64;
        if self.gap < 0 {
            self.gap + slewed
        } else {
            self.gap - slewed
        }
    }

    /// Host time at which guest time will be `guest`.
    pub fn host_at(&self, guest: GuestTime) -> HostTime {
        let ahead = guest.ns_since(self.guest);
        let gap = self.gap.unsigned_abs();
        let passed = if self.gap < 0 {
            // Guest time loses: it takes longer, by one in so many, or by all of the gap.
            ahead.saturating_add((ahead / (SLEW - 1)).saturating_add(1).min(gap))
        } else {
            ahead - (ahead / (SLEW + 1)).min(gap)
        };
        self.host.plus_ns(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn host(ns: u64) -> HostTime {
        HostTime::from_ns(ns)
    }

    fn guest(ns: u64) -> GuestTime {
        GuestTime::from_ns(ns)
    }

    fn clock(gap: i64) -> GuestClock {
        GuestClock {
            guest: guest(5 * SECOND),
            host: host(70 * SECOND),
            gap,
        }
    }

    #[test]
    fn a_clock_that_is_right_keeps_the_hosts_pace() {
        assert_eq!(clock(0).at(host(80 * SECOND)), guest(15 * SECOND));
        assert_eq!(clock(0).host_at(guest(15 * SECOND)), host(80 * SECOND));
    }

    #[test]
    fn a_clock_that_is_behind_gains_500_ppm_until_it_is_right() {
        let mut clock = clock(0);
        // A millisecond behind: two seconds.
        let gap = clock.slew_at(host(70 * SECOND), i128::from(5 * SECOND + 1_000_000));
        assert_eq!(gap, 1_000_000);
        assert_eq!(clock.at(host(71 * SECOND)), guest(6 * SECOND + 500_000));
        assert_eq!(clock.at(host(72 * SECOND)), guest(7 * SECOND + 1_000_000));
        assert_eq!(clock.at(host(99 * SECOND)), guest(34 * SECOND + 1_000_000));
    }

    #[test]
    fn a_clock_that_is_ahead_loses_500_ppm_until_it_is_right() {
        let mut clock = clock(0);
        assert_eq!(
            clock.slew_at(host(70 * SECOND), i128::from(5 * SECOND - 1_000_000)),
            -1_000_000
        );
        assert_eq!(clock.at(host(71 * SECOND)), guest(6 * SECOND - 500_000));
        assert_eq!(clock.at(host(99 * SECOND)), guest(34 * SECOND - 1_000_000));
    }

    #[test]
    fn a_gap_that_is_new_takes_the_place_of_what_was_left_and_nothing_steps() {
        let mut clock = clock(1_000_000);
        let before = clock.at(host(71 * SECOND));
        assert_eq!(clock.slew_at(host(71 * SECOND), i128::from(before.ns())), 0);
        assert_eq!(clock.at(host(71 * SECOND)), before);
        assert_eq!(clock.at(host(72 * SECOND)), before.plus_ns(SECOND));
    }

    /// What is left of a gap and how far the clock is behind are the same, as long as nobody sets the calendar.
    #[test]
    fn what_is_left_is_what_it_is_behind() {
        for gap in [40 * SECOND as i64, -40 * SECOND as i64, 0] {
            let clock = clock(gap);
            for passed in [0, SECOND, 1000 * SECOND, 100_000 * SECOND] {
                let goal = i128::from(5 * SECOND + passed) + i128::from(gap);
                let host = host(70 * SECOND + passed);
                assert_eq!(clock.behind_at(host, goal), clock.left_at(host));
                assert_eq!(clock.behind_at(host, goal + 7), clock.left_at(host) + 7);
            }
        }
    }

    #[test]
    fn a_calendar_that_is_set_wrong_is_left_alone() {
        for days in [-1, 1] {
            let mut clock = clock(0);
            let gap = clock.slew_at(
                host(70 * SECOND),
                i128::from(5 * SECOND) + days * 86_400 * i128::from(SECOND),
            );
            assert_eq!(i128::from(gap), days * 86_400 * i128::from(SECOND));
            assert_eq!(clock.at(host(80 * SECOND)), guest(15 * SECOND));
        }
        assert_eq!(clock(0).slew_at(host(70 * SECOND), -(1 << 100)), i64::MIN);
    }

    proptest! {
        #[test]
        fn guest_time_never_goes_back_and_a_timer_is_never_early_nor_late(
            gap in -INSANE..INSANE,
            first in 0..1_u64 << 52,
            more in 0..1_u64 << 40,
        ) {
            let clock = clock(gap);
            let (one, other) = (clock.at(clock.host.plus_ns(first)), clock.at(clock.host.plus_ns(first + more)));
            prop_assert!(one <= other);
            let passed = other.ns_since(one);
            prop_assert!(passed >= more - more / SLEW - 1 && passed <= more + more / SLEW + 1);
            let due = clock.host_at(one);
            prop_assert!(clock.at(due) >= one);
            prop_assert!(clock.at(host(due.ns().saturating_sub(3)).max(clock.host)) <= one);
        }
    }
}
