//! A minute in which nothing happens: what it costs in the log, and how fast it replays.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use lockstep_integration::{Booted, Kind, Namespace, Verify, gate, work_dir};

use crate::Scale;
use crate::log::Log;
use crate::pairs::children_cpu;
use crate::table::{Row, Table};

pub fn run(scale: Scale, table: &mut Table) -> Result<()> {
    let (settle, seconds) = scale.pick((10.0, 60.0), (8.0, 20.0));
    let dir = work_dir("bench-idle")?;
    let mut runs = vec![(
        "shell",
        Booted::get(Kind::Shell)?.go_on()?.record(&dir.join("shell")).start()?,
    )];
    // Both at once: they leave the cores to each other.
    let namespace = gate::root_net().is_ok().then(Namespace::create).transpose()?;
    if let Some(namespace) = &namespace {
        let run = Booted::get(Kind::Redis)?
            .go_on_inside(namespace, &dir)?
            .record(&dir.join("Redis"))
            .start()?;
        runs.push(("Redis", run));
    }
    // A second more: the start takes its part of the time.
    sleep(Duration::from_secs_f64(settle + seconds + 2.0));
    for (name, run) in runs {
        run.terminate()?.report()?;
        let directory = dir.join(name);
        let log = Log::read(&directory)?;
        let sums = log.sums(settle..settle + seconds);
        let note = format!(
            "{:.1} stops/s, {:.1} epochs/s, {:.2} deltas/s",
            sums.stops as f64 / seconds,
            sums.epochs as f64 / seconds,
            sums.deltas as f64 / seconds
        );
        let turns = sums.turn_bytes as f64 / seconds;
        table.add(
            Row::new(format!("idle log, {name}, without deltas"), turns, "bytes/s")
                .at_most(2048.0)
                .note(note),
        );
        let all = turns + sums.delta_bytes as f64 / seconds;
        table.add(Row::new(format!("idle log, {name}, with deltas"), all, "bytes/s").at_most(2048.0));
        let before = children_cpu()?;
        let verify = Verify::run(&directory)?;
        let cpu = children_cpu()? - before;
        let report = verify.identical()?;
        let wall = report["wall_seconds"].as_f64().unwrap_or(f64::NAN);
        let guest = report["guest_seconds"].as_f64().unwrap_or(f64::NAN);
        table.add(
            Row::new(format!("replay of {guest:.0} s of it"), guest / wall, "x")
                .at_least(10.0)
                .note(format!(
                    "{wall:.2} s, identical; {cpu:.2} s of CPU time, the restore included: {:.1} x",
                    guest / cpu
                )),
        );
    }
    Ok(())
}
