//! How long things took: what the status and the metrics tell of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockstep_vmm::machine::StopKind;

/// Buckets for each doubling, as a power of two: a bucket's ends are an eighth apart at most.
const SPLIT: u32 = 3;
/// One for each nanosecond up to `1 << SPLIT`, and so many for each doubling after it.
const BUCKETS: usize = (65 - SPLIT as usize) << SPLIT;

/// A histogram of times, of a fixed size however many there are. One thread adds while others read: no lock and no
/// locked instruction is needed, so that it costs the vCPU thread next to nothing.
pub struct Times {
    counts: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            counts: std::array::from_fn(|_| AtomicU64::default()),
            sum_ns: AtomicU64::default(),
        }
    }
}

/// Adds to what this thread alone writes.
fn add(to: &AtomicU64, more: u64) {
    to.store(to.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

impl Times {
    /// Counts a time. By one thread only.
    pub fn add(&self, time: Duration) {
        self.add_ns(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The same in nanoseconds.
    pub fn add_ns(&self, ns: u64) {
        add(&self.counts[bucket(ns)], 1);
        add(&self.sum_ns, ns);
    }

    /// The sum of all times, in seconds.
    pub fn sum(&self) -> f64 {
        self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9
    }

    /// How many times were less than each of these powers of two of nanoseconds, and not less than the one before; the last
    /// is of all others.
    pub fn by_doubling<const N: usize>(&self, exponents: [u32; N]) -> ([u64; N], u64) {
        let (mut counts, mut others) = ([0; N], 0);
        for (index, count) in self.counts.iter().enumerate() {
            // Buckets end where doublings do.
            let place = exponents.iter().position(|exponent| last_of(index) < 1 << exponent);
            *place.map_or(&mut others, |place| &mut counts[place]) += count.load(Ordering::Relaxed);
        }
        (counts, others)
    }

    /// A time that `share` (0 to 1) of the times counted do not exceed; an eighth too long at most. `None`: there are none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
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

/// What stops the vCPU, as it is told apart in the metrics.
pub const EXIT_KINDS: [&str; 7] = ["port", "mmio", "msr", "trap", "halt", "shutdown", "forced"];

/// How long turns took, by what had stopped the vCPU.
#[derive(Default)]
pub struct Exits([Times; EXIT_KINDS.len()]);

impl Exits {
    /// Counts a turn. By one thread only.
    pub fn add_ns(&self, kind: StopKind, ns: u64) {
        let index = match kind {
            StopKind::Port { .. } => 0,
            StopKind::Mmio { .. } => 1,
            StopKind::Msr { .. } => 2,
            StopKind::Trap(_) => 3,
            StopKind::Halt => 4,
            StopKind::Shutdown => 5,
            StopKind::Forced => 6,
        };
        self.0[index].add_ns(ns);
    }

    /// Each kind with its times.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Times)> {
        EXIT_KINDS.into_iter().zip(&self.0)
    }
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
        let times = Times::default();
        assert_eq!(times.quantile(0.5), None);
        for ns in 1..=1000 {
            times.add(Duration::from_micros(ns));
        }
        let near = |share, us: u64| {
            let found = times.quantile(share).unwrap();
            let wanted = Duration::from_micros(us);
            assert!(found >= wanted && found <= wanted + wanted / 8, "{share}: {found:?}");
        };
        near(0.5, 500);
        near(0.99, 990);
        near(1.0, 1000);
        near(0.0, 1);
    }

    #[test]
    fn doublings_are_exact() {
        let times = Times::default();
        for ns in [0, 1023, 1024, 2047, 2048, 5000, u64::MAX / 4] {
            times.add_ns(ns);
        }
        assert_eq!(times.by_doubling([10, 11, 13]), ([2, 2, 2], 1));
    }

    #[test]
    fn turns_are_told_apart() {
        let exits = Exits::default();
        exits.add_ns(StopKind::Forced, 1_500_000_000);
        exits.add_ns(StopKind::Port { port: 1, write: true }, 1);
        let sums: Vec<_> = exits.iter().map(|(kind, times)| (kind, times.sum())).collect();
        assert_eq!((sums[0], sums[6]), (("port", 1e-9), ("forced", 1.5)));
    }
}
