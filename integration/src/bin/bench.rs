//! `make bench`: measures what a recording costs and what a pair does, prints a table and writes
//! `target/bench/results.json`.
//!
//! It never judges: a goal that is missed is a line in the table. The exit status is 1 only if something did not run.
//! QUICK=1 takes about five minutes and not twenty; ONLY=boot,snapshot,loop,compute,memwrite,redis,idle,recorder,counts,stock,clocks,
//! codec,pair-compute,pair-redis,pair-failover,pair-join picks sections; ONLY=pair picks all of a pair's. ONLY=memory watches what
//! a busy pair holds in memory, for half an hour or LOCKSTEP_MEMORY_MINUTES.

#[path = "../bench/boot.rs"]
mod boot;
#[path = "../bench/clocks.rs"]
mod clocks;
#[path = "../bench/compute.rs"]
mod compute;
#[path = "../bench/counts.rs"]
mod counts;
#[path = "../bench/cycle.rs"]
mod cycle;
#[path = "../bench/idle.rs"]
mod idle;
#[path = "../bench/log.rs"]
mod log;
#[path = "../bench/pair/mod.rs"]
mod pair;
#[path = "../bench/pairs.rs"]
mod pairs;
#[path = "../bench/recorder.rs"]
mod recorder;
#[path = "../bench/redis.rs"]
mod redis;
#[path = "../bench/stock.rs"]
mod stock;
#[path = "../bench/table.rs"]
mod table;

use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use lockstep_integration::gate;
use lockstep_integration::paths::target_dir;
use serde_json::json;

use table::{Row, Table};

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    quick: bool,
}

impl Scale {
    /// One of two numbers.
    fn pick<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

type Section = (&'static str, fn(Scale, &mut Table) -> Result<()>);

const SECTIONS: [Section; 20] = [
    ("boot", boot::boot),
    ("snapshot", boot::snapshot),
    ("loop", cycle::run),
    ("compute", compute::compute),
    ("memwrite", compute::memwrite),
    ("redis", redis::run),
    ("idle", idle::run),
    ("recorder", recorder::run),
    ("counts", counts::run),
    (counts::HERE, counts::here),
    ("stock", stock::run),
    (stock::HERE, stock::here),
    ("clocks", clocks::run),
    (clocks::HERE, clocks::here),
    ("codec", codec),
    ("pair-compute", pair::compute),
    ("pair-redis", pair::redis),
    ("pair-failover", pair::failover),
    ("pair-join", pair::join),
    ("memory", pair::memory),
];
/// Half an hour.
const LONG: &str = "memory";
/// Only where they are named: half an hour, and what another section runs on another host.
const NAMED: [&str; 4] = [LONG, counts::HERE, stock::HERE, clocks::HERE];

fn main() -> Result<ExitCode> {
    let scale = Scale {
        quick: std::env::var_os("QUICK").is_some_and(|value| value == "1"),
    };
    let only = std::env::var("ONLY").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<_> = load.split_whitespace().take(3).collect();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let begin = Instant::now();
    println!("load average at the start: {} on {cores} cores", load.join(" "));
    let mut table = Table::default();
    let kvm = gate::kvm();
    for (name, section) in SECTIONS {
        let is_wanted = |wanted: &str| wanted == name || wanted == "pair" && name.starts_with("pair-");
        let is_named = only.split(',').any(is_wanted);
        if !is_named && (!only.is_empty() || NAMED.contains(&name)) {
            continue;
        }
        let needs = match name {
            "codec" => Ok(()),
            _ if (name == LONG || name.starts_with("pair-")) && cores < 2 => {
                Err("a pair is measured on two cores".into())
            }
            _ if name == "redis" || name.starts_with("counts") || name == LONG || name.starts_with("pair-") => {
                kvm.clone().and_then(|()| gate::root_net())
            }
            _ => kvm.clone(),
        };
        if let Err(reason) = needs {
            table.skip(name, &reason);
            continue;
        }
        eprintln!("bench: {name} ({:.0} s so far)", begin.elapsed().as_secs_f64());
        if let Err(error) = section(scale, &mut table) {
            eprintln!("bench: {name}: {error:#}");
            table.fail(name, &format!("{error:#}"));
        }
    }
    table.print();
    let seconds = begin.elapsed().as_secs_f64();
    println!("{seconds:.0} s");
    let directory = target_dir().join("bench");
    fs::create_dir_all(&directory)?;
    let results = json!({
        "quick": scale.quick,
        "cores": cores,
        "load_average_at_start": load.iter().filter_map(|part| part.parse().ok()).collect::<Vec<f64>>(),
        "seconds": seconds,
        "rows": table.json(),
        "skipped": table.skipped,
        "failed": table.failed,
    });
    let path = directory.join("results.json");
    fs::write(&path, format!("{results:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(ExitCode::from(u8::from(!table.failed.is_empty())))
}

/// What `cargo bench -p lockstep-logcodec` printed; bench.sh runs it before.
fn codec(_: Scale, table: &mut Table) -> Result<()> {
    let path = target_dir().join("bench/codec.txt");
    let Ok(text) = fs::read_to_string(&path) else {
        table.skip("codec", "target/bench/codec.txt is missing: bench.sh makes it");
        return Ok(());
    };
    let line = text
        .lines()
        .rev()
        .find(|line| line.starts_with('{'))
        .context("codec.txt has no JSON line")?;
    let value: serde_json::Value = serde_json::from_str(line)?;
    for figure in value["figures"].as_array().context("figures")? {
        let (name, unit) = (
            figure["name"].as_str().unwrap_or(""),
            figure["unit"].as_str().unwrap_or(""),
        );
        let row = Row::new(
            format!("logcodec: {name}"),
            figure["value"].as_f64().context("value")?,
            unit,
        );
        let small_turns = name.starts_with("encode") || name.starts_with("decode");
        table.add(if small_turns { row.at_least(3.0) } else { row });
    }
    Ok(())
}
