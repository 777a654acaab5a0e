//! Whether the threads live that must not stand still: what a service's watchdog and the health page are told by.
//!
//! A thread beats wherever it comes by, and is nudged to do so where it sleeps or runs the guest: a guest that is halted, or
//! that makes no stop, is no dead thread. While a thread waits for the other node it beats too: how long that may last is the
//! session's business, but one that could not go on when the wait is over is not alive.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use lockstep_proto::quantity::HostTime;

use crate::host::clock::monotonic;

/// One thread's life.
#[derive(Clone, Default)]
pub struct Pulse(Arc<Inner>);

#[derive(Default)]
struct Inner {
    beats: AtomicU64,
    /// When the last one was, host time.
    last: AtomicU64,
    nudge: Mutex<Option<Nudge>>,
    ended: Condvar,
}

/// Makes the thread come by.
type Nudge = Box<dyn Fn() + Send>;

/// As long as it lives, the thread has to beat.
pub struct Alive(Pulse);

/// From one beat of a thread that waits to the next: several come within the shortest time after which one is missed.
pub const BEAT: Duration = Duration::from_millis(500);

/// Wakes a thread that polls.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Pulse {
    /// From now on the thread has to beat; `nudge` makes it.
    pub fn begin(&self, nudge: impl Fn() + Send + 'static) -> Alive {
        self.beat();
        *self.nudge() = Some(Box::new(nudge));
        Alive(self.clone())
    }

    /// The thread lives.
    pub fn beat(&self) {
        self.0.last.store(monotonic().ns(), Ordering::Relaxed);
        self.0.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// For how long the thread has not beaten `now`; `None`: it need not.
    pub fn silence(&self, now: HostTime) -> Option<Duration> {
        let last = HostTime::from_ns(self.0.last.load(Ordering::Relaxed));
        self.is_begun().then(|| Duration::from_nanos(now.ns_since(last)))
    }

    /// Waits on the calling thread for what may take as long as the other node takes, and beats meanwhile.
    pub fn wait<T>(&self, wait: impl Future<Output = T>) -> T {
        let mut wait = pin!(wait);
        let this = std::thread::current();
        let waker = Waker::from(Arc::new(Unpark(this.clone())));
        let mut has_parked = false;
        loop {
            if let Poll::Ready(done) = wait.as_mut().poll(&mut Context::from_waker(&waker)) {
                if has_parked {
                    // Whoever woke this thread for something else meanwhile is heard where it parks next.
                    this.unpark();
                }
                self.beat();
                return done;
            }
            self.beat();
            std::thread::park_timeout(BEAT);
            has_parked = true;
        }
    }

    /// Whether the thread has to beat at all.
    pub fn is_begun(&self) -> bool {
        self.nudge().is_some()
    }

    /// Waits until the thread need not beat any more; false when the time is over before.
    pub fn wait_for_end(&self, limit: Duration) -> bool {
        let waited = self
            .0
            .ended
            .wait_timeout_while(self.nudge(), limit, |nudge| nudge.is_some());
        waited.unwrap_or_else(PoisonError::into_inner).0.is_none()
    }

    fn nudge(&self) -> std::sync::MutexGuard<'_, Option<Nudge>> {
        // Whole whenever the lock is free.
        self.0.nudge.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        *self.0.nudge() = None;
        self.0.0.ended.notify_all();
    }
}

/// Looks at a pulse again and again.
pub struct Doctor {
    pulse: Pulse,
    /// Beats when somebody was last told that the thread lives, and now.
    told: u64,
    seen: u64,
    /// Looks in a row at which it did not live.
    still: u32,
}

impl Doctor {
    /// One who has seen nothing yet.
    pub fn of(pulse: &Pulse) -> Self {
        Self {
            pulse: pulse.clone(),
            told: 0,
            seen: 0,
            still: 0,
        }
    }

    /// Whether the thread has beaten since [`Doctor::tell`], or has not begun. It is nudged, for the next look.
    pub fn feels(&mut self) -> bool {
        let inner = &self.pulse.0;
        self.seen = inner.beats.load(Ordering::Relaxed);
        let is_begun = match &*self.pulse.nudge() {
            Some(nudge) => {
                nudge();
                true
            }
            None => false,
        };
        let lives = !is_begun || self.seen != self.told;
        self.still = if lives { 0 } else { self.still + 1 };
        lives
    }

    /// At how many looks in a row it did not live.
    pub fn still(&self) -> u32 {
        self.still
    }

    /// What was felt was told, and counts no more: the thread has to beat again.
    pub fn tell(&mut self) {
        self.told = self.seen;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_does_not_beat_is_noticed() {
        let pulse = Pulse::default();
        let mut doctor = Doctor::of(&pulse);
        assert!(doctor.feels(), "it has not begun");
        let nudged = Arc::new(AtomicU64::new(0));
        let count = nudged.clone();
        let alive = pulse.begin(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert!(doctor.feels(), "beginning is a beat");
        doctor.tell();
        assert!(!doctor.feels() && !doctor.feels(), "no beat since");
        assert_eq!((nudged.load(Ordering::Relaxed), doctor.still()), (3, 2));
        pulse.beat();
        assert!(doctor.feels());
        assert_eq!(doctor.still(), 0);
        doctor.tell();
        assert!(!doctor.feels());
        drop(alive);
        assert!(doctor.feels(), "it has ended");
    }

    #[test]
    fn a_thread_that_waits_beats_where_it_is_let() {
        let pulse = Pulse::default();
        let _alive = pulse.begin(|| {});
        let (tell, told) = tokio::sync::oneshot::channel();
        let waiter = pulse.clone();
        let waiting = std::thread::spawn(move || {
            let said = waiter.wait(told);
            // What came while it waited is not lost: this returns at once.
            std::thread::park();
            said
        });
        let mut doctor = Doctor::of(&pulse);
        let mut next_beat = || {
            while !doctor.feels() {
                std::thread::sleep(Duration::from_millis(1));
            }
            doctor.tell();
        };
        // Its beginning, its wait's, and two of one that goes on waiting.
        for _ in 0..4 {
            next_beat();
        }
        waiting.thread().unpark();
        tell.send(7).unwrap();
        assert_eq!(waiting.join().unwrap(), Ok(7));
    }

    #[test]
    fn the_end_is_waited_for() {
        let pulse = Pulse::default();
        assert!(pulse.wait_for_end(Duration::ZERO), "it has not begun");
        let alive = pulse.begin(|| {});
        assert!(!pulse.wait_for_end(Duration::ZERO));
        let waiter = pulse.clone();
        let waiting = std::thread::spawn(move || waiter.wait_for_end(Duration::from_secs(60)));
        drop(alive);
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn a_thread_is_silent_from_its_last_beat_until_it_ends() {
        let pulse = Pulse::default();
        assert_eq!(pulse.silence(monotonic()), None);
        let alive = pulse.begin(|| {});
        let later = monotonic().plus_ns(1_000_000_000);
        assert!(pulse.silence(later) >= Some(Duration::from_secs(1)));
        assert_eq!(pulse.silence(HostTime::ZERO), Some(Duration::ZERO));
        drop(alive);
        assert_eq!(pulse.silence(later), None);
    }
}
