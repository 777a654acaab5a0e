//! `export-trace --replay` of a real machine: it has what the other commands count, and positions by the calendar are the
//! positions that they were.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::require_root_net;
use lockstep_integration::net::{GUEST_IP, inside};
use lockstep_integration::process::check;
use lockstep_integration::{Booted, Debug, Guest, Kind, Namespace, Verify, work_dir};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(180);
const REDIS: u16 = 6379;
const REQUESTS: usize = 20;

/// Asks Redis, one request after the other.
fn ask() -> Result<()> {
    let mut stream = TcpStream::connect((GUEST_IP, REDIS))?;
    stream.set_read_timeout(Some(LIMIT))?;
    for _ in 0..REQUESTS {
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer)?;
        ensure!(answer == *b"+PONG\r\n", "{answer:?}");
    }
    Ok(())
}

fn record(dir: &Path, log: &Path) -> Result<()> {
    let namespace = Namespace::create()?;
    let run = Booted::get(Kind::Redis)?.go_on_inside(&namespace, dir)?;
    let mut run = run.record(log).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    inside(namespace.name(), ask)?;
    let mut ping = Command::new("ip");
    ping.args([
        "netns",
        "exec",
        namespace.name(),
        "ping",
        "-c",
        "2",
        "-i",
        "0.2",
        GUEST_IP,
    ]);
    // Not every host has it; then there are the other arrows.
    let pinged = check(&mut ping);
    println!("ping: {}", if pinged.is_ok() { "answered" } else { "not there" });
    run.type_text("date >>/data/log && fsync /data/log && echo WRITTEN-$((40 + 2))\n")?;
    run.wait_for("WRITTEN-42", LIMIT)?;
    run.terminate()?.report()?;
    Ok(())
}

/// A trace in Chrome's format.
struct Trace(Vec<Value>);

impl Trace {
    fn export(log: &str, file: &Path, more: &[&str]) -> Result<Self> {
        let file = file.to_str().context("path")?;
        let mut arguments = vec!["export-trace", log, file];
        arguments.extend(more);
        Debug::run(arguments)?.expect(0, file)?;
        let trace: Value = serde_json::from_slice(&fs::read(file)?)?;
        Ok(Self(trace["traceEvents"].as_array().context("events")?.clone()))
    }

    fn of(&self, category: &str) -> Vec<&Value> {
        let is_it = |event: &&Value| event["cat"] == category && event["ph"] != "s" && event["ph"] != "f";
        self.0.iter().filter(is_it).collect()
    }

    fn named(&self, category: &str, name: &str) -> Vec<&Value> {
        let mut events = self.of(category);
        events.retain(|event| event["name"] == name);
        events
    }
}

/// In nanoseconds.
fn time(event: &Value, name: &str) -> Result<u64> {
    Ok((event[name].as_f64().with_context(|| format!("{event}"))? * 1000.0).round() as u64)
}

fn arrows(trace: &Trace, phase: &str) -> Result<BTreeMap<u64, u64>> {
    let ends = trace.0.iter().filter(|event| event["ph"] == phase);
    ends.map(|event| Ok((event["id"].as_u64().context("id")?, time(event, "ts")?)))
        .collect()
}

/// Slices of one row follow each other.
fn do_not_overlap(events: &[&Value]) -> Result<()> {
    let mut rows: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for event in events {
        let from = time(event, "ts")?;
        let row = rows.entry(event["tid"].as_u64().context("tid")?).or_default();
        row.push((from, from + time(event, "dur")?));
    }
    for row in rows.values_mut() {
        row.sort_unstable();
        ensure!(row.windows(2).all(|two| two[0].1 <= two[1].0), "{row:?}");
    }
    Ok(())
}

#[test]
fn a_trace_has_what_the_machine_did() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let dir = work_dir("trace")?;
    let log = dir.join("log");
    record(&dir, &log)?;
    let verified = Verify::run(&log)?;
    let verified = verified.identical()?;
    let log = log.to_str().context("path")?;
    let info = Debug::run(["info", log, "--json"])?.json()?;
    let vmlinux = Guest::find()?.vmlinux;
    let kernel = vmlinux.to_str().context("path")?;

    let logged = Trace::export(log, &dir.join("logged.json"), &[])?;
    let trace = Trace::export(log, &dir.join("trace.json"), &["--replay", "--vmlinux", kernel])?;
    for (category, name) in [
        ("forced", "forced"),
        ("epoch", "epochs"),
        ("random", "random"),
        ("disk", "disk"),
    ] {
        let count = info[name].as_u64().context("count")?;
        ensure!(
            logged.of(category).len() as u64 == count,
            "{category} of the log: {info:#}"
        );
        ensure!(trace.of(category).len() as u64 >= count, "{category}: {info:#}");
    }
    ensure!(logged.of("recording").len() == 2 && trace.of("recording") == logged.of("recording"));
    ensure!(logged.of("interrupt").is_empty() && logged.named("frame", "frame out").is_empty());
    let frames = info["frames"].as_u64().context("frames")?;
    for trace in [&logged, &trace] {
        ensure!(trace.named("frame", "frame in").len() as u64 == frames, "{info:#}");
    }

    let pcap = dir.join("machine.pcapng");
    let sent = trace.named("frame", "frame out").len();
    Debug::run(["export-pcap", log, pcap.to_str().context("path")?])?.expect(0, &format!("{sent} sent"))?;
    ensure!(
        Some(trace.of("interrupt").len() as u64) == verified["interrupts"].as_u64(),
        "{verified:#}"
    );
    let printed = trace.named("console", "printed");
    let bytes: u64 = printed.iter().filter_map(|event| event["args"]["bytes"].as_u64()).sum();
    ensure!(
        Debug::run(["console", log])?.out.len() as u64 == bytes,
        "{bytes} bytes printed"
    );

    // Requests from where they were made to where they were done; the disk was written to, and made to keep it.
    let requests = trace.of("disk");
    ensure!(
        requests.iter().all(|request| request["name"] != "completed"),
        "{requests:?}"
    );
    for name in ["write", "flush"] {
        ensure!(requests.iter().any(|request| request["name"] == name), "no {name}");
    }
    ensure!(
        requests.iter().any(|request| request["dur"].as_f64() > Some(0.0)),
        "{requests:?}"
    );
    do_not_overlap(&requests)?;

    let on_cpu: Vec<_> = trace.of("cpu");
    let (halted, tasks): (Vec<_>, Vec<_>) = on_cpu.into_iter().partition(|event| event["name"] == "halted");
    ensure!(!halted.is_empty());
    do_not_overlap(&tasks)?;
    let names: BTreeSet<_> = tasks.iter().filter_map(|task| task["name"].as_str()).collect();
    for name in ["redis-server (", "swapper (0)"] {
        ensure!(
            names.iter().any(|task| task.starts_with(name)),
            "{name} is not in {names:?}"
        );
    }

    // Every request has an answer, and none comes before what it answers.
    let (asked, answered) = (arrows(&trace, "s")?, arrows(&trace, "f")?);
    for (arrow, at) in &answered {
        let since = asked
            .get(arrow)
            .with_context(|| format!("arrow {arrow} has no beginning"))?;
        ensure!(since <= at, "arrow {arrow} goes back in time");
    }
    ensure!(
        answered.len() >= REQUESTS,
        "{} of {} answered",
        answered.len(),
        asked.len()
    );
    calendar(log, &info, &dir)
}

/// The middle of the recording, by guest time and by the calendar.
fn calendar(log: &str, info: &Value, dir: &Path) -> Result<()> {
    let start = info["start_ns"].as_u64().context("start_ns")?;
    let seconds = info["guest_seconds"].as_f64().context("seconds")?;
    let back = format!("{:.9}s", seconds / 2.0);
    let at = format!(
        "{}ns",
        start + (seconds * 1e9).round() as u64 - (seconds / 2.0 * 1e9).round() as u64
    );
    // What the program tells is what it takes.
    let text = info["from"].as_str().context("from")?;
    let from = Debug::run(["replay", log, "--to", text, "--json", "--digest"])?.json()?;
    ensure!(from["guest_ns"] == start, "{text} is the beginning: {from}");
    let digest = |position: &str| -> Result<Value> {
        let reached = Debug::run(["replay", log, "--to", position, "--json", "--digest"])?.json()?;
        Ok(reached["digest"].clone())
    };
    let (by_time, by_end) = (digest(&at)?, digest(&format!("-{back}"))?);
    ensure!(
        by_time == by_end && by_time.is_string(),
        "{at}: {by_time}, -{back}: {by_end}"
    );
    let half = Trace::export(log, &dir.join("half.json"), &["--from", &format!("-{back}")])?;
    let listed = Debug::run(["events", log, "--json", "--kind", "epoch", "--from", &at])?.json_lines()?;
    ensure!(
        half.of("epoch").len() == listed.len() && !listed.is_empty(),
        "{} epochs",
        listed.len()
    );
    Ok(())
}
