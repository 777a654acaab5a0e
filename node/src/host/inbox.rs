//! Where inputs wait for the vCPU thread, and how it is told of them.
//!
//! Host I/O threads put inputs into bounded queues and ring the [`Bell`]. A vCPU thread that waits in HLT wakes at once;
//! one that runs the guest sees the bell at the next natural stop, or is kicked when none comes within the grace.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use lockstep_vmm::sys::kick::Alarm;

/// Frames that may wait; more are left in the tap device's queue.
const FRAME_QUEUE: usize = 256;
/// Console chunks that may wait.
const CONSOLE_QUEUE: usize = 64;

/// Rung when an input waits.
#[derive(Clone)]
pub struct Bell(Arc<BellState>);

struct BellState {
    rung: AtomicBool,
    quit: AtomicBool,
    vcpu: Thread,
    timer: Box<dyn Alarm>,
    grace: AtomicU64,
}

impl Bell {
    /// A bell for the current thread. `grace`: nanoseconds from ringing to kicking a vCPU that made no stop.
    pub fn for_this_thread(timer: impl Alarm + 'static, grace: u64) -> Self {
        Self(Arc::new(BellState {
            rung: AtomicBool::new(false),
            quit: AtomicBool::new(false),
            vcpu: std::thread::current(),
            timer: Box::new(timer),
            grace: AtomicU64::new(grace),
        }))
    }

    /// An input waits.
    pub fn ring(&self) {
        if !self.0.rung.swap(true, Ordering::AcqRel) {
            self.0.timer.arm_in(self.0.grace.load(Ordering::Relaxed));
            self.0.vcpu.unpark();
        }
    }

    /// Wakes a vCPU thread that sleeps, for a look around.
    pub fn wake(&self) {
        self.0.vcpu.unpark();
    }

    /// Asks the vCPU thread to end the recording at the next stop.
    pub fn quit(&self) {
        self.0.quit.store(true, Ordering::Release);
        self.ring();
        self.0.vcpu.unpark();
    }

    /// Whether [`Bell::quit`] was called.
    pub fn wants_quit(&self) -> bool {
        self.0.quit.load(Ordering::Acquire)
    }

    /// Whether the bell is rung, without answering it.
    pub fn is_rung(&self) -> bool {
        self.0.rung.load(Ordering::Acquire)
    }

    /// Answers the bell: call before the queues are emptied.
    pub fn answer(&self) -> bool {
        self.is_rung() && self.0.rung.swap(false, Ordering::AcqRel)
    }
}

/// The sending ends, for host I/O threads.
#[derive(Clone)]
pub struct Outside {
    frames: Sender<(u32, Vec<u8>)>,
    console: Sender<Vec<u8>>,
    bell: Bell,
}

impl Outside {
    /// Hands a received frame over; waits while the queue is full. False when the machine is gone.
    pub fn frame(&self, nic: u32, frame: Vec<u8>) -> bool {
        let sent = match self.frames.try_send((nic, frame)) {
            Err(TrySendError::Full(frame)) => {
                self.bell.ring();
                self.frames.send(frame).is_ok()
            }
            other => other.is_ok(),
        };
        self.bell.ring();
        sent
    }

    /// Hands typed bytes over; waits while the queue is full. False when the machine is gone.
    pub fn console(&self, bytes: Vec<u8>) -> bool {
        let sent = self.console.send(bytes).is_ok();
        self.bell.ring();
        sent
    }

    /// The bell.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }
}

/// The receiving ends, for the vCPU thread.
pub struct Inbox {
    /// Frames with their NIC's number.
    pub frames: Receiver<(u32, Vec<u8>)>,
    /// Typed bytes.
    pub console: Receiver<Vec<u8>>,
    /// Rung when something waits.
    pub bell: Bell,
}

/// An inbox for the current thread and the outside's ends of it.
pub fn inbox(bell: Bell) -> (Inbox, Outside) {
    let (frame_sender, frames) = bounded(FRAME_QUEUE);
    let (console_sender, console) = bounded(CONSOLE_QUEUE);
    let outside = Outside {
        frames: frame_sender,
        console: console_sender,
        bell: bell.clone(),
    };
    (Inbox { frames, console, bell }, outside)
}
