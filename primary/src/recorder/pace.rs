//! How much a guest is held back so that its backup keeps up.

use std::time::Duration;

/// A backup may lag this far, in nanoseconds, before the guest is held back.
const FREE_LAG: u64 = 50_000_000;
/// The longest pause at a time, in nanoseconds: inputs wait meanwhile.
const LONGEST: u64 = 20_000_000;
/// The guest is given at least one part in this many of the time.
const LEAST_SHARE: u64 = 20;

/// Holds a guest back in proportion: the further the backup lags, the longer the pauses after what the guest ran.
#[derive(Debug, Default)]
pub struct Pace {
    /// Time that the guest ran since the last pause, in nanoseconds.
    ran: u64,
}

impl Pace {
    /// The guest ran for so many nanoseconds.
    pub fn ran(&mut self, ns: u64) {
        self.ran += ns;
    }

    /// How long the guest is to pause now that its backup lags so many nanoseconds.
    pub fn pause(&mut self, lag_ns: u64) -> Duration {
        let ran = std::mem::take(&mut self.ran);
        let beyond = lag_ns.saturating_sub(FREE_LAG);
        // As long as it ran for each FREE_LAG that the backup lags beyond the first.
        let pause = u128::from(ran) * u128::from(beyond) / u128::from(FREE_LAG);
        let most = u128::from(ran.saturating_mul(LEAST_SHARE - 1).min(LONGEST));
        Duration::from_nanos(pause.min(most) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn pause(ran: u64, lag: u64) -> u64 {
        let mut pace = Pace::default();
        pace.ran(ran);
        pace.pause(lag).as_nanos() as u64
    }

    #[test]
    fn grows_with_the_lag_from_nothing() {
        assert_eq!(pause(MS, 0), 0);
        assert_eq!(pause(MS, FREE_LAG), 0);
        assert_eq!(pause(MS, 2 * FREE_LAG), MS);
        assert_eq!(pause(MS, 3 * FREE_LAG), 2 * MS);
    }

    #[test]
    fn is_bounded() {
        assert_eq!(pause(MS, u64::MAX), 19 * MS);
        assert_eq!(pause(1000 * MS, u64::MAX), LONGEST);
        assert_eq!(pause(u64::MAX, u64::MAX), LONGEST);
    }

    #[test]
    fn counts_each_time_once() {
        let mut pace = Pace::default();
        pace.ran(MS);
        assert!(!pace.pause(2 * FREE_LAG).is_zero());
        assert!(pace.pause(2 * FREE_LAG).is_zero());
    }
}
