//! Making `KVM_RUN` return: a signal to the vCPU thread, sent by a timer or by another thread.
//!
//! The handler sets `immediate_exit` in the thread's `kvm_run` page and a flag. The vCPU thread clears
//! `immediate_exit`, *then* looks at the flag, then enters the guest: a signal that arrives at any point of this
//! sequence either is seen in the flag or makes the next `KVM_RUN` return at once. None is lost.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::mem::zeroed;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use libc::{c_int, pid_t, sigevent, timer_t};
use lockstep_proto::quantity::HostTime;
use vmm_sys_util::signal::{block_signal, unblock_signal};

/// What the signal handler touches for the thread that it interrupts.
struct Target {
    kicked: AtomicBool,
    /// `kvm_run.immediate_exit` of the vCPU that this thread runs, or null.
    immediate_exit: AtomicPtr<AtomicU8>,
}

thread_local! {
    /// Constant-initialized and without a destructor: the handler may read it at any time.
    static TARGET: Cell<*const Target> = const { Cell::new(null()) };
}

fn signal() -> c_int {
    libc::SIGRTMIN() + 1
}

/// Does what a signal would end, with this thread's kicks held back until it is done.
pub fn held_back<T>(work: impl FnOnce() -> T) -> T {
    // An error: they are held back already.
    let holds = block_signal(signal()).is_ok();
    let done = work();
    if holds {
        // It cannot fail with a signal that could be blocked.
        let _ = unblock_signal(signal());
    }
    done
}

extern "C" fn on_kick(_: c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let target = TARGET.with(Cell::get);
    // SAFETY: the pointer is null or points into the Arc that this thread's `Kicks` holds; it is reset before that
    // Arc is dropped, and the handler runs on the same thread.
    if let Some(target) = unsafe { target.as_ref() } {
        target.kicked.store(true, Ordering::SeqCst);
        // SAFETY: null, or the mapped `kvm_run` page of a vCPU that lives on this thread's stack below `Kicks`.
        if let Some(flag) = unsafe { target.immediate_exit.load(Ordering::SeqCst).as_ref() } {
            flag.store(1, Ordering::SeqCst);
        }
    }
}

fn install_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let result = INSTALLED.get_or_init(|| {
        // SAFETY: all-zero is a valid sigaction; the handler is async-signal-safe (atomics and a constant-initialized
        // thread local only). No SA_RESTART: KVM_RUN and sleeps must return.
        let rc = unsafe {
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = on_kick as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(signal(), &raw const action, null_mut())
        };
        if rc == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL))
        }
    });
    result.map_err(io::Error::from_raw_os_error)
}

/// The kicks that the current thread receives. Made on the vCPU thread; stays there.
pub struct Kicks {
    target: Arc<Target>,
    thread: pid_t,
    not_send: PhantomData<*const ()>,
}

impl Kicks {
    /// Prepares the current thread to be kicked. One per thread at a time.
    pub fn for_this_thread() -> io::Result<Self> {
        install_handler()?;
        let target = Arc::new(Target {
            kicked: AtomicBool::new(false),
            immediate_exit: AtomicPtr::new(null_mut()),
        });
        TARGET.with(|cell| cell.set(Arc::as_ptr(&target)));
        // SAFETY: gettid has no preconditions.
        let thread = unsafe { libc::gettid() };
        Ok(Self {
            target,
            thread,
            not_send: PhantomData,
        })
    }

    /// Names the `kvm_run.immediate_exit` byte that a kick sets; null for none.
    pub(super) fn aim(&self, immediate_exit: *mut u8) {
        self.target
            .immediate_exit
            .store(immediate_exit.cast(), Ordering::SeqCst);
    }

    /// Whether a kick has arrived since the last call.
    pub fn take(&self) -> bool {
        self.target.kicked.swap(false, Ordering::SeqCst)
    }

    /// A handle by which any thread can kick this one.
    pub fn handle(&self) -> KickHandle {
        KickHandle { thread: self.thread }
    }

    /// A timer that kicks this thread.
    pub fn timer(&self) -> io::Result<KickTimer> {
        // SAFETY: all-zero is a valid sigevent; the fields that SIGEV_THREAD_ID needs are set; `id` is written by the
        // call before it is used.
        unsafe {
            let mut event: sigevent = zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal();
            event.sigev_notify_thread_id = self.thread;
            let mut id: timer_t = null_mut();
            if libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut id) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(KickTimer { id })
        }
    }
}

impl Drop for Kicks {
    fn drop(&mut self) {
        TARGET.with(|cell| cell.set(null()));
    }
}

/// Kicks one thread, from any thread.
#[derive(Clone, Copy, Debug)]
pub struct KickHandle {
    thread: pid_t,
}

impl KickHandle {
    /// Makes the thread's `KVM_RUN`, or its next one, return. Does nothing when the thread has ended.
    pub fn kick(self) {
        // SAFETY: tgkill takes plain numbers; a thread that has ended gives ESRCH. The handler is process-wide, so a
        // thread that got the same number later only finds a null target.
        unsafe {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), self.thread, signal());
        }
    }
}

/// What kicks a vCPU's thread when the time has come: a [`KickTimer`], or a simulation's.
pub trait Alarm: Send + Sync {
    /// Once, at this host time; replaces an earlier setting.
    fn arm(&self, at: HostTime);

    /// Once, so many nanoseconds from now; replaces an earlier setting.
    fn arm_in(&self, ns: u64);
}

/// A one-shot timer on `CLOCK_MONOTONIC` that kicks the thread it was made for.
#[derive(Debug)]
pub struct KickTimer {
    id: timer_t,
}

// SAFETY: POSIX timers belong to the process; any thread may set or delete them.
unsafe impl Send for KickTimer {}
// SAFETY: as above, timer_settime is thread-safe.
unsafe impl Sync for KickTimer {}

impl KickTimer {
    /// Fires once at `at` (at once if that has passed); replaces an earlier setting.
    pub fn arm(&self, at: HostTime) {
        self.set(at.ns().max(1), libc::TIMER_ABSTIME);
    }

    /// Does not fire any more.
    pub fn disarm(&self) {
        self.set(0, 0);
    }

    fn set(&self, at: u64, flags: c_int) {
        let spec = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec {
                tv_sec: (at / 1_000_000_000) as i64,
                tv_nsec: (at % 1_000_000_000) as i64,
            },
        };
        // SAFETY: `id` is a live timer and `spec` a valid value; the call cannot fail then (timer_settime(2)).
        unsafe {
            libc::timer_settime(self.id, flags, &raw const spec, null_mut());
        }
    }
}

impl Alarm for KickTimer {
    fn arm(&self, at: HostTime) {
        self.arm(at);
    }

    fn arm_in(&self, ns: u64) {
        self.set(ns.max(1), 0);
    }
}

impl Drop for KickTimer {
    fn drop(&mut self) {
        // SAFETY: `id` is a live timer and nothing uses it after this.
        unsafe {
            libc::timer_delete(self.id);
        }
    }
}
