//! A replica that executes slowly, or not at all, while the rest of its process goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use nix::unistd::Pid;

use super::Node;
use crate::cpu::cpu_ns;
use crate::stopped::StoppedThread;

/// A slow one gets so much of a core at a time,
const RUNS: Duration = Duration::from_millis(20);
/// and then stands still for so long.
const STANDS: Duration = Duration::from_millis(80);
/// From one look at what it got to the next.
const LOOK: Duration = Duration::from_millis(5);

/// Stops the thread that runs the vCPU of `node`: its process' first.
pub fn stop_vcpu(node: &Node) -> Result<StoppedThread> {
    StoppedThread::stop(Pid::from_raw(node.run.pid() as i32))
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
    let _stopped = StoppedThread::stop(Pid::from_raw(pid as i32))?;
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
