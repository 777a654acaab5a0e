//! Random kicks: stops the vCPU at arbitrary moments, to show that what it executes does not depend on them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep_vmm::sys::kick::KickHandle;

use crate::sandbox::{self, Kind};

/// A thread that kicks.
pub struct Kicker {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Kicker {
    /// Kicks at random intervals, on average `per_second` times a second.
    pub fn start(handle: KickHandle, per_second: u32) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicU64::new(0));
        let (end, kicks) = (stop.clone(), count.clone());
        let thread = sandbox::spawn(Kind::Waits, "kicks", move || {
            // Any generator will do (xorshift64): the moments are meant to be arbitrary.
            let mut state = 0x9e37_79b9_7f4a_7c15_u64;
            let mean = 1_000_000_000 / u64::from(per_second.max(1));
            while !end.load(Ordering::Relaxed) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                std::thread::sleep(Duration::from_nanos(state % (2 * mean)));
                handle.kick();
                kicks.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        Ok(Self { stop, count, thread })
    }

    /// Ends it and tells how many kicks there were.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        // The thread has no way to panic.
        let _ = self.thread.join();
        self.count.load(Ordering::Relaxed)
    }
}
