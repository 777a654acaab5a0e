//! What recording costs a guest that computes, and one that writes memory.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use lockstep_integration::{Booted, Kind, Verify, work_dir};
use serde_json::json;

use crate::Scale;
use crate::log::Log;
use crate::pairs::{KINDS, LIMIT, PROMPT, Pair, Sample, alternate, bench, ratio};
use crate::table::{Row, Table};

struct Ran {
    samples: Vec<Sample>,
    report: serde_json::Value,
    ended: Instant,
}

/// Runs `bench` commands in one process that goes on from the shell's snapshot.
fn shell(log: Option<&Path>, more: &[&str], benches: &[&str]) -> Result<Ran> {
    let mut run = Booted::get(Kind::Shell)?.go_on()?.args(more);
    if let Some(log) = log {
        // A recording wants an empty directory.
        let _ = std::fs::remove_dir_all(log);
        run = run.record(log);
    }
    let mut run = run.start()?;
    run.wait_for(PROMPT, LIMIT)?;
    let samples = benches
        .iter()
        .map(|arguments| bench(&mut run, arguments))
        .collect::<Result<_>>()?;
    let ended = Instant::now();
    Ok(Ran {
        samples,
        report: run.terminate()?.report()?,
        ended,
    })
}

/// Measurements of one kind in a process.
const PIECES: usize = 4;

/// Registers and cache, and what a forced stop costs.
pub fn compute(scale: Scale, table: &mut Table) -> Result<()> {
    let log = work_dir("bench-compute")?.join("log");
    // Short pieces: some of them run undisturbed.
    let (reg, cache) = ("reg 200", "cache 100");
    let benches: Vec<_> = [vec![reg; PIECES], vec![cache; PIECES]].concat();
    let recorded_or_not = |recorded: bool| shell(recorded.then_some(log.as_path()), &[], &benches);
    let runs = alternate(scale.pick(7, 3), recorded_or_not)?;
    for (index, name) in ["register-bound compute", "cache-bound compute"]
        .into_iter()
        .enumerate()
    {
        let pieces = index * PIECES..(index + 1) * PIECES;
        let pairs = runs.iter().flat_map(|(plain, recorded)| {
            pieces
                .clone()
                .map(|piece| (plain.samples[piece], recorded.samples[piece]))
        });
        table.add_all(ratio(name, KINDS, &pairs.collect::<Vec<Pair>>(), Some(0.97)));
    }
    let all = Log::read(&log)?;
    let sums = all.sums(0.0..f64::INFINITY);
    let report = Verify::run(&log)?;
    let report = report.identical()?;
    table.add(
        Row::new("  its forced stops", sums.deltas as f64 / all.seconds(), "/s")
            .note(format!(
                "{:.0} pages each, {:.0} bytes/s; {:.0} epochs/s of {:.0} pages; recording verified identical, {:.2} of its time carried",
                sums.delta_pages as f64 / sums.deltas.max(1) as f64,
                sums.delta_bytes as f64 / all.seconds(),
                sums.epochs as f64 / all.seconds(),
                report["epoch_pages"].as_f64().unwrap_or(0.0) / sums.epochs.max(1) as f64,
                report["carried_seconds"].as_f64().unwrap_or(0.0) / all.seconds(),
            ))
            .data(json!({ "deltas": sums.deltas, "delta_pages": sums.delta_pages, "delta_bytes": sums.delta_bytes })),
    );

    // The same computation with and without many more forced stops than are due.
    let reg = [scale.pick("reg 800", "reg 400")];
    let hz = ["--force-hz", "500"];
    let runs = alternate(scale.pick(3, 2), |many| {
        shell(Some(&log), if many { &hz } else { &[] }, &reg)
    })?;
    let mut costs = Vec::new();
    for (few, many) in &runs {
        let stops = |ran: &Ran| {
            let rate =
                ran.report["forced_stops"].as_f64().unwrap_or(0.0) / ran.report["wall_seconds"].as_f64().unwrap_or(1.0);
            rate / ran.samples[0].rate
        };
        let more_ns = 1e9 / many.samples[0].cpu_rate - 1e9 / few.samples[0].cpu_rate;
        costs.push(more_ns / (stops(many) - stops(few)).max(1.0) / 1e3);
    }
    table.add(
        Row::new(
            "forced stop with its delta",
            crate::pairs::median(costs.iter().copied()),
            "us",
        )
        .note("vCPU thread's CPU time, shadow faults after it included")
        .data(json!(costs)),
    );
    Ok(())
}

/// A guest that dirties memory as fast as it can.
pub fn memwrite(scale: Scale, table: &mut Table) -> Result<()> {
    let log = work_dir("bench-memwrite")?.join("log");
    let arguments = scale.pick("memwrite 400 24", "memwrite 400 8");
    let runs = alternate(scale.pick(3, 2), |recorded| {
        shell(recorded.then_some(log.as_path()), &[], &[arguments])
    })?;
    let pairs: Vec<Pair> = runs
        .iter()
        .map(|(plain, recorded)| (plain.samples[0], recorded.samples[0]))
        .collect();
    table.add_all(ratio("memory writer", KINDS, &pairs, None));
    let all = Log::read(&log)?;
    // Rounds alternate in which comes first, but the log is the last recorded run's in any case.
    let Some((_, recorded)) = runs.last() else {
        return Ok(());
    };
    let (sample, seconds) = (recorded.samples[0], 1.0 / recorded.samples[0].rate);
    let end = all.seconds() - (recorded.ended - sample.at).as_secs_f64();
    let sums = all.sums(end - seconds..end);
    let deltas = sums.deltas.max(1) as f64;
    table.add(
        Row::new("  its deltas", sums.deltas as f64 / seconds, "/s").note(format!(
            "{:.0} pages each, {:.1} MB/s, {:.0} bytes a page",
            sums.delta_pages as f64 / deltas,
            sums.delta_bytes as f64 / seconds / 1e6,
            sums.delta_bytes as f64 / sums.delta_pages.max(1) as f64,
        )),
    );
    Ok(())
}
