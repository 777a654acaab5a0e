//! How long a guest stands still when a backup joins.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep_integration::load::Benchmark;
use lockstep_integration::pair::{Counter, LIMIT, Node, Scene, Setup};
use serde_json::json;

use super::cores::Cores;
use crate::Scale;
use crate::pairs::{median, spread};
use crate::table::{Row, Table};

/// A backup that is killed is given up after this.
const DEADLINE: Duration = Duration::from_secs(1);
/// What the memory writer takes until it has touched all its pages, while nobody else wants anything.
const WRITER_STARTS: Duration = Duration::from_secs(12);
/// From one look to the next.
const LOOK: Duration = Duration::from_millis(10);
/// Requests of the clients beside the one that counts; more than are answered while a backup joins.
const REQUESTS: u32 = 100_000;

/// Typed into the guest: writes to 8 MiB over and over, for longer than anybody looks.
const WRITER: &str = "bench memwrite 1000000000 8 &\n";

/// Backups that join a machine of 64 MiB one after the other, while clients want answers of it.
pub fn run(scale: Scale, table: &mut Table) -> Result<()> {
    let cores = Cores::take()?;
    table.add(cores.noise()?);
    let mut scene = Setup::new("bench-join").busy().deadline(DEADLINE).build()?;
    let mut primary = scene.start_primary(0)?;
    let counter = scene.count()?;
    let load = Benchmark::start(&scene.pair.network.client, REQUESTS)?;
    let count = scale.pick(5, 1);
    joins(&cores, &mut scene, &primary, &counter, count, "Redis", table)?;
    drop(load);
    counter.set_silent(true);
    primary.run.type_text(WRITER)?;
    std::thread::sleep(WRITER_STARTS);
    counter.set_silent(false);
    let _load = Benchmark::start(&scene.pair.network.client, REQUESTS)?;
    joins(
        &cores,
        &mut scene,
        &primary,
        &counter,
        count,
        "Redis and a memory writer",
        table,
    )?;
    let tally = counter.finish()?;
    ensure!(tally.broken == 0 && tally.jumps == 0, "{tally:?}");
    Ok(())
}

fn joins(
    cores: &Cores,
    scene: &mut Scene,
    primary: &Node,
    counter: &Counter,
    count: usize,
    load: &str,
    table: &mut Table,
) -> Result<()> {
    let (mut pauses, mut silences, mut durations) = (Vec::new(), Vec::new(), Vec::new());
    let mut pages = Vec::new();
    for _ in 0..count {
        counter.take_silence();
        let begin = Instant::now();
        let backup = scene.start_backup(1)?;
        join(cores, primary)?;
        durations.push(begin.elapsed().as_secs_f64());
        let told = |name| primary.number(name).with_context(|| format!("no {name} was told"));
        pauses.push(told("pause_us")? as f64 / 1e3);
        pages.push(told("pages")? as f64);
        silences.push(counter.take_silence().as_secs_f64() * 1e3);
        scene.kill(backup)?;
        primary.wait_for_state("not-protected (lost-connection)", LIMIT)?;
    }
    let (low, high) = spread(&pauses);
    let note = format!(
        "the longest of {count}, from {low:.1}; {:.0} pages in it; the client's longest silence meanwhile {:.0} ms; {:.1} s from the \
         backup's start to protected (medians)",
        median(pages.iter().copied()),
        median(silences.iter().copied()),
        median(durations.iter().copied())
    );
    let data = json!({ "pause_ms": pauses, "pages": pages, "silence_ms": silences, "seconds": durations });
    let what = format!("join of 64 MiB under {load}: pause");
    table.add(Row::new(what, high, "ms").at_most(100.0).note(note).data(data));
    Ok(())
}

/// Waits until the primary is protected. The vCPU's thread starts the one that copies, which is not to stay on its core.
fn join(cores: &Cores, primary: &Node) -> Result<()> {
    let begin = Instant::now();
    while !primary.state().starts_with("protected") {
        ensure!(begin.elapsed() < LIMIT, "it stays `{}`", primary.state());
        cores.pin(primary.run.pid())?;
        std::thread::sleep(LOOK);
    }
    Ok(())
}
