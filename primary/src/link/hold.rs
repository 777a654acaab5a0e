//! How long outputs are held back for the backup.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockstep_vmm::devices::Effect;

/// What one turn gave the outside world, on its way through the gate.
pub struct Held {
    /// When the guest made it.
    pub since: Instant,
    /// What it is.
    pub effects: Vec<Effect>,
}

/// Buckets for each doubling, as a power of two: a bucket's ends are an eighth apart at most.
const SPLIT: u32 = 3;
/// One for each nanosecond up to `1 << SPLIT`, and so many for each doubling after it.
const BUCKETS: usize = (65 - SPLIT as usize) << SPLIT;

/// A histogram of times, of a fixed size however many there are. One thread adds while others read.
pub struct Holds([AtomicU64; BUCKETS]);

impl Default for Holds {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::default()))
    }
}

impl Holds {
    /// Counts a time.
    pub fn add(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0[bucket(ns)].fetch_add(1, Ordering::Relaxed);
    }

    /// A time that `share` (0 to 1) of the times counted do not exceed; an eighth too long at most. `None`: there are none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let counts: Vec<u64> = self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let all: u64 = counts.iter().sum();
        let wanted = ((all as f64 * share).ceil() as u64).clamp(1, all.max(1));
        let mut sum = 0;
        let index = counts.iter().position(|count| {
            sum += count;
            sum >= wanted
        });
        index.map(|index| Duration::from_nanos(last_of(index)))
    }
}

/// The bucket of a number.
fn bucket(ns: u64) -> usize {
    let doubling = ns.checked_ilog2().unwrap_or(0);
    if doubling < SPLIT {
        return ns as usize;
    }
    let shift = doubling - SPLIT;
    // The leading one is what separates this doubling's buckets from those before.
    ((shift as usize) << SPLIT) + (ns >> shift) as usize
}

/// The greatest number of a bucket.
fn last_of(index: usize) -> u64 {
    let shift = (index >> SPLIT).saturating_sub(1) as u32;
    let leading = (index - ((shift as usize) << SPLIT)) as u64;
    (leading << shift) | ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_adjacent_and_in_order() {
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
        assert_eq!(last_of(BUCKETS - 1), u64::MAX);
        for index in 0..BUCKETS - 1 {
            let last = last_of(index);
            assert_eq!((bucket(last), bucket(last + 1)), (index, index + 1));
        }
    }

    #[test]
    fn a_bucket_is_an_eighth_wide_at_most() {
        for ns in [9, 100, 12_345, 1_000_000, 987_654_321] {
            let last = last_of(bucket(ns));
            assert!(last >= ns && last - ns <= ns / 8, "{ns}: {last}");
        }
    }

    #[test]
    fn tells_what_most_do_not_exceed() {
        let holds = Holds::default();
        assert_eq!(holds.quantile(0.5), None);
        for ns in 1..=1000 {
            holds.add(Duration::from_micros(ns));
        }
        let near = |share, us: u64| {
            let found = holds.quantile(share).unwrap();
            let wanted = Duration::from_micros(us);
            assert!(found >= wanted && found <= wanted + wanted / 8, "{share}: {found:?}");
        };
        near(0.5, 500);
        near(0.99, 990);
        near(1.0, 1000);
        near(0.0, 1);
    }
}
