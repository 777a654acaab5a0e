//! What a recording counts in a second of guest time, on this host and on an emulated AMD host side by side: an emulator is
//! slow, but how often a guest stops, and what that brings into the log, is as on a real host.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep_integration::load::Benchmark;
use lockstep_integration::paths::target_dir;
use lockstep_integration::{Booted, Kind, Namespace, work_dir};
use serde_json::{Value, json};

use crate::Scale;
use crate::log::Log;
use crate::pairs::{LIMIT, PROMPT, bench};
use crate::recorder::recorded_redis;
use crate::table::{Row, Table};

/// What of it the emulated host does.
pub const HERE: &str = "counts-here";
/// Requests of one round of load: an emulated host has answered them in seconds.
const REQUESTS: u32 = 20;

/// Measures on both, and compares.
pub fn run(scale: Scale, table: &mut Table) -> Result<()> {
    let amd = match on_amd(scale, HERE) {
        Ok(amd) => Some(amd),
        Err(error) => {
            table.skip("counts on AMD", &format!("{error:#}"));
            None
        }
    };
    for row in measure(scale)? {
        let what = row["what"].as_str().context("what")?;
        let here = row["value"].as_f64().context("value")?;
        let other = amd.as_ref().and_then(|rows| {
            let row = rows.iter().find(|row| row["what"] == what)?;
            row["value"].as_f64()
        });
        let note = other.map_or(String::new(), |other| {
            format!("on the AMD host {other:.1}: {:.2} x", other / here)
        });
        table.add(Row::new(what, here, "/s").note(note).data(json!(other)));
    }
    Ok(())
}

/// Measures here alone.
pub fn here(scale: Scale, table: &mut Table) -> Result<()> {
    for row in measure(scale)? {
        let (what, value) = (row["what"].as_str(), row["value"].as_f64());
        table.add(Row::new(what.context("what")?, value.context("value")?, "/s"));
    }
    Ok(())
}

/// A section on an emulated AMD host, after ours has ended: each has both cores. Returns its rows.
pub fn on_amd(scale: Scale, section: &str) -> Result<Vec<Value>> {
    let out = target_dir().join("bench/amd");
    fs::create_dir_all(&out)?;
    let program = std::env::current_exe()?;
    let command = format!(
        "ONLY={section} QUICK={} {} && cp {}/bench/results.json {}",
        u8::from(scale.pick(false, true)),
        program.display(),
        target_dir().display(),
        out.display()
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/amd.sh");
    let run = Command::new(script)
        .args(["--time", "900", "--out"])
        .arg(&out)
        .arg(command)
        .output()?;
    ensure!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
            .lines()
            .last()
            .unwrap_or("it failed")
    );
    let results: Value = serde_json::from_slice(&fs::read(out.join("results.json"))?)?;
    Ok(results["rows"].as_array().context("rows")?.clone())
}

/// What a section measures on an emulated AMD host in two ways, of which `other` names the second: a row's data has its figure.
pub fn two_ways_on_amd(scale: Scale, section: &str, other: &str, table: &mut Table) -> Result<()> {
    let rows = match on_amd(scale, section) {
        Ok(rows) => rows,
        Err(error) => {
            table.skip(section, &format!("{error:#}"));
            return Ok(());
        }
    };
    for row in &rows {
        let (what, unit) = (row["what"].as_str(), row["unit"].as_str());
        let value = row["value"].as_f64().context("value")?;
        let second = row["data"].as_f64().context("data")?;
        let note = format!("with {other} {second:.2}: {:.2} x", second / value);
        let row = Row::new(what.context("what")?, value, unit.unwrap_or_default());
        table.add(row.note(note).data(json!(second)));
    }
    Ok(())
}

fn measure(scale: Scale) -> Result<Vec<Value>> {
    let dir = work_dir("bench-counts")?;
    let long = Duration::from_secs(scale.pick(60, 20));
    let mut rows = Vec::new();

    let idle = dir.join("idle");
    let run = Booted::get(Kind::Shell)?.go_on()?.record(&idle).start()?;
    run.wait_for(PROMPT, LIMIT)?;
    sleep(long);
    run.terminate()?.report()?;
    count("idle", &idle, &mut rows)?;

    let namespace = Namespace::create()?;
    let redis = dir.join("redis");
    let run = recorded_redis(&namespace, &dir, &redis)?;
    let begin = Instant::now();
    while begin.elapsed() < long {
        Benchmark::start(&namespace, REQUESTS)?.wait()?;
    }
    run.terminate()?.report()?;
    count("Redis under load", &redis, &mut rows)?;

    let compute = dir.join("compute");
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(&compute).start()?;
    run.wait_for(PROMPT, LIMIT)?;
    let begin = Instant::now();
    while begin.elapsed() < long {
        bench(&mut run, "reg 1000")?;
    }
    run.terminate()?.report()?;
    count("compute", &compute, &mut rows)?;
    Ok(rows)
}

/// The sums of a log, for each second of guest time.
fn count(load: &str, log: &Path, rows: &mut Vec<Value>) -> Result<()> {
    let log = Log::read(log)?;
    let seconds = log.seconds();
    let sums = log.sums(0.0..seconds);
    for (name, count) in [
        ("stops", sums.stops),
        ("forced stops", sums.deltas),
        ("pages in deltas", sums.delta_pages),
        ("bytes of log", sums.turn_bytes + sums.delta_bytes),
    ] {
        rows.push(json!({"what": format!("{load}: {name}"), "value": count as f64 / seconds}));
    }
    Ok(())
}
