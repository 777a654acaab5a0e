//! A machine that is handed over on purpose: both hosts stay, the client sees nothing but a pause.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::require_root_net;
use lockstep_integration::pair::{LIMIT, Node, Pair, Protected, SOME, Setup};
use lockstep_integration::process::check;
use lockstep_integration::{Debug, Verify, work_dir};
use serde_json::json;

/// Types a command on a node's host; what is not carried out says `why`.
fn ask(pair: &Pair, node: &Node, words: &[&str], why: Option<&str>) -> Result<()> {
    let done = pair.operate(node.host, words)?;
    let said = String::from_utf8_lossy(&done.stderr);
    match why {
        None => ensure!(done.status.success(), "{words:?} is not carried out: {said}"),
        Some(why) => ensure!(
            done.status.code() == Some(1) && said.contains(why),
            "{words:?}: {}: {said}",
            done.status
        ),
    }
    Ok(())
}

/// The machine is with the other one now, and protected by the one that had it.
fn has_changed_hands(protected: Protected, term: u64) -> Result<Protected> {
    let Protected {
        counter,
        primary: old,
        backup: new,
        scene,
        ..
    } = protected;
    new.wait_for_state(&format!("protected term={term}"), LIMIT)?;
    old.run.messages.wait_for("this one starts over", LIMIT)?;
    old.wait_for_state("standby: protected", LIMIT)?;
    counter.wait_for(SOME, LIMIT)?;
    Protected::new(scene, new, old, counter)
}

#[test]
fn a_switchover_there_and_back() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = Setup::new("handover").auto().open()?;
    let pair = &protected.scene.pair;
    ask(pair, &protected.backup, &["switchover"], Some("this node stands by"))?;
    ask(pair, &protected.primary, &["switchover"], None)?;
    let there = has_changed_hands(protected, 2)?;
    ask(&there.scene.pair, &there.primary, &["switchover"], None)?;
    let back = has_changed_hands(there, 3)?;
    back.kill_primary()?.settle()
}

/// A recording belongs to one node, and goes on in every term that this one wins: as an operator suspends protection, and
/// as the backup dies. It ends where the other node wins one.
#[test]
fn a_recording_tells_its_terms_and_where_its_machine_was_handed_over() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let log = work_dir("handover-recording")?
        .join("log")
        .to_string_lossy()
        .into_owned();
    let protected = Setup::new("handover-recorded")
        .arguments(0, &["--record", &log])
        .open()?;
    let (pair, primary) = (&protected.scene.pair, &protected.primary);
    ask(pair, primary, &["suspend"], None)?;
    primary.wait_for_state("not-protected (suspended-by-user) term=2", LIMIT)?;
    ask(pair, primary, &["resume"], None)?;
    primary.wait_for_state("protected term=2", LIMIT)?;
    let protected = protected.kill_backup_now()?.protect()?;
    ask(&protected.scene.pair, &protected.primary, &["switchover"], None)?;
    let Protected { primary, backup, .. } = protected;
    backup.wait_for_state("not-protected (lost-connection) term=4", LIMIT)?;
    primary.wait_for_state("frozen (lost-term)", LIMIT)?;
    primary.run.terminate()?.report()?;
    let info = Debug::run(["info", &log, "--json"])?.json()?;
    let mut pair = info["pair"].clone();
    let terms = pair["terms"].take();
    ensure!(
        pair == json!({ "machine": "pair", "node": "a", "first_term": 1, "last_term": 3, "restarts": 0, "terms": null }),
        "{info:#}"
    );
    let terms = terms.as_array().context("terms")?;
    let told: Vec<_> = terms
        .iter()
        .map(|term| (term["term"].as_u64(), term["why"].as_str()))
        .collect();
    ensure!(
        told == [
            (Some(1), Some("the machine was restored from a snapshot")),
            (Some(2), Some("fencing (suspended-by-user)")),
            (Some(3), Some("fencing (lost-connection)")),
        ],
        "{info:#}"
    );
    for key in ["stop", "guest_ns"] {
        let began: Vec<_> = terms.iter().map(|term| term[key].as_u64()).collect();
        ensure!(began.is_sorted_by(|one, next| one < next), "{info:#}");
    }
    let place = |term: usize, key: &str| terms[term][key].as_u64().context("place");
    ensure!(place(0, "stop")? + 1 == info["first_stop"], "{info:#}");
    ensure!(place(0, "guest_ns")? == info["start_ns"], "{info:#}");
    ensure!(Some(place(2, "stop")?) < info["last_stop"].as_u64(), "{info:#}");
    // Where a term began is a position: the events agree on the time there.
    let events = Debug::run(["events", &log, "--json", "--to", &place(1, "stop")?.to_string()])?.json_lines()?;
    let last = events.last().and_then(|event| event["guest_ns"].as_u64());
    ensure!(last >= Some(place(1, "guest_ns")?), "{last:?}: {info:#}");
    let text = Debug::run(["info", &log])?;
    text.expect(0, "fencing (lost-connection)")?;
    text.expect(0, "ends          at a failover: in term 3, frozen (lost-term)")?;
    Verify::run(log.as_ref())?.identical()?;
    Ok(())
}

#[test]
fn a_backup_that_dies_in_a_switchover_leaves_the_machine_where_it_was() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = Setup::new("handover-dies").open()?;
    // It has not executed everything, and never will.
    protected.backup.run.signal(rustix::process::Signal::STOP)?;
    ask(&protected.scene.pair, &protected.primary, &["switchover"], None)?;
    protected.primary.wait_for_state("switching-over", LIMIT)?;
    let alone = protected.kill_backup_now()?;
    alone.settle()
}

#[test]
fn a_drill_is_a_failover() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    // The process is back before its peer claims, also while others use the host.
    let setup = Setup::new("drill").auto().deadline(Duration::from_secs(15));
    let protected = setup.open()?;
    let pid = protected.primary.run.pid();
    ask(&protected.scene.pair, &protected.primary, &["test-failover"], None)?;
    let Protected {
        counter,
        primary: old,
        backup: new,
        scene,
        ..
    } = protected;
    old.run.messages.wait_for("was in sync and may take over", LIMIT)?;
    new.wait_for_state("protected term=2", LIMIT)?;
    old.wait_for_state("standby: protected", LIMIT)?;
    ensure!(old.run.pid() == pid, "another process");
    counter.wait_for(SOME, LIMIT)?;
    Protected::new(scene, new, old, counter)?.settle()
}

#[test]
fn protection_is_suspended_and_resumed() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = Setup::new("suspended").open()?;
    let (pair, primary) = (&protected.scene.pair, &protected.primary);
    ask(pair, primary, &["resume"], Some("not suspended"))?;
    ask(pair, primary, &["suspend"], None)?;
    primary.wait_for_state("not-protected (suspended-by-user) term=2", LIMIT)?;
    ask(pair, primary, &["suspend"], Some("already"))?;
    ask(pair, primary, &["switchover"], Some("not-protected"))?;
    ask(pair, primary, &["test-failover"], Some("not-protected"))?;
    protected.counter.wait_for(SOME, LIMIT)?;
    ensure!(
        primary.state().starts_with("not-protected (suspended-by-user)"),
        "{}",
        primary.state()
    );
    ask(pair, primary, &["resume"], None)?;
    primary.wait_for_state("protected term=2", LIMIT)?;
    protected.kill_primary()?.settle()
}

/// The interface by which the service is reached loses its carrier where the machine runs, and not where it stands by.
#[test]
fn a_lost_carrier_hands_over() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let uplink = ["--uplink", "service", "--uplink-grace-ms", "300"];
    let scene = Setup::new("carrier")
        .auto()
        .arguments(0, &uplink)
        .arguments(1, &uplink)
        .build()?;
    let link = |host: usize, words: &[&str]| {
        let mut command: Command = scene.pair.network.hosts[host].namespace.command("ip");
        check(command.args(["link"]).args(words)).map(drop)
    };
    for host in [0, 1] {
        link(host, &["add", "service", "type", "veth", "peer", "name", "switch"])?;
        link(host, &["set", "switch", "up"])?;
        link(host, &["set", "service", "up"])?;
    }
    let protected = scene.open()?;
    let network = &protected.scene.pair.network;
    let mut command = network.hosts[protected.primary.host].namespace.command("ip");
    check(command.args(["link", "set", "switch", "down"]))?;
    protected
        .primary
        .wait_for_state("cut-off (uplink service has no carrier)", LIMIT)?;
    let Protected {
        counter,
        primary: old,
        backup: new,
        scene,
        ..
    } = protected;
    // Neither says that the machine could go back.
    new.wait_for_state("protected, failover blocked (cut-off-there)", LIMIT)?;
    old.wait_for_state(
        "standby: protected, failover blocked (uplink service has no carrier)",
        LIMIT,
    )?;
    counter.wait_for(SOME, LIMIT)?;
    let mut command = scene.pair.network.hosts[old.host].namespace.command("ip");
    check(command.args(["link", "set", "switch", "up"]))?;
    new.wait_for_state("protected term=2", LIMIT)?;
    Protected::new(scene, new, old, counter)?.settle()
}

/// Output may wait until the backup has executed the log, too.
#[test]
fn output_that_waits_for_execution() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let replayed = ["--ack", "replayed"];
    let protected = Setup::new("replayed")
        .arguments(0, &replayed)
        .arguments(1, &replayed)
        .open()?;
    let again = protected.kill_primary()?.protect()?;
    again.kill_primary()?.settle()
}

/// Ended by an operator, the machine and both processes end.
#[test]
fn a_machine_is_ended_on_both_hosts() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let Protected {
        counter,
        primary,
        backup,
        scene,
        ..
    } = Setup::new("ended").open()?;
    ask(&scene.pair, &primary, &["shutdown", "--timeout", "0"], None)?;
    let outcome = primary.run.wait(LIMIT)?;
    outcome.report()?;
    backup
        .run
        .messages
        .wait_for("an operator has ended the machine", LIMIT)?;
    let outcome = backup.run.wait(LIMIT)?;
    ensure!(outcome.status.success(), "{outcome:?}");
    drop(counter);
    Ok(())
}
