//! `lockstep-recording`: records the Redis guest under load for half a minute, verifies the recording, and reports.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use lockstep_integration::load::{Benchmark, FIRST_REQUESTS, paced, redis_cli};
use lockstep_integration::net::GUEST;
use lockstep_integration::paths::target_dir;
use lockstep_integration::{Guest, Namespace, Outcome, Run, Running, Verify, disk, gate, signals};
use serde_json::{Value, json};

const BOOT_LIMIT: Duration = Duration::from_secs(240);
const LOAD: Duration = Duration::from_secs(30);
/// The recording, its disk and the replay's overlay.
const FREE_MIB: u64 = 1000;

fn main() -> ExitCode {
    let result = signals::on_end().and_then(|stopped| demo(&stopped));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("lockstep-recording: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn say(text: &str) {
    println!("lockstep-recording: {text}");
}

/// Returns whether the recording is identical.
fn demo(stopped: &Receiver<()>) -> Result<bool> {
    check_host()?;
    let dir = target_dir().join("recording");
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let log = dir.join("log");
    // Removed at the end of this function, however it ends.
    let namespace = Namespace::create()?;
    say("booting Linux with Redis, recorded from its first instruction (about 20 s)");
    let mut run = start(&namespace, &dir, &log)?;
    wait_for(&run, "LOCKSTEP-READY", BOOT_LIMIT, stopped)?;
    wait_for(&run, "lockstep#", BOOT_LIMIT, stopped)?;
    say("Redis answers; redis-benchmark sets and gets over the network, and files are written, for 30 s");
    let rates = load(&namespace, &mut run, stopped)?;
    let outcome = run.terminate()?;
    let recorded = outcome.report()?;
    say(&format!("recorded {} stops into {}", recorded["stops"], log.display()));
    interrupted(stopped)?;
    say("verifying: replaying the log and comparing every stop (as long again, or two times as long)");
    let verify = Verify::run(&log)?;
    interrupted(stopped)?;
    let Some(report) = &verify.report else {
        bail!("the verification failed: {}", verify.messages)
    };
    let identical = verify.status.success() && report["identical"] == true;
    let result = json!({ "identical": identical, "recorded": recorded, "verified": report, "redis": rates });
    let file = dir.join("result.json");
    fs::write(&file, format!("{result:#}\n")).with_context(|| format!("cannot write {}", file.display()))?;
    print_table(&outcome, report, &rates, &log)?;
    if !identical {
        say(&format!("NOT identical: {}", report["divergence"]));
    }
    Ok(identical)
}

fn check_host() -> Result<()> {
    gate::kvm()
        .and_then(|()| gate::root_net())
        .map_err(|reason| anyhow::anyhow!("cannot run here: {reason}"))?;
    let space = rustix::fs::statvfs(target_dir())?;
    let free = (space.f_bavail * space.f_frsize) >> 20;
    if free < FREE_MIB {
        bail!(
            "only {free} MiB are free in {}; the demo needs {FREE_MIB}",
            target_dir().display()
        );
    }
    Ok(())
}

fn start(namespace: &Namespace, dir: &Path, log: &Path) -> Result<Running> {
    let guest = Guest::find()?;
    let image = dir.join("disk.img");
    disk::make_ext4(&image, 32)?;
    let words = format!("lockstep.run=redis lockstep.ip={GUEST}");
    Run::inside(namespace)?
        .disk(&image)
        .boot(&guest, &guest.redis, 128, &words)
        .record(log)
        .start()
}

fn interrupted(stopped: &Receiver<()>) -> Result<()> {
    if stopped.try_recv().is_ok() {
        bail!("interrupted; the network namespace is removed, what was recorded stays in target/recording");
    }
    Ok(())
}

/// Waits in pieces of a second, so that a signal ends the wait.
fn wait_for(run: &Running, text: &str, limit: Duration, stopped: &Receiver<()>) -> Result<()> {
    let begin = Instant::now();
    loop {
        interrupted(stopped)?;
        match run.wait_for(text, Duration::from_secs(1)) {
            Ok(()) => return Ok(()),
            Err(error) if begin.elapsed() > limit || run.console.wait_for_end(Duration::ZERO) => return Err(error),
            Err(_) => {}
        }
    }
}

/// Half a minute of load. Returns the rates of the last benchmark.
fn load(namespace: &Namespace, run: &mut Running, stopped: &Receiver<()>) -> Result<Vec<String>> {
    let begin = Instant::now();
    let mut rates = Vec::new();
    let mut round = 0;
    let mut requests = FIRST_REQUESTS;
    while begin.elapsed() < LOAD {
        let since = Instant::now();
        let mut benchmark = Benchmark::start(namespace, requests)?;
        run.type_text(&format!(
            "date >>/data/log; fsync /data/log; echo WRITTEN-$(({round} + 1000))\n"
        ))?;
        wait_for(run, &format!("WRITTEN-{}", round + 1000), BOOT_LIMIT, stopped)?;
        while benchmark.runs()? {
            match stopped.recv_timeout(Duration::from_millis(200)) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => {
                    bail!("interrupted; the network namespace is removed, what was recorded stays in target/recording")
                }
            }
        }
        rates = benchmark.wait()?;
        requests = paced(requests, since.elapsed());
        round += 1;
        let keys = redis_cli(namespace, &["dbsize"])?;
        say(&format!(
            "{:3} s  {}  {keys} keys",
            begin.elapsed().as_secs(),
            rates.join("  ")
        ));
    }
    Ok(rates)
}

fn print_table(outcome: &Outcome, report: &Value, rates: &[String], log: &Path) -> Result<()> {
    let recorded = outcome.report()?;
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let carried = number(&report["carried_seconds"]);
    let guest = number(&report["guest_seconds"]);
    println!();
    for (name, value) in [
        (
            "result",
            if report["identical"] == true {
                "identical".into()
            } else {
                "DIVERGED".to_owned()
            },
        ),
        (
            "recorded",
            format!(
                "{:.1} s of guest time, {} stops",
                number(&recorded["guest_seconds"]),
                recorded["stops"]
            ),
        ),
        ("replayed in", format!("{:.1} s", number(&report["wall_seconds"]))),
        (
            "compared",
            format!(
                "{} batches, {} epochs, {} pages",
                report["batches"], report["epochs"], report["epoch_pages"]
            ),
        ),
        (
            "memory at the end",
            if report["final_memory"] == true {
                "equal".into()
            } else {
                "not compared".to_owned()
            },
        ),
        (
            "carried by deltas",
            format!(
                "{} forced stops, {} pages, {carried:.2} of {guest:.1} s",
                report["deltas"], report["delta_pages"]
            ),
        ),
        (
            "network in",
            format!("{} frames, {} bytes", report["frames_in"], report["frame_bytes_in"]),
        ),
        (
            "log",
            format!(
                "{} bytes: turns {}, delta pages {}",
                report["log_bytes"], report["log_batch_bytes"], report["log_delta_bytes"]
            ),
        ),
        ("Redis, recorded", rates.join("; ")),
        ("kept in", log.display().to_string()),
    ] {
        println!("  {name:<18} {value}");
    }
    println!(
        "\n  look into it:  target/release/lockstep-debug info {}",
        log.display()
    );
    Ok(())
}
