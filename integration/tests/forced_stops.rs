//! The stress guest, stopped by force at several rates: what was recorded replays exactly, and what a delta carried is
//! counted apart from what was executed.

use std::time::Duration;

use anyhow::{Result, ensure};
use lockstep_integration::gate::{require_kvm, soak};
use lockstep_integration::verify::summary;
use lockstep_integration::{Booted, Kind, Verify, work_dir};

const LIMIT: Duration = Duration::from_secs(300);

/// One round of the stress program, recorded and verified. Returns the digest that the program prints.
fn round(hz: u32, number: u32) -> Result<String> {
    let log = work_dir(&format!("forced-{hz}"))?.join("log");
    let run = Booted::get(Kind::Shell)?
        .go_on()?
        .record(&log)
        .args(["--force-hz", &hz.to_string()]);
    let mut run = run.start()?;
    run.wait_for("lockstep#", LIMIT)?;
    run.type_text("stress -n 1 -s 7; echo STRESS-ENDED=$?\n")?;
    run.wait_for("STRESS-ENDED=0", LIMIT)?;
    let outcome = run.terminate()?;
    let recorded = outcome.report()?;
    let digest = outcome
        .console
        .lines()
        .find(|line| line.starts_with("STRESS-OK"))
        .unwrap_or_default()
        .to_owned();
    let seconds = recorded["wall_seconds"].as_f64().unwrap_or(0.0);
    let forced = recorded["forced_stops"].as_u64().unwrap_or(0);
    let rate = forced as f64 / seconds;
    ensure!(
        rate > f64::from(hz) * 0.2,
        "only {rate:.0} forced stops a second: {recorded}"
    );

    let verify = Verify::run(&log)?;
    let report = verify.identical()?;
    println!(
        "{hz} Hz, run {number}: {rate:.0} forced stops/s over {seconds:.1} s; {}",
        summary(report)
    );
    ensure!(
        report["deltas"] == forced,
        "each forced stop is carried by one delta: {report}"
    );
    Ok(digest)
}

fn rounds(hz: u32) -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let mut digests = Vec::new();
    for number in 1..=if soak() { 20 } else { 2 } {
        digests.push(round(hz, number)?);
    }
    ensure!(digests[0].starts_with("STRESS-OK"), "{digests:?}");
    ensure!(
        digests.windows(2).all(|pair| pair[0] == pair[1]),
        "the program's own digest differs: {digests:?}"
    );
    Ok(())
}

#[test]
fn stress_with_50_forced_stops_a_second() -> Result<()> {
    rounds(50)
}

#[test]
fn stress_with_100_forced_stops_a_second() -> Result<()> {
    rounds(100)
}

#[test]
fn stress_with_250_forced_stops_a_second() -> Result<()> {
    rounds(250)
}
