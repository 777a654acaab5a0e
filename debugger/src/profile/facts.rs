//! What a profile is of, in numbers.

use super::stacks::Weight;

const SECOND: u128 = 1_000_000_000;

/// Sums of guest time, in nanoseconds: `idle_ns`, `carried_ns` and `replayed_ns` are all that lies between the ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Guest time where the profile begins.
    pub from_ns: u64,
    /// Guest time where it ends.
    pub to_ns: u64,
    /// Ticks in a second.
    pub rate: u32,
    /// The guest waited in HLT.
    pub idle_ns: u64,
    /// Slices that deltas carried.
    pub carried_ns: u64,
    /// Those of them that began in another task than they ended in.
    pub switched_ns: u64,
    /// What was executed here.
    pub replayed_ns: u64,
    /// Ticks while the guest waited in HLT.
    pub idle: u64,
    /// Samples of tasks that were not asked for.
    pub others: Weight,
    /// What a clock on the wall showed where the profile begins, in nanoseconds since 1970.
    pub unix_ns: Option<u64>,
}

impl Facts {
    /// Nanoseconds between two ticks.
    pub fn period_ns(&self) -> u64 {
        (SECOND / u128::from(self.rate.max(1))) as u64
    }

    /// The guest time that samples stand for, in nanoseconds.
    pub fn time_ns(&self, weight: Weight) -> u64 {
        let ns = u128::from(weight.samples) * SECOND / u128::from(self.rate.max(1));
        u64::try_from(ns).unwrap_or(u64::MAX)
    }

    /// From the beginning to this tick of them all, in nanoseconds; the first is one period after the beginning.
    pub fn tick_ns(&self, tick: u64) -> u64 {
        self.time_ns(Weight {
            samples: tick,
            carried: 0,
        })
    }

    /// From the beginning to the end.
    pub fn span_ns(&self) -> u64 {
        self.to_ns.saturating_sub(self.from_ns)
    }

    /// What of the time between the ends this is, in percent.
    pub fn percent(&self, ns: u64) -> f64 {
        100.0 * ns as f64 / self.span_ns().max(1) as f64
    }
}
