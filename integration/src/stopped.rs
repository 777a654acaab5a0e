//! A thread that stands still, as under a debugger, while the rest of its process goes on.

use std::fs;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// It stands still until this is dropped. This belongs to the thread that made it.
pub struct StoppedThread {
    thread: Pid,
    /// A signal that it was about to get.
    signal: Option<Signal>,
}

impl StoppedThread {
    /// Stops the thread with this number.
    pub fn stop(thread: Pid) -> Result<Self> {
        ptrace::seize(thread, Options::empty()).context("the thread cannot be stopped")?;
        // From here on, dropping it lets it go on.
        let mut stopped = Self { thread, signal: None };
        ptrace::interrupt(thread)?;
        stopped.signal = match waitpid(thread, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceEvent(..) => None,
            WaitStatus::Stopped(_, signal) => Some(signal),
            other => bail!("the thread does not stop: {other:?}"),
        };
        Ok(stopped)
    }

    /// Stops the thread of this name, if process `pid` has one.
    pub fn stop_named(pid: u32, name: &str) -> Result<Option<Self>> {
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = entry?.path();
            // A thread may end meanwhile.
            if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name) {
                let thread = path.file_name().and_then(|thread| thread.to_str()?.parse().ok());
                let stopped = Self::stop(Pid::from_raw(thread.context("a thread has no number")?));
                return match stopped {
                    Err(error) if error.downcast_ref() == Some(&Errno::ESRCH) => Ok(None),
                    stopped => stopped.map(Some),
                };
            }
        }
        Ok(None)
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        // One that has ended needs nothing.
        let _ = ptrace::detach(self.thread, self.signal);
    }
}
