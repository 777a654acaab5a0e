//! What a distribution's kernel costs: Debian's draws a random offset for the stack at each system call
//! (`randomize_kstack_offset`), from the time stamp counter, so that each is a stop. The same work with it and without, on an
//! emulated AMD host: Debian's kernel does not run where ring 0 is emulated.

use std::time::Instant;

use anyhow::{Result, ensure};
use lockstep_integration::paths::Guest;
use lockstep_integration::run::Run;
use lockstep_integration::work_dir;
use serde_json::json;

use crate::Scale;
use crate::counts::two_ways_on_amd;
use crate::log::Log;
use crate::pairs::{LIMIT, PROMPT};
use crate::table::{Row, Table};

/// What of it the emulated host does.
pub const HERE: &str = "stock-here";

/// Measures it there, with the offset and without.
pub fn run(scale: Scale, table: &mut Table) -> Result<()> {
    // Fetched here: the emulated host has no network to the outside.
    Guest::stock_kernel()?;
    two_ways_on_amd(scale, HERE, "randomize_kstack_offset=on", table)
}

/// Measures on this host.
pub fn here(scale: Scale, table: &mut Table) -> Result<()> {
    let (without, with) = (measure(scale, "off")?, measure(scale, "on")?);
    for ((what, unit, value), (_, _, other)) in without.into_iter().zip(with) {
        table.add(Row::new(format!("Debian's kernel: {what}"), value, unit).data(json!(other)));
    }
    Ok(())
}

/// A boot and some work, recorded.
fn measure(scale: Scale, offset: &str) -> Result<Vec<(&'static str, &'static str, f64)>> {
    let log = work_dir(&format!("bench-stock-{offset}"))?.join("log");
    let guest = Guest {
        vmlinux: Guest::stock_kernel()?,
        ..Guest::find()?
    };
    let general = guest.general.clone();
    let words = format!("randomize_kstack_offset={offset}");
    let begin = Instant::now();
    let mut run = Run::bare()?.boot(&guest, &general, 256, &words).record(&log).start()?;
    run.wait_for(PROMPT, LIMIT)?;
    let (booted, begin) = (begin.elapsed(), Instant::now());
    let calls = scale.pick(20_000, 5_000);
    run.type_text(&format!(
        "dd if=/dev/zero of=/dev/null bs=1 count={calls}; ls -lR /proc/self /sys/class | cksum; echo WORK-ENDED=$?\n"
    ))?;
    run.wait_for("WORK-ENDED=0", LIMIT)?;
    let worked = begin.elapsed();
    run.terminate()?.report()?;
    let log = Log::read(&log)?;
    let seconds = log.seconds();
    let sums = log.sums(0.0..seconds);
    ensure!(sums.stops > 0, "it has made no stop");
    Ok(vec![
        ("boot to a shell", "s", booted.as_secs_f64()),
        ("the same work", "s", worked.as_secs_f64()),
        ("stops", "", sums.stops as f64),
        ("forced stops", "", sums.deltas as f64),
        ("pages in deltas", "", sums.delta_pages as f64),
        ("bytes of log", "", (sums.turn_bytes + sums.delta_bytes) as f64),
    ])
}
