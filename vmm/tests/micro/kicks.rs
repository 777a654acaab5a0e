//! A thread that kicks the vCPU at arbitrary moments.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use lockstep_vmm::machine::Machine;

use super::harness::Rng;

pub struct Kicker {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Kicker {
    /// Kicks this thread's `machine` every `mean` microseconds on average.
    pub fn start(machine: &mut Machine, seed: u64, mean: u64) -> Self {
        let handle = machine.attach_to_this_thread().expect("kicks").handle();
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            let mut rng = Rng(seed | 1);
            while stopped.recv_timeout(Duration::from_micros(rng.next() % (2 * mean))) == Err(RecvTimeoutError::Timeout)
            {
                handle.kick();
            }
        });
        Self { stop, thread }
    }

    pub fn stop(self) {
        drop(self.stop);
        self.thread.join().expect("the kicking thread does not panic");
    }
}
