//! A machine that starts as one of a pair, on hosts that have other work to do, moves and goes on moving: on ordinary hosts a
//! protected guest was once seen to stand still for good some seconds after its start.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::{ordinary_host, require_root_net, soak};
use lockstep_integration::pair::{Arbiter, LIMIT, Pair, number, status, wait_for_status};
use lockstep_integration::process::bound;
use lockstep_integration::{Guest, work_dir};

const MEMORY_MIB: u64 = 64;
/// How long it is watched: it froze 10 to 15 seconds after it had become protected.
const WATCHED: Duration = Duration::from_secs(20);

/// A process that computes for ever.
struct Busy(Child);

impl Busy {
    fn start() -> Result<Self> {
        let mut command = bound("sh");
        command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn starts(count: usize) -> Result<()> {
    if !require_root_net() || !ordinary_host()? {
        return Ok(());
    }
    let guest = Guest::find()?;
    for start in 0..count {
        let dir = work_dir("pair-starts")?;
        let pair = Pair::create(&dir, Arbiter::File, Duration::from_millis(100), Duration::from_secs(5))?;
        let _busy = [Busy::start()?, Busy::start()?];
        let backup = pair.start_backup(1, |run| run)?;
        let primary = pair.start_primary(0, |run| run.boot(&guest, &guest.general, MEMORY_MIB, ""))?;
        primary.wait_for_state("protected", LIMIT)?;
        let begin = Instant::now();
        let mut stop = 0.0;
        while begin.elapsed() < WATCHED {
            let now = wait_for_status(&pair.socket(0), LIMIT, |now| Ok(number(now, "stop")? > stop))?;
            stop = number(&now, "stop")?;
        }
        let now = status(&pair.socket(0))?;
        println!(
            "start {start}: {} s of guest time, {} stops",
            now["guest_seconds"], now["stop"]
        );
        ensure!(now["state"] == "protected", "start {start}: {now}");
        // Nothing that ended and began again hid it.
        pair.ensure_no_divergence([&primary, &backup])
            .with_context(|| format!("start {start}"))?;
        primary.kill()?;
        backup.kill()?;
    }
    Ok(())
}

#[test]
fn a_guest_that_starts_beside_busy_loops_does_not_freeze() -> Result<()> {
    starts(1)
}

/// Only in soak.
#[test]
fn fifty_guests_that_start_beside_busy_loops_do_not_freeze() -> Result<()> {
    if soak() { starts(50) } else { Ok(()) }
}
