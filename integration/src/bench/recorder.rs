//! The flight recorder: how fast recordings are replayed, listed and travelled in, and what that holds in memory.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep_integration::load::Benchmark;
use lockstep_integration::random::Random;
use lockstep_integration::{Booted, Debug, Kind, Namespace, Running, gate, work_dir};
use serde_json::{Value, json};

use crate::Scale;
use crate::pairs::{LIMIT, PROMPT, bench, median};
use crate::table::{Row, Table};

/// Random stops that are gone to.
const SEEKS: usize = 20;

pub fn run(scale: Scale, table: &mut Table) -> Result<()> {
    let dir = work_dir("bench-recorder")?;
    let idle = dir.join("idle");
    let run = Booted::get(Kind::Shell)?.go_on()?.record(&idle).start()?;
    run.wait_for(PROMPT, LIMIT)?;
    sleep(Duration::from_secs(scale.pick(60, 15)));
    run.terminate()?.report()?;
    measure("idle", &idle, table)?;

    if gate::root_net().is_ok() {
        let namespace = Namespace::create()?;
        let redis = dir.join("redis");
        let run = recorded_redis(&namespace, &dir, &redis)?;
        Benchmark::start(&namespace, scale.pick(300, 40))?.wait()?;
        run.terminate()?.report()?;
        measure("Redis", &redis, table)?;
    }

    let compute = dir.join("compute");
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(&compute).start()?;
    run.wait_for(PROMPT, LIMIT)?;
    for _ in 0..scale.pick(20, 5) {
        bench(&mut run, "reg 1000")?;
    }
    run.terminate()?.report()?;
    measure("compute", &compute, table)
}

/// A Redis that is recorded in `log` and has answered.
pub fn recorded_redis(namespace: &Namespace, dir: &Path, log: &Path) -> Result<Running> {
    let run = Booted::get(Kind::Redis)?.go_on_inside(namespace, dir)?;
    let run = run.record(log).start()?;
    lockstep_integration::load::redis_cli(namespace, &["PING"])?;
    Ok(run)
}

fn number(value: &Value, name: &str) -> Result<f64> {
    value[name].as_f64().with_context(|| format!("no {name} in {value}"))
}

fn debug(arguments: &[&str]) -> Result<Debug> {
    let done = Debug::run(arguments)?;
    ensure!(done.status.success(), "{arguments:?}: {}", done.messages);
    Ok(done)
}

fn measure(name: &str, log: &Path, table: &mut Table) -> Result<()> {
    let path = log.to_str().context("the path is no text")?;
    let replayed = debug(&["replay", path, "--to", "end", "--json"])?.json()?;
    let (guest, wall) = (number(&replayed, "guest_seconds")?, number(&replayed, "wall_seconds")?);
    table.add(
        Row::new(format!("flight recorder, replay of {name}"), guest / wall, "x").note(format!(
            "of real time: {guest:.1} s of guest time in {wall:.1} s, {} stops",
            replayed["stops_replayed"]
        )),
    );
    let begin = Instant::now();
    let events = debug(&["events", path, "--json"])?.text().lines().count();
    let seconds = begin.elapsed().as_secs_f64();
    table.add(
        Row::new("  turns listed, as JSON", events as f64 / seconds / 1e3, "k/s")
            .note(format!("{events} turns in {seconds:.2} s")),
    );
    let (last, first) = (
        number(&replayed, "stop")? as u64,
        number(&replayed, "stops_replayed")? as u64,
    );
    let (first, mut random) = (last - first, Random::new(1));
    let stops: Vec<String> = (0..SEEKS)
        .map(|_| (first + random.below(last - first + 1)).to_string())
        .collect();
    let mut arguments = vec!["show", path, "--json", "--at", "end"];
    arguments.extend(stops.iter().flat_map(|stop| ["--at", stop.as_str()]));
    let shown = debug(&arguments)?.json_lines()?;
    let seeks = shown[1..]
        .iter()
        .map(|shown| number(shown, "seek_seconds"))
        .collect::<Result<Vec<_>>>()?;
    let end = shown.last().context("nothing was shown")?;
    let mib = number(end, "checkpoint_bytes")? / f64::from(1 << 20);
    table.add(
        Row::new("  to a random stop, after one pass", median(seeks.iter().copied()), "s")
            .at_most(2.0)
            .note(format!(
                "median of {SEEKS}; longest {:.2} s; the pass took {:.1} s",
                seeks.iter().copied().fold(0.0, f64::max),
                number(&shown[0], "seek_seconds")?
            ))
            .data(json!(seeks)),
    );
    table.add(Row::new("  checkpoints in memory", mib, "MiB").note(format!("{} checkpoints", end["checkpoints"])));
    Ok(())
}
