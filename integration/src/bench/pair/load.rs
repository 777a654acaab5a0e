//! What protection costs under load, and how far the backup is behind.

use std::time::Instant;

use anyhow::Result;
use lockstep_integration::Kind;
use lockstep_integration::cpu::{CpuTime, Shares, cpu_ns};
use lockstep_integration::load::{Benchmark, redis_cli};
use lockstep_integration::pair::number;
use serde_json::{Value, json};

use super::cores::Cores;
use super::machine::{Machine, Round, Way, rounds};
use super::watch::{LagWatch, growth, quantile};
use crate::Scale;
use crate::pairs::{Pair, Sample, median, ratio};
use crate::redis::command;
use crate::table::{Row, Table};

/// Measurements of one kind in a process.
const PIECES: usize = 4;
/// Said once.
const BESIDE: &str =
    "beside unprotected and recorded runs an unprotected machine with the same load, on the backup's core";

/// Ratios to unprotected of protected, which has the goal, and of recorded; `rows` of the two that there are of each.
fn ratios(table: &mut Table, what: &str, samples: &[Round<Sample>], goal: Option<f64>, rows: usize) {
    for (way, name, goal) in [(2, "protected", goal), (1, "recorded", None)] {
        let pairs: Vec<Pair> = samples.iter().map(|round| (round[0], round[way])).collect();
        let all = ratio(what, [name, "unprotected"], &pairs, goal);
        table.add_all(all.into_iter().take(rows));
    }
}

/// What a protected run tells about itself.
#[derive(Default)]
struct Told {
    /// Milliseconds, in the order of time.
    lags: Vec<f64>,
    before: Value,
    after: Value,
    /// Bytes of frames for the guest.
    bytes_in: f64,
    /// Where the primary's and the backup's vCPU time went; none of a machine without a backup.
    spent: Vec<Shares>,
}

impl Told {
    fn more(&self, name: &str) -> Result<f64> {
        Ok(number(&self.after, name)? - number(&self.before, name)?)
    }
}

/// Runs a load; the lag and the status are looked at if there is a backup.
fn observe<T>(machine: &mut Machine, way: Way, load: impl FnOnce(&mut Machine) -> Result<T>) -> Result<(T, Told)> {
    if way != Way::Protected {
        return Ok((load(machine)?, Told::default()));
    }
    let host = machine.node.host;
    let (before, bytes) = (machine.status()?, machine.scene.pair.network.bytes_in(host)?);
    let watch = LagWatch::start(machine.socket())?;
    let pids: Vec<u32> = [Some(&machine.node), machine.backup.as_ref()]
        .into_iter()
        .flatten()
        .map(|node| node.run.pid())
        .collect();
    let times = || pids.iter().map(|&pid| CpuTime::now(pid)).collect::<Result<Vec<_>>>();
    let began = times()?;
    let result = load(machine)?;
    let ended = times()?;
    let told = Told {
        lags: watch.finish()?,
        before,
        after: machine.status()?,
        bytes_in: (machine.scene.pair.network.bytes_in(host)? - bytes) as f64,
        spent: ended.iter().zip(&began).map(|(end, begin)| end.since(begin)).collect(),
    };
    Ok((result, told))
}

/// Lag and what it costs.
fn add_lag(table: &mut Table, what: &str, told: &[&Told]) -> Result<()> {
    let all = || told.iter().flat_map(|told| told.lags.iter().copied());
    let note = format!(
        "p50 {:.1}, greatest {:.1} of {} looks",
        quantile(all(), 0.5),
        quantile(all(), 1.0),
        all().count()
    );
    let row = Row::new(format!("lag of the backup, {what}, p99"), quantile(all(), 0.99), "ms");
    table.add(
        row.at_most(250.0)
            .note(note)
            .data(json!(told.iter().map(|told| &told.lags).collect::<Vec<_>>())),
    );
    let growths: Vec<f64> = told.iter().map(|told| growth(&told.lags)).collect();
    table.add(
        Row::new("  its growth", median(growths.iter().copied()), "ms")
            .note("last third of a run against the first")
            .data(json!(growths)),
    );
    let mut shares = [Vec::new(), Vec::new(), Vec::new()];
    for told in told {
        let seconds = told.more("guest_seconds")?;
        shares[0].push(100.0 * told.more("throttled_seconds")? / seconds);
        shares[1].push(told.more("forced_stops")? / seconds);
        shares[2].push(told.more("carried_pages")? / seconds);
    }
    let [throttled, forced, pages] = shares.map(median);
    table.add(
        Row::new("  held back for it", throttled, "%").note(format!("{forced:.1} forced stops/s, {pages:.0} pages/s")),
    );
    for (index, side) in ["primary", "backup"].into_iter().enumerate() {
        add_spent(table, side, told.iter().filter_map(|told| told.spent.get(index)));
    }
    Ok(())
}

/// Why it lags, or does not: a vCPU that waits for a core is slowed by its neighbours, one that sleeps has nothing to do.
fn add_spent<'a>(table: &mut Table, side: &str, spent: impl Iterator<Item = &'a Shares> + Clone) {
    let percent = |of: fn(&Shares) -> f64| median(spent.clone().map(|shares| 100.0 * of(shares)));
    let row = Row::new(
        format!("  the {side}'s vCPU thread waits for a core"),
        percent(|shares| shares.waited),
        "%",
    );
    let note = format!(
        "on one {:.0} %, asleep {:.0} %",
        percent(|shares| shares.ran),
        percent(|shares| shares.slept)
    );
    let all: Vec<_> = spent.map(|shares| [shares.ran, shares.waited, shares.slept]).collect();
    table.add(row.note(note).data(json!(all)));
}

/// Registers, cache, and a memory writer.
pub fn compute(scale: Scale, table: &mut Table) -> Result<()> {
    let cores = Cores::take()?;
    println!("pair: {BESIDE}");
    table.add(cores.noise()?);
    let pieces: Vec<_> = [["reg 200"; PIECES], ["cache 100"; PIECES]].concat();
    let writes = scale.pick("memwrite 6000 8", "memwrite 1000 8");
    let runs = rounds(scale.pick(3, 1), |way| {
        eprintln!("bench:   {way:?}");
        let mut machine = Machine::start(&cores, Kind::Memory, way)?;
        let computed = observe(&mut machine, way, |machine| {
            pieces
                .iter()
                .map(|arguments| machine.bench(arguments))
                .collect::<Result<Vec<_>>>()
        })?;
        let written = observe(&mut machine, way, |machine| machine.bench(writes))?;
        Ok((computed, written))
    })?;
    for (index, name) in ["register-bound compute", "cache-bound compute"]
        .into_iter()
        .enumerate()
    {
        let samples: Vec<_> = runs
            .iter()
            .flat_map(|round| {
                (index * PIECES..(index + 1) * PIECES).map(|piece| round.each_ref().map(|run| run.0.0[piece]))
            })
            .collect();
        ratios(table, name, &samples, Some(0.95), 2);
    }
    add_lag(
        table,
        "compute",
        &runs.iter().map(|round| &round[2].0.1).collect::<Vec<_>>(),
    )?;
    let samples: Vec<_> = runs.iter().map(|round| round.each_ref().map(|run| run.1.0)).collect();
    // Not by CPU time: that has the first touch of each page in it, which takes longer than writing to all.
    ratios(table, "memory writer", &samples, None, 1);
    add_lag(
        table,
        "memory writer",
        &runs.iter().map(|round| &round[2].1.1).collect::<Vec<_>>(),
    )
}

/// Clients of Redis with a disk.
pub fn redis(scale: Scale, table: &mut Table) -> Result<()> {
    let cores = Cores::take()?;
    println!("pair: {BESIDE}");
    table.add(cores.noise()?);
    let requests = scale.pick(100, 20);
    let runs = rounds(scale.pick(4, 1), |way| {
        eprintln!("bench:   {way:?}");
        let mut machine = Machine::start(&cores, Kind::Redis, way)?;
        observe(&mut machine, way, |machine| serve(machine, requests))
    })?;
    let samples: Vec<_> = runs.iter().map(|round| round.each_ref().map(|run| run.0)).collect();
    ratios(table, "Redis SET and GET", &samples, Some(0.75), 2);
    let rate = |way: usize| 2.0 * f64::from(requests) * median(samples.iter().map(|round| round[way].rate));
    table.add(Row::new("  protected", rate(2), "requests/s").note(format!(
        "recorded {:.0}, unprotected {:.0}",
        rate(1),
        rate(0)
    )));
    let told: Vec<_> = runs.iter().map(|round| &round[2].1).collect();
    for (name, quantile, goal) in [("p50", "held_p50_ms", 0.5), ("p99", "held_p99_ms", 5.0)] {
        let times: Vec<f64> = told
            .iter()
            .map(|told| number(&told.after, quantile))
            .collect::<Result<_>>()?;
        table.add(
            Row::new(
                format!("output held, `received`, {name}"),
                median(times.iter().copied()),
                "ms",
            )
            .at_most(goal)
            .note("from the guest's stop to its leaving; median of the runs, each since its start")
            .data(json!(times)),
        );
    }
    add_lag(table, "Redis", &told)?;
    let logs: Vec<f64> = told.iter().map(|told| told.more("log_bytes")).collect::<Result<_>>()?;
    let stops: Vec<f64> = told.iter().map(|told| told.more("stop")).collect::<Result<_>>()?;
    let pages: Vec<f64> = told
        .iter()
        .map(|told| told.more("carried_pages"))
        .collect::<Result<_>>()?;
    let overheads = told.iter().zip(&logs).map(|(told, log)| log / told.bytes_in);
    table.add(
        Row::new("log sent / bytes that the guest received", median(overheads), "").note(format!(
            "{:.0} bytes of log, {:.0} received, {:.0} stops, {:.0} pages in deltas; without QUIC",
            median(logs.iter().copied()),
            median(told.iter().map(|told| told.bytes_in)),
            median(stops),
            median(pages),
        )),
    );
    Ok(())
}

/// redis-benchmark against the machine, and the one beside it.
fn serve(machine: &mut Machine, requests: u32) -> Result<Sample> {
    let client = &machine.scene.pair.network.client;
    let beside = machine.beside.as_ref().map(|beside| &beside.namespace);
    for namespace in [Some(client), beside].into_iter().flatten() {
        // The first answer says that the guest runs, and knows its neighbour.
        redis_cli(namespace, &["PING"])?;
    }
    let also = beside
        .map(|namespace| Benchmark::start(namespace, requests))
        .transpose()?;
    let pid = machine.node.run.pid();
    let cpu = cpu_ns(pid)?;
    let lines = Benchmark::start(client, requests)?.wait()?;
    let cpu = cpu_ns(pid)? - cpu;
    let at = Instant::now();
    if let Some(also) = also {
        also.wait()?;
    }
    let mut seconds = 0.0;
    for line in lines {
        seconds += f64::from(requests) / command(&line)?.1;
    }
    Ok(Sample {
        rate: 1.0 / seconds,
        cpu_rate: 1e9 / cpu,
        at,
    })
}
