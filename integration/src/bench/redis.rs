//! Redis and its disk, recorded and not.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use lockstep_integration::cpu::cpu_ns;
use lockstep_integration::load::Benchmark;
use lockstep_integration::{Booted, Kind, Namespace, Verify, work_dir};
use serde_json::json;

use crate::Scale;
use crate::log::Log;
use crate::pairs::{KINDS, Pair, Sample, alternate, bench, median, ratio};
use crate::table::{Row, Table};

struct Measured {
    commands: Vec<(String, f64)>,
    /// Both commands together.
    requests: Sample,
    files: Sample,
}

fn run_one(namespace: &Namespace, dir: &Path, log: Option<&Path>, requests: u32, files: &str) -> Result<Measured> {
    let mut run = Booted::get(Kind::Redis)?.go_on_inside(namespace, dir)?;
    if let Some(log) = log {
        // A recording wants an empty directory.
        let _ = std::fs::remove_dir_all(log);
        run = run.record(log);
    }
    let mut run = run.start()?;
    // The first answer says that the guest runs, and knows its neighbour.
    lockstep_integration::load::redis_cli(namespace, &["PING"])?;
    let pid = run.pid();
    let cpu = cpu_ns(pid)?;
    let lines = Benchmark::start(namespace, requests)?.wait()?;
    let cpu = cpu_ns(pid)? - cpu;
    let commands = lines.iter().map(|line| command(line)).collect::<Result<Vec<_>>>()?;
    let seconds: f64 = commands.iter().map(|(_, rate)| f64::from(requests) / rate).sum();
    let files = bench(&mut run, files)?;
    run.terminate()?.report()?;
    Ok(Measured {
        commands,
        requests: Sample {
            rate: 1.0 / seconds,
            cpu_rate: 1e9 / cpu,
            at: Instant::now(),
        },
        files,
    })
}

/// `SET: 1234.56 requests per second, p50=...`
pub fn command(line: &str) -> Result<(String, f64)> {
    let (name, rest) = line.split_once(": ").with_context(|| line.to_owned())?;
    let rate = rest
        .split(' ')
        .next()
        .and_then(|rate| rate.parse().ok())
        .with_context(|| line.to_owned())?;
    Ok((name.into(), rate))
}

pub fn run(scale: Scale, table: &mut Table) -> Result<()> {
    let namespace = Namespace::create()?;
    let dir = work_dir("bench-redis")?;
    let log = dir.join("log");
    let (requests, files) = (scale.pick(200, 40), scale.pick("filewrite 192 16", "filewrite 64 16"));
    let runs = alternate(scale.pick(4, 1), |recorded| {
        run_one(&namespace, &dir, recorded.then_some(log.as_path()), requests, files)
    })?;
    let pairs: Vec<Pair> = runs
        .iter()
        .map(|(plain, recorded)| (plain.requests, recorded.requests))
        .collect();
    table.add_all(ratio("Redis SET and GET", KINDS, &pairs, Some(0.85)));
    for index in 0..runs.first().map_or(0, |(plain, _)| plain.commands.len()) {
        let rates = |of: fn(&(Measured, Measured)) -> &Measured| {
            runs.iter()
                .filter_map(|pair| Some(of(pair).commands.get(index)?.1))
                .collect::<Vec<_>>()
        };
        let (plain, recorded) = (rates(|pair| &pair.0), rates(|pair| &pair.1));
        let name = &runs[0].0.commands[index].0;
        table.add(
            Row::new(
                format!("  {name}, recorded"),
                median(recorded.iter().copied()),
                "requests/s",
            )
            .note(format!("unrecorded {:.0}", median(plain.iter().copied())))
            .data(json!({ "recorded": recorded, "unrecorded": plain })),
        );
    }
    let pairs: Vec<Pair> = runs
        .iter()
        .map(|(plain, recorded)| (plain.files, recorded.files))
        .collect();
    table.add_all(ratio("file writes with fsync", KINDS, &pairs, Some(0.85)));

    // The log up to where the file writes began.
    let all = Log::read(&log)?;
    let sums = all.sums(0.0..all.last_line());
    let allowed = 1.2 * sums.network_bytes as f64 + 8.0 * sums.stops as f64;
    table.add(
        Row::new(
            "Redis log / (1.2 x network in + 8 x stops)",
            sums.turn_bytes as f64 / allowed,
            "",
        )
        .at_most(1.0)
        .note(format!(
            "{} bytes of turns, {} of network, {} stops, {} turns; {} bytes of {} deltas apart",
            sums.turn_bytes, sums.network_bytes, sums.stops, sums.turns, sums.delta_bytes, sums.deltas
        )),
    );
    let verify = Verify::run(&log)?;
    let report = verify.identical()?;
    let speed = report["guest_seconds"].as_f64().unwrap_or(0.0) / report["wall_seconds"].as_f64().unwrap_or(1.0);
    table.add(Row::new("replay of the Redis load", speed, "x").note("of real time; identical"));
    Ok(())
}
