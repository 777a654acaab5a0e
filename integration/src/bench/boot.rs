//! Boot, snapshot and restore times.

use std::time::Instant;

use anyhow::{Context, Result};
use lockstep_integration::{Booted, Guest, Kind, Run, work_dir};
use lockstep_vmm::probe::host_class;
use lockstep_vmm::snapshot::{self, Restore};
use serde_json::json;

use crate::Scale;
use crate::pairs::{LIMIT, median};
use crate::table::{Row, Table};

/// From the start of the process to what the guest's init prints.
pub fn boot(scale: Scale, table: &mut Table) -> Result<()> {
    let guest = Guest::find()?;
    let dir = work_dir("bench-boot")?;
    for (name, rounds, record) in [("unrecorded", scale.pick(3, 1), false), ("recorded", 1, true)] {
        let (mut init, mut ready) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let run = Run::bare()?.boot(&guest, &guest.general, 64, "lockstep.run=shell");
            let run = if record { run.record(&dir.join("log")) } else { run };
            let begin = Instant::now();
            let run = run.args(["--until", "LOCKSTEP-READY"]).start()?;
            run.wait_for("LOCKSTEP-INIT", LIMIT)?;
            init.push(begin.elapsed().as_secs_f64());
            run.wait_for("LOCKSTEP-READY", LIMIT)?;
            ready.push(begin.elapsed().as_secs_f64());
            run.wait(LIMIT)?.report()?;
        }
        let row = |what: &str, times: &[f64]| {
            Row::new(format!("boot to {what}, {name}"), median(times.iter().copied()), "s").data(json!(times))
        };
        table.add(row("LOCKSTEP-INIT", &init).at_most(15.0));
        table.add(row("LOCKSTEP-READY", &ready));
    }
    Ok(())
}

/// A machine of 64 MiB, in this process.
pub fn snapshot(scale: Scale, table: &mut Table) -> Result<()> {
    let path = Booted::get(Kind::Shell)?.snapshot();
    let copy = work_dir("bench-snapshot")?.join("machine.snapshot");
    let class = host_class()?;
    let (mut saves, mut restores) = (Vec::new(), Vec::new());
    let mut size = 0;
    for _ in 0..scale.pick(9, 5) {
        let begin = Instant::now();
        let (machine, _) = Restore::open(&path)?.finish(&class)?;
        restores.push(begin.elapsed().as_secs_f64());
        let begin = Instant::now();
        snapshot::save(&machine, &class, &copy)?;
        saves.push(begin.elapsed().as_secs_f64());
        size = machine.memory().bytes() >> 20;
    }
    let file = std::fs::metadata(&copy).context("the snapshot")?.len();
    for (what, times, goal) in [("restore", restores, Some(0.3)), ("save, synced", saves, None)] {
        let best = times.iter().copied().fold(f64::INFINITY, f64::min);
        let row = Row::new(
            format!("snapshot of {size} MiB: {what}"),
            median(times.iter().copied()),
            "s",
        )
        .note(format!(
            "best {best:.3} of {}; file of {:.1} MB",
            times.len(),
            file as f64 / 1e6
        ))
        .data(json!(times));
        table.add(match goal {
            Some(goal) => row.at_most(goal),
            None => row,
        });
    }
    Ok(())
}
