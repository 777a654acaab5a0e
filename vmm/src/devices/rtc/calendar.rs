//! Dates and times of day from seconds since 1970 and back, in the proleptic Gregorian calendar, without leap seconds.
//!
//! Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms" (`days_from_civil`, `civil_from_days`).

/// A point in time as a clock on the wall shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DateTime {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
    /// 1 (Sunday) to 7.
    pub(super) weekday: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

pub(super) const DAY: i64 = 86_400;

impl DateTime {
    /// From seconds since 1970-01-01 00:00:00.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = if shifted_month < 10 {
            shifted_month + 3
        } else {
            shifted_month - 9
        };
        Self {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u8,
            weekday: ((days + 4).rem_euclid(7) + 1) as u8,
            hour: (time / 3_600) as u8,
            minute: (time / 60 % 60) as u8,
            second: (time % 60) as u8,
        }
    }

    /// Seconds since 1970-01-01 00:00:00. A day, hour, minute or second beyond its range overflows into what follows (as
    /// February 30 into March); the month is clamped.
    pub(super) fn seconds(&self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let year = self.year - i64::from(month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let shifted_month = if month > 2 { month - 3 } else { month + 9 };
        let day_of_year = (153 * shifted_month + 2) / 5 + i64::from(self.day.max(1)) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        days * DAY + i64::from(self.hour) * 3_600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        let shown = |seconds| {
            let t = DateTime::from_seconds(seconds);
            (t.year, t.month, t.day, t.weekday, t.hour, t.minute, t.second)
        };
        assert_eq!(shown(0), (1970, 1, 1, 5, 0, 0, 0));
        assert_eq!(shown(951_782_400), (2000, 2, 29, 3, 0, 0, 0));
        assert_eq!(shown(951_868_799), (2000, 2, 29, 3, 23, 59, 59));
        assert_eq!(shown(4_107_542_399), (2100, 2, 28, 1, 23, 59, 59));
        assert_eq!(shown(4_107_542_400), (2100, 3, 1, 2, 0, 0, 0));
        assert_eq!(shown(-1), (1969, 12, 31, 4, 23, 59, 59));
    }

    proptest! {
        #[test]
        fn there_and_back(seconds in -62_135_596_800_i64..400_000_000_000) {
            prop_assert_eq!(DateTime::from_seconds(seconds).seconds(), seconds);
        }
    }
}
