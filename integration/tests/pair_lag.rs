//! A backup that receives and does not execute: what leaves the machine meanwhile, and how fast it may run.

use std::time::Instant;

use anyhow::{Result, ensure};
use lockstep_integration::gate::require_root_net;
use lockstep_integration::load::Benchmark;
use lockstep_integration::pair::{LIMIT, Protected, Setup, SlowVcpu, number, status, stop_vcpu, wait_for_status};

/// Batches of the log: more than are under way between the hosts at any moment.
const BATCHES: f64 = 20.0;
/// Answers that are no accident.
const FEW: u64 = 3;
/// Requests of the clients that keep the guest busy; more than are answered in a test.
const REQUESTS: u32 = 100_000;
/// Looks at a pair that is busy, two tenths of a second apart.
const LOOKS: u32 = 75;

/// A pair whose output may leave at this acknowledgement.
fn open(name: &str, ack: &str) -> Result<Protected> {
    let ack = ["--ack", ack];
    Setup::new(name).busy().arguments(0, &ack).arguments(1, &ack).open()
}

/// With `--ack replayed`, nothing leaves that the backup has received and not executed.
#[test]
fn output_waits_until_the_backup_has_executed() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = open("lag-replayed", "replayed")?;
    let socket = protected.scene.pair.socket(protected.primary.host);
    let stopped = stop_vcpu(&protected.backup)?;
    // What was executed before may have left until now; from here on there is nothing more to come of that.
    wait_for_status(&socket, LIMIT, |now| {
        Ok(number(now, "received")? >= number(now, "verified")? + BATCHES)
    })?;
    let held = wait_for_status(&socket, LIMIT, |now| Ok(number(now, "held")? > 0.0))?;
    let before = protected.counter.answers();
    let enough = number(&held, "received")? + BATCHES;
    let now = wait_for_status(&socket, LIMIT, |now| Ok(number(now, "received")? >= enough))?;
    println!("{now}");
    ensure!(
        number(&now, "released")? <= number(&now, "verified")? && number(&now, "held")? > 0.0,
        "what was not executed has left: {now}"
    );
    ensure!(protected.counter.answers() == before, "an answer has left");
    drop(stopped);
    protected.kill_primary()?.settle()
}

/// With `--ack received`, what it has received may leave.
#[test]
fn output_does_not_wait_for_execution_unless_told_to() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = open("lag-received", "received")?;
    let socket = protected.scene.pair.socket(protected.primary.host);
    let stopped = stop_vcpu(&protected.backup)?;
    // A guest whose backup stands still is slow.
    protected.counter.wait_for(FEW, LIMIT)?;
    let now = status(&socket)?;
    println!("{now}");
    ensure!(
        number(&now, "released")? > number(&now, "verified")?,
        "the backup has executed all that has left: {now}"
    );
    drop(stopped);
    protected.kill_primary()?.settle()
}

/// A backup that gets a fifth of a core: without the guest being held back it would lag by most of the time that goes by.
#[test]
fn a_guest_is_held_back_for_a_slow_backup() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = open("lag-slow", "received")?;
    let socket = protected.scene.pair.socket(protected.primary.host);
    let before = status(&socket)?;
    let load = Benchmark::start(&protected.scene.pair.network.client, REQUESTS)?;
    let slow = SlowVcpu::start(&protected.backup)?;
    let begin = Instant::now();
    let mut most: f64 = 0.0;
    for _ in 0..LOOKS {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let now = status(&socket)?;
        ensure!(now["state"] == "protected", "{now}");
        most = most.max(number(&now, "lag_ms")? / 1e3);
    }
    let (seconds, after) = (begin.elapsed().as_secs_f64(), status(&socket)?);
    drop((load, slow));
    let throttled = number(&after, "throttled_seconds")? - number(&before, "throttled_seconds")?;
    println!("in {seconds:.1} s: lag {most:.2} s at most, held back for {throttled:.1} s");
    ensure!(throttled > 0.0, "the guest was never held back");
    ensure!(most < seconds / 3.0, "the backup lagged {most:.2} s in {seconds:.1} s");
    // What it lags is executed all the same, and nothing of it is lost.
    protected.kill_primary()?.settle()
}
