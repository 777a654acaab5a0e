//! What a guest's read of the clock costs, on an emulated AMD host: by system call, as it is by default, and by a vDSO, whose
//! RDTSC in ring 3 is trapped.

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
pub const HERE: &str = "clocks-here";

/// Measures it there.
pub fn run(scale: Scale, table: &mut Table) -> Result<()> {
    two_ways_on_amd(scale, HERE, "vdso=1", table)
}

/// Measures on this host.
pub fn here(scale: Scale, table: &mut Table) -> Result<()> {
    let (call, vdso) = (measure(scale, "0")?, measure(scale, "1")?);
    for ((what, unit, value), (_, _, other)) in call.into_iter().zip(vdso) {
        table.add(Row::new(format!("a read of the clock: {what}"), value, unit).data(json!(other)));
    }
    Ok(())
}

/// Reads of the clock in a booted guest, recorded; what the same guest takes without them is left out of stops and bytes.
fn measure(scale: Scale, vdso: &str) -> Result<[(&'static str, &'static str, f64); 3]> {
    let thousands = scale.pick(20, 5);
    let [without, with] = [0, thousands].map(|thousands| work(vdso, thousands));
    let (without, with, reads) = (without?, with?, f64::from(thousands) * 1000.0);
    Ok([
        ("host time", "us", with.microseconds / reads),
        (
            "stops, the ticks meanwhile among them",
            "",
            (with.stops - without.stops) / reads,
        ),
        ("bytes of log", "", (with.bytes - without.bytes) / reads),
    ])
}

/// What something took: the host's time for the reads, and the log as a whole.
struct Done {
    microseconds: f64,
    stops: f64,
    bytes: f64,
}

fn work(vdso: &str, thousands: u32) -> Result<Done> {
    let log = work_dir(&format!("bench-clocks-{vdso}-{thousands}"))?.join("log");
    let guest = Guest::find()?;
    let general = guest.general.clone();
    let words = format!("vdso={vdso}");
    let mut run = Run::bare()?.boot(&guest, &general, 64, &words).record(&log).start()?;
    run.wait_for(PROMPT, LIMIT)?;
    let begin = Instant::now();
    run.type_text(&format!("bench clock {thousands}\n"))?;
    run.wait_for("BENCH clock", LIMIT)?;
    let microseconds = begin.elapsed().as_secs_f64() * 1e6;
    run.terminate()?.report()?;
    let log = Log::read(&log)?;
    let sums = log.sums(0.0..log.seconds());
    ensure!(sums.stops > 0, "it has made no stop");
    Ok(Done {
        microseconds,
        stops: sums.stops as f64,
        bytes: (sums.turn_bytes + sums.delta_bytes) as f64,
    })
}
