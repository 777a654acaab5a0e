//! A replica that executes slowly, or not at all, while the rest of its process goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::Node;
use crate::cpu::cpu_ns;

/// A slow one gets so much of a core at a time,
const RUNS: Duration = Duration::from_millis(20);
/// and then stands still for so long.
const STANDS: Duration = Duration::from_millis(80);
/// From one look at what it got to the next.
const LOOK: Duration = Duration::from_millis(5);

/// A vCPU's thread that stands still, as under a debugger, until this is dropped. The process' other threads go on.
///
/// It belongs to the thread that made it.
pub struct StoppedVcpu {
    thread: Pid,
    /// A signal that it was about to get.
    signal: Option<Signal>,
}

impl StoppedVcpu {
    /// Stops the vCPU of `node`, which is its process' first thread.
    pub fn stop(node: &Node) -> Result<Self> {
        Self::stop_thread(Pid::from_raw(node.run.pid() as i32))
    }

    fn stop_thread(thread: Pid) -> Result<Self> {
        ptrace::seize(thread, Options::empty()).context("the vCPU's thread cannot be stopped")?;
        // From here on, dropping it lets it go on.
        let mut stopped = Self { thread, signal: None };
        ptrace::interrupt(thread)?;
        stopped.signal = match waitpid(thread, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceEvent(..) => None,
            WaitStatus::Stopped(_, signal) => Some(signal),
            other => bail!("the vCPU's thread does not stop: {other:?}"),
        };
        Ok(stopped)
    }
}

impl Drop for StoppedVcpu {
    fn drop(&mut self) {
        // One that has ended needs nothing.
        let _ = ptrace::detach(self.thread, self.signal);
    }
}

/// A vCPU's thread that gets a fifth of a core, until this is dropped.
pub struct SlowVcpu {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SlowVcpu {
    /// Slows the vCPU of `node`.
    pub fn start(node: &Node) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, pid) = (stop.clone(), node.run.pid());
        let thread = std::thread::Builder::new().name("slow".into()).spawn(move || {
            while !told.load(Ordering::Relaxed) {
                // It ends with its process.
                if let Err(error) = turn(pid, &told) {
                    eprintln!("the vCPU is not slow any more: {error:#}");
                    return;
                }
            }
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

/// Lets it have its share once.
fn turn(pid: u32, told: &AtomicBool) -> Result<()> {
    let until = cpu_ns(pid)? + RUNS.as_nanos() as f64;
    while cpu_ns(pid)? < until && !told.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK);
    }
    let _stopped = StoppedVcpu::stop_thread(Pid::from_raw(pid as i32))?;
    std::thread::sleep(STANDS);
    Ok(())
}

impl Drop for SlowVcpu {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}
