//! A node as a service: what it tells the service manager, what SIGTERM does to it, and where its messages go.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::require_root_net;
use lockstep_integration::notify::Notified;
use lockstep_integration::pair::{Alone, Arbiter, LIMIT, Pair, Protected, Scene, Setup, stop_vcpu};
use lockstep_integration::work_dir;
use rustix::process::Signal;
use serde_json::Value;

/// Of the nodes' watchdogs, in seconds.
const WATCHDOG: u32 = 8;

/// A service manager for each host of a scene.
fn managed(setup: Setup) -> Result<(Scene, [Notified; 2])> {
    let mut scene = setup.auto().build()?;
    let managers = [Notified::new()?, Notified::new()?];
    for (host, manager) in managers.iter().enumerate() {
        scene.pair.prepare(host, manager.exports(WATCHDOG));
    }
    Ok((scene, managers))
}

/// Waits until the watchdog was fed anew.
fn fed(manager: &Notified) -> Result<()> {
    manager.told.wait_for("WATCHDOG=1\n", LIMIT)
}

#[test]
fn a_node_says_when_it_is_ready_how_it_is_that_it_lives_and_that_it_ends() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let (scene, [first, second]) = managed(Setup::new("service-told"))?;
    let primary = scene.start_primary(0)?;
    let alone = "STATUS=not-protected (need-backup), term 1, primary\nREADY=1\n";
    first.told.wait_for(alone, LIMIT)?;
    // A guest that has nothing to do is no dead one.
    for _ in 0..3 {
        fed(&first)?;
    }
    let backup = scene.start_backup(1)?;
    second.told.wait_for("STATUS=starting, backup\nREADY=1\n", LIMIT)?;
    first.told.wait_for("STATUS=protected, term 1, primary\n", LIMIT)?;
    second.told.wait_for("STATUS=protected, term 1, backup\n", LIMIT)?;
    fed(&second)?;
    // SIGTERM ends who stands by, and the other one goes on.
    backup.run.signal(Signal::TERM)?;
    let outcome = backup.run.wait(LIMIT)?;
    ensure!(outcome.status.success(), "{outcome:?}");
    second.told.wait_for("STOPPING=1\n", LIMIT)?;
    first
        .told
        .wait_for("STATUS=not-protected (lost-connection), term 2, primary\n", LIMIT)?;
    primary
        .run
        .messages
        .wait_for("the connection to the backup is gone", LIMIT)?;
    fed(&first)?;
    primary.run.terminate()?.report()?;
    first.told.wait_for("STOPPING=1\n", LIMIT)
}

/// The main thread runs the vCPU. While a debugger holds it, nothing says that the node lives.
#[test]
fn a_thread_that_stands_still_is_noticed() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let (scene, [manager, _]) = managed(Setup::new("service-still"))?;
    let mut primary = scene.start_primary(0)?;
    // The guest runs: before that, nothing has to live.
    primary.run.type_text("echo HERE-$((6 * 7))\n")?;
    primary.run.wait_for("HERE-42", LIMIT)?;
    // Until its prompt is out, too: a thread that hands output over may wait for the other node, and is excused.
    for _ in 0..3 {
        fed(&manager)?;
    }
    let held = stop_vcpu(&primary)?;
    let times = || manager.told.text().matches("WATCHDOG=1\n").count();
    let stopped = times();
    let still = "the vCPU thread did not come by at 6 looks: the watchdog is not fed";
    primary.run.messages.wait_for(still, LIMIT)?;
    let before = times();
    ensure!(
        before <= stopped + 1,
        "fed {} times for what it did before it was held",
        before - stopped
    );
    drop(held);
    while times() == before {
        fed(&manager)?;
    }
    primary.run.terminate()?.report()?;
    Ok(())
}

#[test]
fn a_node_that_starts_over_is_ready_again() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let (scene, [manager, _other]) = managed(Setup::new("service-again"))?;
    let Protected {
        primary: owner,
        backup,
        counter,
        scene,
        ..
    } = scene.open()?;
    manager.told.wait_for("STATUS=protected, term 1, primary\n", LIMIT)?;
    owner.run.signal(Signal::STOP)?;
    let alone = Alone::new(scene, backup, counter)?;
    owner.run.signal(Signal::CONT)?;
    owner.run.messages.wait_for("this one starts over", LIMIT)?;
    manager.told.wait_for("\nREADY=1\n", LIMIT)?;
    let protected = alone.protect_with(owner)?;
    manager.told.wait_for("STATUS=protected, term 2, backup\n", LIMIT)?;
    fed(&manager)?;
    ensure!(!manager.told.text().contains("STOPPING=1"), "it has not ended");
    protected.settle()
}

/// A protected machine is handed over; then, alone, its guest shuts down.
#[test]
fn sigterm_hands_the_machine_over_or_has_the_guest_shut_down() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let (scene, [manager, _other]) = managed(Setup::new("service-leaves"))?;
    let Protected {
        primary,
        backup,
        counter,
        scene,
        ..
    } = scene.open()?;
    primary.run.signal(Signal::TERM)?;
    let outcome = primary.run.wait(LIMIT)?;
    let report = outcome.report()?;
    ensure!(report["ended"] == "ended from outside", "{report}");
    ensure!(
        outcome.messages.contains("frozen (lost-term)") && !outcome.messages.contains("starts over"),
        "{}",
        outcome.messages
    );
    manager.told.wait_for("STOPPING=1\n", LIMIT)?;
    let Alone { counter, live, scene } = Alone::new(scene, backup, counter)?;
    let value = counter.finish()?;
    ensure!(value.broken == 0, "{value:?}");
    live.run.signal(Signal::TERM)?;
    let outcome = live.run.wait(LIMIT)?;
    ensure!(outcome.report()?["ended"] == "the guest reset", "{outcome:?}");
    ensure!(outcome.console.contains("LOCKSTEP-SHUTDOWN"), "{}", outcome.console);
    drop(scene);
    Ok(())
}

/// With the other policy, the pair shuts down; a second signal does not wait for the guest.
#[test]
fn sigterm_shuts_the_guest_down_where_that_is_wanted_and_a_second_one_ends_it() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let policy = ["--on-sigterm", "shutdown"];
    let Protected {
        mut primary,
        backup,
        counter,
        scene,
        ..
    } = Setup::new("service-shuts-down").arguments(0, &policy).open()?;
    // The shell gets the keys' signal, and does nothing about it.
    primary
        .run
        .type_text("echo $$ >/proc/sys/kernel/cad_pid; echo DEAF-$((6 * 7))\n")?;
    primary.run.wait_for("DEAF-42", LIMIT)?;
    primary.run.signal(Signal::TERM)?;
    primary.run.messages.wait_for("asks the guest to shut down", LIMIT)?;
    primary.run.signal(Signal::TERM)?;
    let outcome = primary.run.wait(LIMIT)?;
    ensure!(outcome.report()?["ended"] == "ended from outside", "{outcome:?}");
    ensure!(
        !outcome.messages.contains("handing the machine over") && !outcome.console.contains("LOCKSTEP-SHUTDOWN"),
        "{outcome:?}"
    );
    // Ended at once, it was not ended for the other node.
    Alone::new(scene, backup, counter)?.settle()
}

fn create(name: &str) -> Result<Pair> {
    let dir = work_dir(name)?;
    Pair::create(&dir, Arbiter::File, Duration::from_millis(100), Duration::from_secs(3))
}

#[test]
fn messages_are_json_where_that_is_wanted() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let pair = create("service-json")?;
    let node = pair.start_backup(0, |run| run.args(["--log-format", "json"]))?;
    node.run.messages.wait_for("standby: starting", LIMIT)?;
    // Not SIGHUP: nohup has it ignored until the program listens.
    node.run.signal(Signal::TERM)?;
    let outcome = node.run.wait(LIMIT)?;
    let lines: Vec<Value> = outcome
        .messages
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .with_context(|| format!("not JSON: {}", outcome.messages))?;
    let state = lines.iter().find(|line| line["target"] == "lockstep::state");
    let state = state.with_context(|| format!("no state: {lines:?}"))?;
    ensure!(
        state["message"] == "standby: starting" && state["level"] == "INFO" && state["timestamp"].is_string(),
        "{state}"
    );
    Ok(())
}

/// Where standard error is the journal, its socket gets the messages with their fields, and standard error none.
#[test]
fn messages_go_to_the_journal_where_standard_error_does() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let mut pair = create("service-journal")?;
    let journal = Notified::new()?;
    // A journal of the program's own, in its own mount namespace.
    let place = "/run/systemd/journal";
    pair.prepare(
        0,
        format!(
            "mount -t tmpfs none /run; mkdir -p {place}; mount --bind {} {place}; \
             export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2)",
            journal.dir().display()
        ),
    );
    let node = pair.start_backup(0, |run| run)?;
    journal.told.wait_for("standby: starting", LIMIT)?;
    // Not SIGHUP: nohup has it ignored until the program listens.
    node.run.signal(Signal::TERM)?;
    let outcome = node.run.wait(LIMIT)?;
    ensure!(!outcome.messages.contains("standby"), "{}", outcome.messages);
    let told = journal.told.text();
    ensure!(
        told.contains("PRIORITY\n") && told.contains("lockstep-backup") && told.contains("lockstep::state"),
        "{told}"
    );
    Ok(())
}
