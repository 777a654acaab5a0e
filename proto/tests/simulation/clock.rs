//! A node's own clock: it starts anywhere, and runs a little too fast or too slow.

use lockstep_proto::quantity::SessionTime;

use super::plan::SECOND;

pub struct Clock {
    start: u64,
    drift: i64,
}

impl Clock {
    pub fn new(start: u64, drift: i64) -> Self {
        Self { start, drift }
    }

    /// What it shows at `now`, by the world's time.
    pub fn local(&self, now: u64) -> SessionTime {
        let gained = i128::from(now) * i128::from(self.drift) / i128::from(SECOND);
        SessionTime::from_ns((i128::from(self.start) + i128::from(now) + gained) as u64)
    }

    /// How long it is from `now` until the clock shows `local`, at least.
    pub fn until(&self, now: u64, local: SessionTime) -> u64 {
        let left = i128::from(local.ns_since(self.local(now)));
        (left * i128::from(SECOND) / (i128::from(SECOND) + i128::from(self.drift)) + 1) as u64
    }
}
