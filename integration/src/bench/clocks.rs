//! What a guest's read of the clock costs, on an emulated AMD host: by system call, as it is where the vDSO is off, and by
//! RDTSC in ring 3, which a vDSO executes at each call and the machine would have to trap.

use std::time::Instant;

use anyhow::{Context, Result};
use lockstep_integration::{Booted, Kind, work_dir};
use serde_json::json;

use crate::Scale;
use crate::counts::on_amd;
use crate::log::Log;
use crate::pairs::{LIMIT, PROMPT};
use crate::table::{Row, Table};

/// What of it the emulated host does.
pub const HERE: &str = "clocks-here";

/// Measures it there.
pub fn run(scale: Scale, table: &mut Table) -> Result<()> {
    let rows = match on_amd(scale, HERE) {
        Ok(rows) => rows,
        Err(error) => {
            table.skip("clocks", &format!("{error:#}"));
            return Ok(());
        }
    };
    for row in &rows {
        let (what, unit) = (row["what"].as_str(), row["unit"].as_str());
        let value = row["value"].as_f64().context("value")?;
        let trapped = row["data"].as_f64().context("data")?;
        let note = format!("by RDTSC in ring 3 {trapped:.2}: {:.2} x", trapped / value);
        let row = Row::new(what.context("what")?, value, unit.unwrap_or_default());
        table.add(row.note(note).data(json!(trapped)));
    }
    Ok(())
}

/// Measures on this host.
pub fn here(scale: Scale, table: &mut Table) -> Result<()> {
    let thousands = scale.pick(20, 5);
    let [none, call, trapped] = [
        ("none", "echo BENCH-ENDED".into()),
        ("call", format!("bench clock {thousands}; echo BENCH-ENDED")),
        ("trapped", format!("rdtsc3 time {thousands}; echo BENCH-ENDED")),
    ]
    .map(|(name, command): (_, String)| work(name, &command));
    let (none, reads) = (none?, f64::from(thousands) * 1000.0);
    let [call, trapped] = [call?, trapped?].map(|done| {
        let each = |value: f64, without: f64| (value - without) / reads;
        [
            each(done.microseconds, none.microseconds),
            each(done.stops, none.stops),
            each(done.bytes, none.bytes),
        ]
    });
    let names = [("time", "us"), ("stops", ""), ("bytes of log", "")];
    for ((what, unit), (value, other)) in names.into_iter().zip(call.into_iter().zip(trapped)) {
        table.add(Row::new(format!("a read of the clock by system call: {what}"), value, unit).data(json!(other)));
    }
    Ok(())
}

/// What something took: of the host's time, and in the log as a whole.
struct Done {
    microseconds: f64,
    stops: f64,
    bytes: f64,
}

/// Does it in a booted guest, recorded.
fn work(name: &str, command: &str) -> Result<Done> {
    let log = work_dir(&format!("bench-clocks-{name}"))?.join("log");
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(&log).start()?;
    run.wait_for(PROMPT, LIMIT)?;
    let begin = Instant::now();
    // The command is echoed as it is typed.
    run.type_text(&format!("{}\n", command.replace("ENDED", "EN''DED")))?;
    run.wait_for("BENCH-ENDED", LIMIT)?;
    let microseconds = begin.elapsed().as_secs_f64() * 1e6;
    run.terminate()?.report()?;
    let log = Log::read(&log)?;
    let sums = log.sums(0.0..log.seconds());
    Ok(Done {
        microseconds,
        stops: sums.stops as f64,
        bytes: (sums.turn_bytes + sums.delta_bytes) as f64,
    })
}
