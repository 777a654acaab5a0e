//! Guest time from the host's monotonic clock.

use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// `CLOCK_BOOTTIME` in nanoseconds: goes on while the host is suspended, as a lease must.
pub fn boottime() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Maps host time to guest time: guest time goes on from where the machine stands, at the host's pace.
#[derive(Clone, Copy, Debug)]
pub struct GuestClock {
    guest: u64,
    host: u64,
}

impl GuestClock {
    /// Guest time is `guest` nanoseconds now.
    pub fn starting_at(guest: u64) -> Self {
        Self {
            guest,
            host: monotonic(),
        }
    }

    /// Guest time now.
    pub fn now(&self) -> u64 {
        self.guest + (monotonic() - self.host)
    }

    /// Host time (`CLOCK_MONOTONIC`) at which guest time will be `guest`.
    pub fn host_at(&self, guest: u64) -> u64 {
        self.host.saturating_add(guest.saturating_sub(self.guest))
    }
}
