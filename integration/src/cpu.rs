//! What vCPU threads get of the cores.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};

/// Nanoseconds that the vCPU's thread has run so far. It is the process' first.
pub fn cpu_ns(pid: u32) -> Result<f64> {
    Ok(CpuTime::now(pid)?.ran)
}

/// What the vCPU's thread has had by some moment, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct CpuTime {
    ran: f64,
    /// It wanted to run, and had no core.
    waited: f64,
    at: Instant,
}

/// Where a vCPU thread's time went, in shares of it.
#[derive(Clone, Copy, Debug)]
pub struct Shares {
    /// On a core: in the guest, in KVM, or in our program.
    pub ran: f64,
    /// Waiting for a core.
    pub waited: f64,
    /// Asleep: nothing to do, or held back.
    pub slept: f64,
}

impl CpuTime {
    /// By now.
    pub fn now(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/task/{pid}/schedstat");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let at = Instant::now();
        let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
        let mut next = || numbers.next().flatten().with_context(|| format!("{path}: {text}"));
        Ok(Self {
            ran: next()?,
            waited: next()?,
            at,
        })
    }

    /// Where the time since `before` went.
    pub fn since(&self, before: &Self) -> Shares {
        let all = ((self.at - before.at).as_nanos() as f64).max(1.0);
        let (ran, waited) = ((self.ran - before.ran) / all, (self.waited - before.waited) / all);
        Shares {
            ran,
            waited,
            // What ran between two looks at a clock may be a little more than went by.
            slept: (1.0 - ran - waited).max(0.0),
        }
    }
}
