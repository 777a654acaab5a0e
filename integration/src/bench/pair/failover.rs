//! A primary that is killed: how long its client hears nothing, and where the time goes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::program_in_path;
use lockstep_integration::pair::{Alone, LIMIT, Protected, SOME, Setup};
use lockstep_integration::random::Random;
use serde_json::json;

use super::cores::Cores;
use crate::Scale;
use crate::pairs::{median, spread};
use crate::table::{Row, Table};

const HEARTBEAT: Duration = Duration::from_millis(50);
const DEADLINE: Duration = Duration::from_millis(150);
/// A kill comes up to this long after the client's count has begun.
const SOON: Duration = Duration::from_millis(500);

/// Milliseconds of one failover.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// The client's longest silence.
    silence: f64,
    /// From the question to the arbiter, when the deadline has passed, to the term.
    claim: f64,
    /// Replaying what had come.
    backlog: f64,
    /// From there to the guest's first step.
    start: f64,
}

/// Both arbiters.
pub fn run(scale: Scale, table: &mut Table) -> Result<()> {
    let cores = Cores::take()?;
    table.add(cores.noise()?);
    for (name, goal) in [("file", 30.0), ("etcd", 100.0)] {
        if name == "etcd"
            && let Err(reason) = program_in_path("etcd", "etcd-server")
        {
            table.skip("pair-failover, etcd", &reason);
            continue;
        }
        with_arbiter(&cores, name, goal, scale.pick(5, 1), table)?;
    }
    Ok(())
}

fn with_arbiter(cores: &Cores, name: &str, goal: f64, wanted: usize, table: &mut Table) -> Result<()> {
    let (mut all, mut failures) = (Vec::new(), Vec::new());
    let mut random = Random::seeded();
    while all.len() < wanted && failures.len() < wanted {
        match fail_over(cores, name, &mut random)? {
            Run::Times(times) => {
                eprintln!("bench:   {times:?}");
                all.push(times);
            }
            Run::NotProtected(why) => {
                eprintln!("bench:   a failover that does not count: {why}");
                failures.push(why);
            }
        }
    }
    ensure!(!all.is_empty(), "no failover ({name}) went well: {failures:?}");
    let add = |table: &mut Table, what: String, of: fn(&Times) -> f64, goal: Option<f64>, note: &str| {
        let times: Vec<f64> = all.iter().map(of).collect();
        let (low, high) = spread(&times);
        let note = format!("{low:.1} to {high:.1} in {} runs; {note}", times.len());
        let row = Row::new(what, median(times.iter().copied()), "ms")
            .note(note)
            .data(json!(times));
        table.add(match goal {
            Some(goal) => row.at_most(goal),
            None => row,
        });
    };
    let timing = format!(
        "heartbeat {} ms, deadline {} ms, kill -9; {} more runs do not count: the pair had not stayed protected",
        HEARTBEAT.as_millis(),
        DEADLINE.as_millis(),
        failures.len()
    );
    let what = format!("failover, {name}: client's longest silence");
    add(
        table,
        format!("{what}, median"),
        |times| times.silence,
        Some(400.0),
        &timing,
    );
    let (_, most) = spread(&all.iter().map(|times| times.silence).collect::<Vec<_>>());
    table.add(Row::new(format!("{what}, greatest"), most, "ms").at_most(900.0));
    add(
        table,
        "  suspicion to the won term".into(),
        |times| times.claim,
        Some(goal),
        "",
    );
    add(
        table,
        "  backlog".into(),
        |times| times.backlog,
        None,
        "replaying what had come",
    );
    let note = "from the last of the log to the guest's first step";
    add(
        table,
        "  to live, beyond the backlog".into(),
        |times| times.start,
        Some(20.0),
        note,
    );
    Ok(())
}

/// What became of one machine.
enum Run {
    Times(Times),
    /// It was not protected any more when it was killed: with a deadline this short, a host that stands still for a moment
    /// is taken for dead. Nobody had to go on with it.
    NotProtected(String),
}

/// One machine, killed once. Whatever goes wrong from the kill on, or is wrong with what the client gets, is an error.
fn fail_over(cores: &Cores, arbiter: &str, random: &mut Random) -> Result<Run> {
    let setup = Setup::new("bench-failover")
        .busy()
        .heartbeat(HEARTBEAT)
        .deadline(DEADLINE);
    let setup = if arbiter == "etcd" { setup.durable_etcd() } else { setup };
    let Protected {
        counter,
        primary,
        backup,
        scene,
        ..
    } = setup.open()?;
    cores.pin(primary.run.pid())?;
    counter.wait_for(SOME, LIMIT)?;
    std::thread::sleep(random.moment(SOON));
    for (node, state) in [(&primary, "protected"), (&backup, "standby: protected")] {
        // A primary tells its term, too.
        let told = node.state();
        if !told.starts_with(state) {
            return Ok(Run::NotProtected(format!("it was `{told}` before the kill")));
        }
    }
    counter.take_silence();
    // It may have given its backup up since it was looked at.
    let told = primary.kill()?;
    if !told.starts_with("protected") {
        return Ok(Run::NotProtected(format!("it was `{told}` as it was killed")));
    }
    let alone = Alone::new(scene, backup, counter)?;
    let silence = alone.counter.take_silence();
    let ms = |name: &str| -> Result<f64> {
        let us = alone.live.number(name);
        Ok(us.with_context(|| format!("the backup tells no {name}"))? as f64 / 1e3)
    };
    let times = Times {
        silence: silence.as_secs_f64() * 1e3,
        claim: ms("claim_us")?,
        backlog: ms("backlog_us")?,
        start: ms("start_us")?,
    };
    alone.settle()?;
    Ok(Run::Times(times))
}
