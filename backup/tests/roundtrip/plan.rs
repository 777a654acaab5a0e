//! What one run is like: every seed has its own mixture.

use lockstep_node::policy::Policy;

use super::rng::Rng;

pub const MICRO: u64 = 1_000;
pub const MILLI: u64 = 1_000_000;

/// Where the log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To a recording.
    Kept,
    /// To a backup.
    Linked,
    /// To both.
    Both,
}

impl Way {
    pub fn is_kept(self) -> bool {
        self != Self::Linked
    }

    pub fn is_linked(self) -> bool {
        self != Self::Kept
    }
}

#[derive(Debug)]
pub struct Plan {
    pub way: Way,
    pub policy: Policy,
    /// Host time of an instruction, and the most that a look at the clock takes.
    pub instruction: u64,
    pub look: u64,
    /// Of a million instructions, before how many a kick comes for no reason.
    pub kicks: u64,
    /// From one to the next.
    pub frames: (u64, u64),
    pub typed: (u64, u64),
    pub lags: (u64, u64),
    pub disk: (u64, u64),
    /// Reads that fail, of a thousand.
    pub failures: u64,
    pub length: u64,
}

impl Plan {
    pub fn new(rng: &mut Rng) -> Self {
        let grace = rng.pick(&[10 * MICRO, 100 * MICRO, MILLI]);
        let policy = Policy {
            grace,
            patience: grace * rng.pick(&[1, 2, 5]),
            epoch: rng.pick(&[None, Some(100 * MICRO), Some(MILLI), Some(5 * MILLI)]),
            epoch_detail: rng.chance(500),
            beat: rng.pick(&[None, None, Some(100 * MICRO), Some(MILLI)]),
        };
        Self {
            way: rng.pick(&[Way::Kept, Way::Linked, Way::Both]),
            policy,
            instruction: rng.pick(&[100, 300, 1_000]),
            look: rng.pick(&[20, 300, 5_000]),
            kicks: rng.pick(&[0, 200, 20_000]),
            frames: (MICRO, rng.pick(&[200 * MICRO, 2 * MILLI, 20 * MILLI])),
            typed: (MICRO, rng.pick(&[200 * MICRO, 2 * MILLI, 20 * MILLI])),
            lags: (MILLI, rng.pick(&[2 * MILLI, 10 * MILLI, 40 * MILLI])),
            disk: (MICRO, rng.pick(&[20 * MICRO, 500 * MICRO, 4 * MILLI])),
            failures: rng.pick(&[0, 100, 400]),
            length: rng.between((2 * MILLI, 15 * MILLI)),
        }
    }
}
