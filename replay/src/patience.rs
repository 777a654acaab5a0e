//! Slices that do not end: whoever replays looks up now and then, and gives one up that takes too long.
//!
//! A replica that went another way may loop for ever where the log has a stop. Nothing but a kick makes `KVM_RUN` return
//! then, and a kick changes nothing where all is well.

use std::time::Duration;

use lockstep_node::host::clock::monotonic;
use lockstep_proto::quantity::HostTime;
use lockstep_vmm::sys::kick::Alarm;

/// From one look to the next, in nanoseconds.
const LOOK: u64 = 1_000_000_000;
/// A slice that takes longer than this, in nanoseconds, has gone astray: ring-0 code runs at no less than a million
/// instructions a second on any host, and no recorded slice without a forced stop is that long.
const LONGEST: u64 = 120_000_000_000;

/// Knows how long a slice has taken.
pub struct Patience {
    timer: Box<dyn Alarm>,
    longest: u64,
    since: HostTime,
    /// When the timer fires.
    armed: HostTime,
}

impl Patience {
    /// With a timer of the thread that runs the machine.
    pub fn new(timer: impl Alarm + 'static) -> Self {
        Self {
            timer: Box::new(timer),
            longest: LONGEST,
            since: monotonic(),
            armed: HostTime::ZERO,
        }
    }

    /// The same, for slices that are known to be shorter.
    #[must_use]
    pub fn of(self, longest: Duration) -> Self {
        let longest = longest.as_nanos() as u64;
        Self { longest, ..self }
    }

    /// A slice begins.
    pub fn begin(&mut self) {
        self.since = monotonic();
        if self.since >= self.armed {
            self.arm(self.since);
        }
    }

    /// At a kick: whether the slice has taken too long.
    pub fn is_over(&mut self) -> bool {
        let now = monotonic();
        self.arm(now);
        now.ns_since(self.since) > self.longest
    }

    fn arm(&mut self, now: HostTime) {
        self.armed = now.plus_ns(LOOK.min(self.longest));
        self.timer.arm(self.armed);
    }
}
