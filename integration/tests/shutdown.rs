//! A guest that is asked to shut down: by keys that its init honours, or by force; and a machine that has no keyboard.

use anyhow::{Result, ensure};
use lockstep_integration::gate::require_root_net;
use lockstep_integration::pair::{Alone, LIMIT, Node, Pair, Protected, Setup};
use lockstep_integration::paths::program;
use lockstep_integration::process::{bound, check};
use lockstep_integration::snapshot::BOOT_LIMIT;
use lockstep_integration::verify::summary;
use lockstep_integration::{Run, Verify, work_dir};
use serde_json::Value;

/// Types a command on a node's host.
fn ask(pair: &Pair, node: &Node, words: &[&str]) -> Result<()> {
    let done = pair.operate(node.host, words)?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{words:?} is not carried out: {said}");
    Ok(())
}

/// The node says that its machine has no keyboard, and what to do.
fn refuses(pair: &Pair, node: &Node) -> Result<()> {
    let done = pair.operate(node.host, &["shutdown"])?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(
        done.status.code() == Some(1) && said.contains("no keyboard") && said.contains("--timeout 0"),
        "{said}"
    );
    Ok(())
}

/// The node's status.
fn status(pair: &Pair, node: &Node) -> Result<Value> {
    let told = pair.operate(node.host, &["status", "pair", "--json"])?;
    let told: Value = serde_json::from_slice(&told.stdout)?;
    Ok(told[0].clone())
}

/// Both processes end by themselves, and with success; the primary's report and the guest's console.
fn both_end(primary: Node, backup: Node) -> Result<(Value, String)> {
    let outcome = primary.run.wait(LIMIT)?;
    let report = outcome.report()?;
    let other = backup.run.wait(LIMIT)?;
    ensure!(other.status.success(), "{other:?}");
    Ok((report, outcome.console))
}

/// What `lockstep-debug events --kind keyboard` lists.
fn keys(log: &std::path::Path) -> Result<String> {
    check(
        bound(program("lockstep-debug")?)
            .args(["events", "--kind", "keyboard"])
            .arg(log),
    )
}

#[test]
fn the_guest_stops_its_services_in_order_and_both_hosts_end() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let log = work_dir("shutdown-log")?;
    let log_name = log.display().to_string();
    let record = ["--record", &log_name];
    let Protected {
        counter,
        primary,
        backup,
        scene,
        ..
    } = Setup::new("shutdown").disk().arguments(0, &record).open()?;
    ask(&scene.pair, &primary, &["shutdown", "--timeout", "600"])?;
    let (report, console) = both_end(primary, backup)?;
    drop(counter);
    ensure!(report["ended"] == "the guest reset", "{report}");
    let after = console.split_once("LOCKSTEP-SHUTDOWN").map_or("", |(_, after)| after);
    let last_words = after.split_once("LOCKSTEP-EXIT service 0").map_or("", |(said, _)| said);
    ensure!(
        last_words.contains("Redis is now ready to exit, bye bye"),
        "Redis was not stopped in order: {console}"
    );
    let keys = keys(&log)?;
    ensure!(keys.lines().count() > 0 && keys.contains("keyboard [14, 11,"), "{keys}");
    let verify = Verify::run(&log)?;
    let report = verify.identical()?;
    println!("shutdown: {}", summary(report));
    ensure!(
        report["ending"].as_str().is_some_and(|ending| ending.contains("reset")),
        "{report}"
    );
    Ok(())
}

/// The keys are an input like any other: what a guest has heard, it has heard on the other host too.
#[test]
fn a_shutdown_survives_its_host() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let mut protected = Setup::new("shutdown-failover").open()?;
    // Init waits ten seconds for processes that do not listen: long enough to kill the host.
    let run = &mut protected.primary.run;
    run.type_text("(trap '' TERM HUP; exec sleep 1000) & echo DEAF-$((6 * 7))\n")?;
    run.wait_for("DEAF-42", LIMIT)?;
    ask(
        &protected.scene.pair,
        &protected.primary,
        &["shutdown", "--timeout", "600"],
    )?;
    protected.primary.run.wait_for("LOCKSTEP-SHUTDOWN", LIMIT)?;
    protected.scene.kill(protected.primary)?;
    let outcome = protected.backup.run.wait(LIMIT)?;
    drop(protected.counter);
    let report = outcome.report()?;
    ensure!(report["ended"] == "the guest reset", "{report}");
    Ok(())
}

#[test]
fn a_guest_that_does_not_listen_is_ended_by_force() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let mut protected = Setup::new("shutdown-deaf").open()?;
    let run = &mut protected.primary.run;
    // The shell gets the signal, and does nothing about it.
    run.type_text("echo $$ >/proc/sys/kernel/cad_pid; echo DEAF-$((6 * 7))\n")?;
    run.wait_for("DEAF-42", LIMIT)?;
    let before = status(&protected.scene.pair, &protected.primary)?;
    ensure!(before["shutdown_seconds"].is_null(), "{before}");
    ask(&protected.scene.pair, &protected.primary, &["shutdown"])?;
    let told = status(&protected.scene.pair, &protected.primary)?;
    let left = told["shutdown_seconds"].as_f64();
    ensure!(left.is_some_and(|left| (0.0..=60.0).contains(&left)), "{told}");
    ensure!(told["state"] == "protected", "{told}");
    // The new time counts.
    ask(
        &protected.scene.pair,
        &protected.primary,
        &["shutdown", "--timeout", "2"],
    )?;
    protected
        .primary
        .run
        .messages
        .wait_for("has not shut down in time", LIMIT)?;
    let (report, console) = both_end(protected.primary, protected.backup)?;
    drop(protected.counter);
    ensure!(report["ended"] == "ended from outside", "{report}");
    ensure!(!console.contains("LOCKSTEP-SHUTDOWN"), "{console}");
    Ok(())
}

/// A machine keeps the revision that it was booted with: recorded, joined, and on the host that takes it over.
#[test]
fn a_machine_of_revision_1_is_recorded_joined_and_has_no_keyboard() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let log = work_dir("revision-1-log")?;
    let log_name = log.display().to_string();
    let record = ["--record", &log_name];
    let scene = Setup::new("revision-1")
        .arguments(0, &["--model-revision", "1"])
        .arguments(0, &record)
        .build()?;
    let primary = scene.boot_primary(0)?;
    let backup = scene.start_backup(1)?;
    primary.run.wait_for("LOCKSTEP-READY", BOOT_LIMIT)?;
    primary.wait_for_state("protected", LIMIT)?;
    let counter = scene.count()?;
    refuses(&scene.pair, &primary)?;
    primary.run.terminate()?.report()?;
    let Alone { counter, live, scene } = Alone::new(scene, backup, counter)?;
    refuses(&scene.pair, &live)?;
    ask(&scene.pair, &live, &["shutdown", "--timeout", "0"])?;
    live.run.wait(LIMIT)?.report()?;
    drop(counter);
    println!("revision 1: {}", summary(Verify::run(&log)?.identical()?));
    Ok(())
}

#[test]
fn a_revision_that_is_none_of_ours_is_refused() -> Result<()> {
    let outcome = Run::bare()?
        .args(["--kernel", "x", "--model-revision", "6"])
        .complete(LIMIT)?;
    outcome.expect_failure(2, &["6 is not in 1..=5"])
}
