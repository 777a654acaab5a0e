//! Time travel: a recording's machine is taken to stops in random order, and is each time what a straight replay makes of
//! it, whatever the checkpoints have room for.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::{require_root_net, soak};
use lockstep_integration::load::{Benchmark, FIRST_REQUESTS, paced};
use lockstep_integration::paths::program;
use lockstep_integration::process::bound;
use lockstep_integration::random::Random;
use lockstep_integration::{Booted, Kind, Namespace, work_dir};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(180);
const STOPS: usize = 20;

/// Ten minutes in the long form.
fn seconds() -> u64 {
    if soak() { 600 } else { 8 }
}

/// Records Redis under load from the network, and files that are written to its disk. Returns the first and last stop.
fn record(dir: &Path) -> Result<(u64, u64)> {
    let namespace = Namespace::create()?;
    let run = Booted::get(Kind::Redis)?.go_on_inside(&namespace, dir)?;
    let mut run = run.record(&dir.join("log")).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    let begin = Instant::now();
    let (mut round, mut requests) = (0, FIRST_REQUESTS);
    while begin.elapsed() < Duration::from_secs(seconds()) {
        let since = Instant::now();
        let benchmark = Benchmark::start(&namespace, requests)?;
        run.type_text(&format!(
            "date >>/data/log && fsync /data/log && echo WRITTEN-$(({round} + 1000))\n"
        ))?;
        run.wait_for(&format!("WRITTEN-{}", round + 1000), LIMIT)?;
        benchmark.wait()?;
        requests = paced(requests, since.elapsed());
        round += 1;
    }
    run.terminate()?.report()?;
    let info = debug("info", &dir.join("log"), &["--json"])?;
    let info: Value = serde_json::from_str(&info)?;
    let first = info["first_stop"].as_u64().context("no first stop")?;
    let last = info["last_stop"].as_u64().context("no last stop")?;
    Ok((first, last))
}

/// What `lockstep-debug` prints.
fn debug(command: &str, log: &Path, arguments: &[&str]) -> Result<String> {
    let output = bound(program("lockstep-debug")?)
        .arg(command)
        .arg(log)
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    ensure!(
        output.status.success(),
        "{command} {arguments:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// The lines of `replay` or `show` at `stops`.
fn at(command: &str, flag: &str, log: &Path, stops: &[u64], more: &[&str]) -> Result<Vec<Value>> {
    let stops: Vec<_> = stops.iter().map(u64::to_string).collect();
    let mut arguments = vec!["--json", "--digest"];
    arguments.extend(more);
    for stop in &stops {
        arguments.extend([flag, stop]);
    }
    let text = debug(command, log, &arguments)?;
    let lines: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
    Ok(lines?)
}

#[test]
fn seeking_gives_what_a_straight_replay_gives() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let dir = work_dir("time-travel")?;
    let (first, last) = record(&dir)?;
    let log = dir.join("log");
    let mut random = Random::seeded();
    let mut order: Vec<u64> = (0..STOPS).map(|_| first + random.below(last - first + 1)).collect();
    let mut ascending = order.clone();
    ascending.sort_unstable();
    let straight: HashMap<u64, String> = at("replay", "--to", &log, &ascending, &[])?
        .iter()
        .map(|line| Some((line["stop"].as_u64()?, line["digest"].as_str()?.to_owned())))
        .collect::<Option<_>>()
        .context("a line lacks something")?;
    // One pass over all of it first, as a session has.
    order.insert(0, last);
    // With so few checkpoints a jump takes as long as a replay of half of the recording: fewer of them will do.
    let few = &order[..=STOPS / 3];
    let spill = dir.join("spill");
    std::fs::create_dir(&spill)?;
    let spill = spill.to_str().context("path")?;
    for (order, more) in [
        (&order[..], &[][..]),
        (few, &["--checkpoint-memory-mib", "2"]),
        (few, &["--checkpoint-memory-mib", "2", "--checkpoint-dir", spill]),
    ] {
        let shown = at("show", "--at", &log, order, more)?;
        ensure!(shown.len() == order.len());
        let mut seconds = Vec::new();
        for (stop, line) in order.iter().zip(&shown).skip(1) {
            ensure!(line["stop"] == *stop, "{line}");
            ensure!(
                line["digest"].as_str() == straight.get(stop).map(String::as_str),
                "at stop {stop} the machine is not what a straight replay makes of it ({more:?})"
            );
            seconds.extend(line["seek_seconds"].as_f64());
        }
        seconds.sort_unstable_by(f64::total_cmp);
        let kept = shown.last().context("nothing was shown")?;
        println!(
            "{} random stops of {first} to {last} {more:?}: median seek {:.2} s, longest {:.2} s; {} checkpoints, {} KiB, {} KiB in a file",
            seconds.len(),
            seconds[seconds.len() / 2],
            seconds[seconds.len() - 1],
            kept["checkpoints"],
            kept["checkpoint_bytes"].as_u64().unwrap_or(0) >> 10,
            kept["checkpoint_file_bytes"].as_u64().unwrap_or(0) >> 10
        );
        let spilled = kept["checkpoint_file_bytes"].as_u64() > Some(0);
        ensure!(spilled == more.contains(&spill), "{kept}");
        ensure!(kept["checkpoints"].as_u64() > Some(2), "{kept}");
    }
    Ok(())
}
