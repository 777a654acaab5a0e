//! Who runs on which core.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::table::Row;

/// How long the host's noise is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A core that is away for longer was not just slow.
const GAP: Duration = Duration::from_micros(100);

/// One core for the machine that is measured, and another for everything else. Until it is dropped, this thread and what it
/// starts run on the other.
pub struct Cores {
    before: CpuSet,
    guest: CpuSet,
    others: CpuSet,
}

impl Cores {
    /// The first two cores that this thread may use.
    pub fn take() -> Result<Self> {
        let before = sched_getaffinity(None)?;
        let mut usable = (0..CpuSet::MAX_CPU).filter(|core| before.is_set(*core)).map(|core| {
            let mut set = CpuSet::new();
            set.set(core);
            set
        });
        let (guest, others) = usable.next().zip(usable.next()).context("there are no two cores")?;
        sched_setaffinity(None, &others)?;
        Ok(Self { before, guest, others })
    }

    /// A machine's vCPU, which is its process' first thread, gets its core; the process' other threads leave it.
    pub fn pin(&self, pid: u32) -> Result<()> {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let id: i32 = task?.file_name().to_string_lossy().parse()?;
            let set = if id == pid as i32 { &self.guest } else { &self.others };
            match sched_setaffinity(Pid::from_raw(id), set) {
                // It has ended meanwhile.
                Err(Errno::SRCH) => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// How much of the guest's core is not there though nothing of ours uses it.
    pub fn noise(&self) -> Result<Row> {
        sched_setaffinity(None, &self.guest)?;
        let begin = Instant::now();
        let (mut last, mut away, mut longest) = (begin, Duration::ZERO, Duration::ZERO);
        while last - begin < LOOK {
            let now = Instant::now();
            let gap = now - last;
            if gap > GAP {
                away += gap;
                longest = longest.max(gap);
            }
            last = now;
        }
        sched_setaffinity(None, &self.others)?;
        let share = 100.0 * away.as_secs_f64() / (last - begin).as_secs_f64();
        let note = format!("longest {:.1} ms", longest.as_secs_f64() * 1e3);
        Ok(Row::new("host: the guest's core is away", share, "%").note(note))
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        // They were allowed before.
        let _ = sched_setaffinity(None, &self.before);
    }
}
