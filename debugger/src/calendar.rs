//! The calendar of a recording: what a clock on the wall showed at a guest time.
//!
//! A log has two times of the calendar, both in whole seconds: what the machine's CMOS clock shows at guest time zero
//! (`rtc_base`), which the guest counts from, and what the recorder's host showed when the recording began (`created`). What
//! the host's calendar did after that is not in the log: guest time stands in for it.

use std::fmt;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use lockstep_proto::Identity;

const SECOND: i128 = 1_000_000_000;
/// Two calendars that are apart by so much, in nanoseconds, are one: both of a log's times are in whole seconds, and a machine
/// is made a moment before its recording begins.
const NEAR: u128 = 2 * SECOND as u128;

/// A time of the calendar: nanoseconds since 1970-01-01T00:00:00Z. A damaged log can have any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i128);

impl Moment {
    /// So many nanoseconds earlier.
    pub fn minus_ns(self, ns: u64) -> Self {
        Self(self.0 - i128::from(ns))
    }

    /// Nanoseconds since 1970-01-01T00:00:00Z, where 64 bits have room for them and it was not before.
    pub fn unix_ns(self) -> Option<u64> {
        u64::try_from(self.0).ok()
    }

    /// It, to the second before.
    pub fn to_second(self) -> String {
        Self(self.0.div_euclid(SECOND) * SECOND).to_string()
    }

    fn timestamp(self) -> Option<Timestamp> {
        Timestamp::from_nanosecond(self.0).ok()
    }

    /// In a time zone; none for what no calendar shows (the years from -9999 to 9999 are).
    pub fn in_zone(self, zone: &TimeZone) -> Option<Zoned> {
        Some(self.timestamp()?.to_zoned(zone.clone()))
    }

    /// RFC 3339 in UTC, for programs; none for what it cannot say.
    pub fn utc(self) -> Option<String> {
        let timestamp = self.timestamp()?;
        (0..=9999)
            .contains(&TimeZone::UTC.to_datetime(timestamp).year())
            .then(|| timestamp.to_string())
    }
}

impl From<Timestamp> for Moment {
    fn from(timestamp: Timestamp) -> Self {
        Self(timestamp.as_nanosecond())
    }
}

/// RFC 3339, with the offset of this host's time zone: what is shown can be typed.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(timestamp) = self.timestamp() else {
            return write!(f, "{} s after 1970", self.0 / SECOND);
        };
        let offset = TimeZone::system().to_offset(timestamp);
        if offset.is_zero() {
            write!(f, "{timestamp}")
        } else {
            write!(f, "{}", timestamp.display_with_offset(offset))
        }
    }
}

/// What the calendar showed at the guest times of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    /// At guest time zero.
    zero: Moment,
    /// By the guest's own clock.
    guest_zero: Moment,
}

impl Calendar {
    /// Of a recording that begins at this guest time. Where the host's calendar and the guest's clock agreed then, the guest's
    /// clock is the calendar: its logs have the same times, to the nanosecond. Where they did not, the host's is, and
    /// goes on from that of `before`, the recording that this one continues, if it agrees with that one.
    pub fn of(identity: &Identity, start_ns: u64, before: Option<&Self>) -> Self {
        let rtc_base = identity.machine.as_ref().map_or(0, |machine| machine.rtc_base);
        let guest_zero = Moment(i128::from(rtc_base) * SECOND);
        let host_zero = Moment(i128::from(identity.created) * SECOND - i128::from(start_ns));
        let is_near = |zero: &Moment| zero.0.abs_diff(host_zero.0) <= NEAR;
        let known = [Some(guest_zero), before.map(|calendar| calendar.zero)];
        Self {
            zero: known.into_iter().flatten().find(is_near).unwrap_or(host_zero),
            guest_zero,
        }
    }

    /// What it showed at this guest time, in nanoseconds.
    pub fn at(&self, guest_ns: u64) -> Moment {
        Moment(self.zero.0 + i128::from(guest_ns))
    }

    /// The guest time, in nanoseconds, at which it showed this; none before the machine was made, and after it could be.
    pub fn guest_ns(&self, moment: Moment) -> Option<u64> {
        u64::try_from(moment.0 - self.zero.0).ok()
    }

    /// How far the guest's own clock was behind it, in nanoseconds (ahead: less than 0), where they did not agree.
    pub fn guest_behind_ns(&self) -> Option<i128> {
        let behind = self.zero.0 - self.guest_zero.0;
        (behind != 0).then_some(behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockstep_proto::MachineConfig;

    const START: u64 = 5_500_000_000;

    fn identity(rtc_base: i64, created: i64) -> Identity {
        Identity {
            created,
            machine: Some(MachineConfig {
                rtc_base,
                ..MachineConfig::default()
            }),
            ..Identity::default()
        }
    }

    fn moment(text: &str) -> Moment {
        text.parse::<Timestamp>().expect("a time").into()
    }

    #[test]
    fn the_guests_clock_is_the_calendar_where_the_host_agrees() {
        let base = 1_796_000_000;
        for created in [base + 4, base + 5, base + 7] {
            let calendar = Calendar::of(&identity(base, created), START, None);
            assert_eq!(calendar.at(0), Moment(i128::from(base) * SECOND));
            assert_eq!(calendar.guest_behind_ns(), None);
            assert_eq!(calendar.guest_ns(calendar.at(START + 7)), Some(START + 7));
            assert_eq!(calendar.guest_ns(calendar.at(0).minus_ns(1)), None);
        }
    }

    /// A machine from an old snapshot keeps the calendar of that time, and one that was frozen is behind.
    #[test]
    fn the_hosts_is_the_calendar_where_they_disagree() {
        let base = 1_796_000_000;
        let calendar = Calendar::of(&identity(base, base + 86_405), START, None);
        assert_eq!(calendar.at(START), Moment((i128::from(base) + 86_405) * SECOND));
        assert_eq!(calendar.guest_behind_ns(), Some(86_399_500_000_000));
        // The next part began 60 s later, and notes whole seconds: it goes on, with no step.
        for created in [86_464, 86_466] {
            let next = Calendar::of(&identity(base, base + created), START + 60_000_000_000, Some(&calendar));
            assert_eq!(next, calendar);
        }
        // The machine stood still for a minute: it does not.
        let next = Calendar::of(&identity(base, base + 86_525), START + 60_000_000_000, Some(&calendar));
        assert_eq!(next.at(0).0 - calendar.at(0).0, 60 * SECOND);
        // A minute later the guest's clock has been set right.
        let right = Calendar::of(&identity(base, base + 126), START + 120_000_000_000, Some(&next));
        assert_eq!(right.guest_behind_ns(), None);
    }

    #[test]
    fn no_time_that_a_log_can_have_is_a_panic() {
        for (rtc_base, created) in [(i64::MAX, i64::MIN), (i64::MIN, i64::MAX), (0, i64::MAX)] {
            let calendar = Calendar::of(&identity(rtc_base, created), u64::MAX, None);
            let shown = calendar.at(u64::MAX);
            assert!(shown.to_string().contains("after 1970") && shown.utc().is_none());
            assert!(calendar.guest_behind_ns().is_some());
            let _ = (
                calendar.guest_ns(shown.minus_ns(u64::MAX)),
                shown.in_zone(&TimeZone::UTC),
            );
        }
        let year_zero = moment("-000001-01-01T00:00:00Z");
        assert_eq!(year_zero.utc(), None);
        assert_eq!(
            moment("2026-11-28T15:03:20.5+01:00").utc().as_deref(),
            Some("2026-11-28T14:03:20.5Z")
        );
    }
}
