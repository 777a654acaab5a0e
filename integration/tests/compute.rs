//! A guest that only computes is still served: its clock ticks, and the recording replays exactly.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::require_kvm;
use lockstep_integration::verify::summary;
use lockstep_integration::{Booted, Kind, Verify, work_dir};

const LIMIT: Duration = Duration::from_secs(120);

/// The monotonic clock in each `CLOCK` line, in nanoseconds.
fn ticks(console: &str) -> Result<Vec<u64>> {
    let mut ticks = Vec::new();
    for line in console.lines() {
        // A line may be cut by the end of the run: what has its blank is whole.
        let Some((monotonic, _)) = line.strip_prefix("CLOCK ").and_then(|rest| rest.split_once(' ')) else {
            continue;
        };
        let digits = monotonic.replace('.', "");
        ticks.push(digits.parse().with_context(|| format!("`{line}`"))?);
    }
    Ok(ticks)
}

#[test]
fn a_computing_guest_keeps_its_clock_and_replays() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let log = work_dir("compute")?.join("log");
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(&log).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    run.type_text("spin 100000000000 & clock 250\n")?;
    for _ in 0..24 {
        run.wait_for("\nCLOCK ", LIMIT)?;
    }
    let outcome = run.terminate()?;
    let report = outcome.report()?;
    let ticks = ticks(&outcome.console)?;
    ensure!(ticks.len() >= 20, "only {} ticks", ticks.len());
    ensure!(
        ticks.windows(2).all(|pair| pair[0] < pair[1]),
        "the clock stands or goes backwards: {ticks:?}"
    );
    ensure!(!outcome.console.contains("CLOCK-FAIL"), "{}", outcome.console);
    ensure!(
        report["forced_stops"].as_u64() > Some(20),
        "served by forced stops: {report}"
    );
    let span = (ticks[ticks.len() - 1] - ticks[0]) as f64 / 1e9;
    println!(
        "{} ticks over {span:.2} s of guest time, {} forced stops",
        ticks.len(),
        report["forced_stops"]
    );

    let verify = Verify::run(&log)?;
    let report = verify.identical()?;
    println!("{}", summary(report));
    ensure!(report["deltas"].as_u64() > Some(20), "{report}");
    Ok(())
}
