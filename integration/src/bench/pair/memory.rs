//! What both programs of a busy pair hold in memory, and whether it grows.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep_integration::Kind;
use lockstep_integration::load::Benchmark;
use lockstep_integration::pair::{Journal, SOME, number};
use serde_json::json;

use super::cores::Cores;
use super::machine::{Machine, Way};
use crate::Scale;
use crate::pairs::{LIMIT, median};
use crate::table::{Row, Table};

/// Minutes unless LOCKSTEP_MEMORY_MINUTES says how many.
const MINUTES: f64 = 30.0;
/// From one look to the next.
const EVERY: Duration = Duration::from_secs(2);
/// What each program may have beside the guest's memory, in MiB.
const BESIDE: f64 = 64.0;
/// The machine's memory in MiB.
const GUEST: f64 = 128.0;
/// Requests of one run of the clients.
const REQUESTS: u32 = 20_000;
/// Typed into the guest: writes to 8 MiB over and over, for longer than anybody looks.
const WRITER: &str = "bench memwrite 1000000000 8 &\n";

/// Clients, records that are synced and a memory writer, all at once, for half an hour.
pub fn run(_: Scale, table: &mut Table) -> Result<()> {
    let minutes = match std::env::var("LOCKSTEP_MEMORY_MINUTES") {
        Ok(text) => text.parse().context("LOCKSTEP_MEMORY_MINUTES is no number")?,
        Err(_) => MINUTES,
    };
    let length = Duration::from_secs_f64(minutes * 60.0);
    let cores = Cores::take()?;
    let mut machine = Machine::start(&cores, Kind::Redis, Way::Protected)?;
    let counter = machine.scene.count()?;
    Journal::start(&mut machine.node)?;
    machine.node.run.type_text(WRITER)?;
    let backup = machine.backup.as_ref().context("no backup")?.run.pid();
    let pids = [("primary", machine.node.run.pid()), ("backup", backup)];
    let client = &machine.scene.pair.network.client;
    let mut load = Benchmark::start(client, REQUESTS)?;
    let mut held: [Vec<Held>; 2] = [Vec::new(), Vec::new()];
    let begin = Instant::now();
    while begin.elapsed() < length {
        std::thread::sleep(EVERY);
        ensure!(!counter.has_ended(), "the client has ended");
        if !load.runs()? {
            load = Benchmark::start(client, REQUESTS)?;
        }
        for ((_, pid), held) in pids.iter().zip(&mut held) {
            held.push(Held::of(*pid)?);
        }
    }
    drop(load);
    let status = machine.status()?;
    for ((name, pid), held) in pids.iter().zip(&held) {
        add(table, name, *pid, held)?;
    }
    // Each is told by this state. Terms alone do not tell: a divergence costs one, too, but for one that is found before the
    // record names the backup.
    let suspicions = machine.node.count_of_state("not-protected (lost-connection)");
    let (term, divergences) = (number(&status, "term")?, number(&status, "divergences")?);
    let note = format!(
        "hosts that were taken for dead; {:.0} heartbeats were not answered before the next, term {term:.0}",
        number(&status, "heartbeats_missed")?
    );
    table.add(
        Row::new("  false suspicions meanwhile", suspicions as f64, "")
            .at_most(0.0)
            .note(note),
    );
    let note = format!(
        "{minutes} minutes; {divergences:.0} divergences, held back for {:.0} s, log of {:.0} MiB",
        number(&status, "throttled_seconds")?,
        number(&status, "log_bytes")? / f64::from(1 << 20),
    );
    table.add(Row::new("  answers to one client meanwhile", counter.answers() as f64, "").note(note));
    ensure!(status["state"] == "protected", "it is not protected any more: {status}");
    ensure!(suspicions == 0, "{suspicions} false suspicions: {status}");
    ensure!(
        term <= 1.0 + divergences,
        "a term that no divergence was the reason for: {status}"
    );
    counter.wait_for(SOME, LIMIT)?;
    let tally = counter.finish()?;
    ensure!(tally.broken == 0 && tally.jumps == 0, "{tally:?}");
    Ok(())
}

fn add(table: &mut Table, name: &str, pid: u32, held: &[Held]) -> Result<()> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let most = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).and_then(mib);
    let most = most.context("the kernel tells no VmHWM")?;
    let (first, last) = held.first().zip(held.last()).context("it was not looked at")?;
    let note = format!(
        "the most that it ever had, with what the guest has touched of its {GUEST}: {:.1} at first, {:.1} at last of {} looks",
        first.guest,
        last.guest,
        held.len()
    );
    table.add(
        Row::new(format!("memory of the {name}"), most, "MiB")
            .at_most(GUEST + BESIDE)
            .note(note),
    );
    let beside: Vec<f64> = held.iter().map(|held| held.beside).collect();
    let greatest = beside.iter().copied().fold(0.0, f64::max);
    let note = format!("the greatest; {:.1} at first, {:.1} at last", first.beside, last.beside);
    let row = Row::new("  beside the guest's memory", greatest, "MiB");
    table.add(row.at_most(BESIDE).note(note).data(json!(beside)));
    let half = &beside[beside.len() / 2..];
    let piece = (half.len() / 5).max(1);
    let middle = |part: &[f64]| median(part.iter().copied());
    let grown = middle(&half[half.len() - piece..]) - middle(&half[..piece]);
    let note = "last fifth of it against the first, without the guest's memory";
    table.add(Row::new("  its growth in the second half", grown, "MiB").note(note));
    Ok(())
}

/// MiB of a process that are in memory.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// The mapping of the guest's memory.
    guest: f64,
    /// All others.
    beside: f64,
}

impl Held {
    fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let (mut held, mut is_guest) = (
            Self {
                guest: 0.0,
                beside: 0.0,
            },
            false,
        );
        for line in text.lines() {
            if let Some(size) = line.strip_prefix("Size:").and_then(mib) {
                // The kernel may show what is next to it as one mapping with it: that counts as the guest's.
                is_guest = size >= GUEST;
            } else if let Some(resident) = line.strip_prefix("Rss:").and_then(mib) {
                *(if is_guest { &mut held.guest } else { &mut held.beside }) += resident;
            }
        }
        ensure!(held.guest > 0.0, "the guest's memory is not in {path}");
        Ok(held)
    }
}

/// `  1234 kB`
fn mib(text: &str) -> Option<f64> {
    let kib: f64 = text.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}
