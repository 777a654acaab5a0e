//! Linux with Redis under load from the network, the console and the disk: what was recorded replays exactly, with and
//! without random kicks on either side.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lockstep_integration::disk::{check_ext4, read_file};
use lockstep_integration::gate::{ordinary_host, require_root_net, soak};
use lockstep_integration::load::{Benchmark, FIRST_REQUESTS, paced, redis_cli};
use lockstep_integration::tamper::{self, Value};
use lockstep_integration::verify::summary;
use lockstep_integration::{Booted, Kind, Namespace, Verify, work_dir};

const LIMIT: Duration = Duration::from_secs(180);
/// Random kicks a second that are asked for; about nine in ten come, so that the long form's minute has over 50,000.
const KICKS: &str = "1000";

/// Kicks that must have come, at least.
fn least_kicks() -> u64 {
    if soak() { 50_000 } else { 1000 }
}

fn seconds() -> u64 {
    if soak() { 60 } else { 20 }
}

/// Keys that the benchmark must have written, at least.
const LEAST_KEYS: u64 = 100;

fn keys(namespace: &Namespace) -> Result<u64> {
    Ok(redis_cli(namespace, &["dbsize"])?.parse()?)
}

/// Records the guest while clients write and read, somebody types, and files are written to the disk. Returns the run's
/// report.
fn record(dir: &Path, seconds: u64, arguments: &[&str]) -> Result<serde_json::Value> {
    let namespace = Namespace::create()?;
    let run = Booted::get(Kind::Redis)?.go_on_inside(&namespace, dir)?;
    let mut run = run.record(&dir.join("log")).args(arguments.iter().copied()).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    let begin = Instant::now();
    let mut benchmarks = 0;
    let mut rates = Vec::new();
    let mut requests = FIRST_REQUESTS;
    // As long as is asked, and on a busy machine until there is something to compare.
    while begin.elapsed() < Duration::from_secs(seconds) || (keys(&namespace)? <= LEAST_KEYS && begin.elapsed() < LIMIT)
    {
        let since = Instant::now();
        let benchmark = Benchmark::start(&namespace, requests)?;
        for number in 0..4 {
            let value = format!("value-{benchmarks}-{number}");
            ensure!(redis_cli(&namespace, &["set", "key", &value])? == "OK");
            ensure!(
                redis_cli(&namespace, &["get", "key"])? == value,
                "what was written is read"
            );
        }
        // Typed while the network is busy; the answer differs from what is typed.
        run.type_text(&format!(
            "date >>/data/log && fsync /data/log && echo WRITTEN-$(({benchmarks} + 1000))\n"
        ))?;
        run.wait_for(&format!("WRITTEN-{}", benchmarks + 1000), LIMIT)?;
        rates = benchmark.wait()?;
        requests = paced(requests, since.elapsed());
        benchmarks += 1;
    }
    ensure!(keys(&namespace)? > LEAST_KEYS, "the benchmark wrote keys");
    let outcome = run.terminate()?;
    let report = outcome.report()?;
    let image = dir.join("disk.img");
    check_ext4(&image)?;
    let lines = read_file(&image, "/log")?.lines().count();
    ensure!(
        lines == benchmarks,
        "{benchmarks} lines were written and synced, and the disk has {lines}"
    );
    println!(
        "recorded {:.1} s: {} stops, {} interrupts, {} forced stops, log {} bytes (deltas {}); {benchmarks} benchmarks, \
         the last: {}",
        report["wall_seconds"].as_f64().unwrap_or(0.0),
        report["stops"],
        report["interrupts"],
        report["forced_stops"],
        report["log_bytes"],
        report["log_delta_bytes"],
        rates.join(", ")
    );
    Ok(report)
}

#[test]
fn redis_under_load_replays_with_and_without_kicks() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let dir = work_dir("redis")?;
    record(&dir, seconds(), &[])?;
    let log = dir.join("log");
    let verify = Verify::run(&log)?;
    let report = verify.identical()?;
    println!("{}", summary(report));
    ensure!(report["frames_in"].as_u64() > Some(100), "{report}");
    ensure!(report["final_memory"] == true, "{report}");
    let kicked = Verify::run_with(&log, ["--kicks", KICKS])?;
    let report = kicked.identical()?;
    println!("kicked {} times in replay; {}", report["kicks"], summary(report));
    ensure!(report["kicks"].as_u64() > Some(least_kicks()), "{report}");

    for value in [Value::Frame, Value::Clock] {
        let flipped = dir.join("flipped");
        let batch = tamper::flip_bit(&log, &flipped, value, 0.2)?;
        let diverged = Verify::run(&flipped)?.diverged_in()?;
        ensure!(
            diverged == batch,
            "a {value:?} in batch {batch} was changed, and verify names {diverged}"
        );
        std::fs::remove_dir_all(&flipped)?;
    }
    Ok(())
}

#[test]
fn redis_kicked_while_it_is_recorded_replays() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let dir = work_dir("redis-kicked")?;
    let recorded = record(&dir, seconds(), &["--kicks", KICKS])?;
    println!("kicked {} times while recording", recorded["kicks"]);
    ensure!(recorded["kicks"].as_u64() > Some(least_kicks()), "{recorded}");
    let log = dir.join("log");
    println!("{}", summary(Verify::run(&log)?.identical()?));
    let verify = Verify::run_with(&log, ["--kicks", KICKS])?;
    let report = verify.identical()?;
    println!("kicked {} times in replay; {}", report["kicks"], summary(report));
    ensure!(report["kicks"].as_u64() > Some(least_kicks()), "{report}");
    Ok(())
}

/// The minute that the long forms have here: on a host whose CPU runs the guest's kernel, in the short form as well.
#[test]
fn redis_for_a_minute_replays() -> Result<()> {
    if !require_root_net() || !ordinary_host()? {
        return Ok(());
    }
    let dir = work_dir("redis-minute")?;
    record(&dir, 60, &[])?;
    let verify = Verify::run(&dir.join("log"))?;
    let report = verify.identical()?;
    println!("{}", summary(report));
    ensure!(report["final_memory"] == true, "{report}");
    Ok(())
}
