//! What breaks on hosts, tried on protected pairs: docs/operations.md ("What was tried") tells what was seen.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lockstep_integration::gate::{require_program, require_root_net};
use lockstep_integration::pair::{
    LIMIT, Node, Pair, Protected, SOME, Setup, Tick, status, until_found, wait_for_status,
};
use lockstep_integration::process::check;
use lockstep_integration::{Debug, work_dir};
use rustix::process::Signal;

/// Bytes of the machine's memory.
const MEMORY: u64 = 64 << 20;
/// What two hosts that stand still together wait for each other afterwards.
const DEADLINE: Duration = Duration::from_secs(3);
/// After which a node has looked at the arbiter.
const LOOK: Duration = Duration::from_secs(6);
/// Which a machine that nobody protects is not.
const BLOCKED: &str = "protected, failover blocked";

/// Waits for a state of the node on `host`, without its reason.
fn wait_on(pair: &Pair, host: usize, state: &str) -> Result<()> {
    wait_for_status(&pair.socket(host), LIMIT, |now| Ok(now["state"] == state)).map(drop)
}

/// Removes what is in a directory.
fn clean(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            std::fs::remove_dir_all(path)?;
        } else {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[test]
fn a_socket_that_was_removed_is_made_again_or_its_loss_is_told() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = Setup::new("try-run-cleaned").open()?;
    let pair = &protected.scene.pair;
    for node in [&protected.primary, &protected.backup] {
        clean(&pair.run_dir(node.host))?;
        node.run.messages.wait_for("was removed, and is made again", LIMIT)?;
        let checked = pair.operate(node.host, &["status", "pair", "--check"])?;
        ensure!(checked.status.success(), "{checked:?}");
    }
    // The sandbox knows the directory that was there, and no other in its place.
    std::fs::remove_dir_all(pair.run_dir(0))?;
    let lost = "nobody can ask how the machine is";
    protected.primary.run.messages.wait_for(lost, LIMIT)?;
    ensure!(
        protected.primary.state() == "protected term=1",
        "{}",
        protected.primary.state()
    );
    protected.kill_primary()?.settle()
}

/// Has etcd have the data in `from`, by way of `to`, where its present ones are kept.
fn exchange(pair: &mut Pair, from: &Path, to: &Path) -> Result<()> {
    let etcd = pair.etcd()?;
    etcd.kill();
    std::fs::rename(etcd.data(), to)?;
    check(Command::new("cp").arg("-r").arg(from).arg(etcd.data()))?;
    etcd.run()
}

#[test]
fn an_etcd_that_was_restored_from_an_older_copy_is_told_of_and_one_that_was_compacted_is_as_good() -> Result<()> {
    if !require_root_net() || !require_program("etcd", "etcd-server") {
        return Ok(());
    }
    let home = work_dir("try-etcd-copies")?;
    let [older, newer, gone] = ["older", "newer", "gone"].map(|name| home.join(name));
    let mut scene = Setup::new("try-etcd").etcd().build()?;
    let primary = scene.start_primary(0)?;
    primary.wait_for_state("not-protected (need-backup)", LIMIT)?;
    // Of the term in which the machine was alone.
    let etcd = scene.pair.etcd()?;
    etcd.kill();
    check(Command::new("cp").arg("-r").arg(etcd.data()).arg(&older))?;
    etcd.run()?;
    let backup = scene.start_backup(1)?;
    primary.wait_for_state("protected", LIMIT)?;
    let counter = scene.count()?;
    let mut protected = Protected::new(scene, primary, backup, counter)?;
    // A node looks every five seconds; what it has not seen it does not miss.
    std::thread::sleep(LOOK);

    exchange(&mut protected.scene.pair, &older, &newer)?;
    let pair = &protected.scene.pair;
    for node in [&protected.primary, &protected.backup] {
        node.run
            .messages
            .wait_for("the record at the arbiter went back", LIMIT)?;
        wait_on(pair, node.host, BLOCKED)?;
        let checked = pair.operate(node.host, &["status", "--check"])?;
        ensure!(checked.status.code() == Some(1), "{checked:?}");
    }
    protected.check_one_live()?;

    exchange(&mut protected.scene.pair, &newer, &gone)?;
    let pair = &mut protected.scene.pair;
    for host in [0, 1] {
        wait_on(pair, host, "protected")?;
    }
    let answer = pair.etcd()?.post("/v3/kv/range", r#"{"key":"YQ=="}"#)?;
    let revision: String = answer
        .split_once(r#""revision":""#)
        .context("no revision")?
        .1
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let compacted = pair.etcd()?.post(
        "/v3/kv/compaction",
        &format!(r#"{{"revision":"{revision}","physical":true}}"#),
    )?;
    ensure!(compacted.contains("200 OK"), "{compacted}");
    protected.kill_primary()?.settle()
}

/// Where etcd has the record of the term before, the node that it names believes itself to be the owner, though the machine
/// runs on the other host.
#[test]
fn a_node_that_is_started_while_etcd_has_an_older_record_starts_nothing() -> Result<()> {
    if !require_root_net() || !require_program("etcd", "etcd-server") {
        return Ok(());
    }
    let home = work_dir("try-etcd-start-copies")?;
    let [older, newer, gone] = ["older", "newer", "gone"].map(|name| home.join(name));
    let mut scene = Setup::new("try-etcd-start").etcd().auto().build()?;
    let primary = scene.start_primary(0)?;
    primary.wait_for_state("not-protected (need-backup)", LIMIT)?;
    let etcd = scene.pair.etcd()?;
    etcd.kill();
    check(Command::new("cp").arg("-r").arg(etcd.data()).arg(&older))?;
    etcd.run()?;
    let backup = scene.start_backup(1)?;
    primary.wait_for_state("protected", LIMIT)?;
    let counter = scene.count()?;
    let mut alone = Protected::new(scene, primary, backup, counter)?.kill_primary()?;

    exchange(&mut alone.scene.pair, &older, &newer)?;
    let ended = alone.scene.start_backup(0)?.run.wait(LIMIT)?;
    ensure!(ended.status.code() == Some(1), "{}", ended.status);
    ensure!(
        ended.messages.contains("the record at the arbiter went back"),
        "{}",
        ended.messages
    );
    alone.check_silent(0)?;

    exchange(&mut alone.scene.pair, &newer, &gone)?;
    alone.protect()?.settle()
}

#[test]
fn hosts_that_stand_still_together_go_on_with_one_machine() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let home = work_dir("try-frozen-log")?;
    let log = home.join("log");
    let Protected {
        counter,
        primary,
        backup,
        scene,
        ..
    } = Setup::new("try-frozen")
        .auto()
        .arguments(
            0,
            &[
                "--record",
                log.to_str().context("path")?,
                "--record-max-bytes",
                "20000000000",
            ],
        )
        .open()?;
    // As a freezer has it, or a laptop's lid. The only event is that time goes by.
    for node in [&primary, &backup] {
        node.run.signal(Signal::STOP)?;
    }
    std::thread::sleep(DEADLINE * 2);
    for node in [&primary, &backup] {
        node.run.signal(Signal::CONT)?;
    }
    let (live, other) = protected_by(&scene.pair, primary, backup)?;
    counter.wait_for(SOME, LIMIT)?;
    // While it is written.
    let part = std::fs::read_dir(&log)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.is_dir())
        .context("no part")?;
    let told = Debug::run(["info".as_ref(), part.as_os_str()])?;
    told.expect(0, "")?;
    Protected::new(scene, live, other, counter)?.kill_primary()?.settle()
}

/// Waits until both are protected, and tells who has the machine.
fn protected_by(pair: &Pair, a: Node, b: Node) -> Result<(Node, Node)> {
    for host in [a.host, b.host] {
        let done = pair.operate(host, &["wait", "pair", "--for", "protected", "--timeout", "240"])?;
        ensure!(done.status.success(), "{done:?}");
    }
    let is_primary = |node: &Node| Ok::<_, anyhow::Error>(status(&pair.socket(node.host))?["role"] == "primary");
    match (is_primary(&a)?, is_primary(&b)?) {
        (true, false) => Ok((a, b)),
        (false, true) => Ok((b, a)),
        both => bail!("who is live: {both:?}"),
    }
}

#[test]
fn a_report_that_finds_no_room_is_told_and_the_machine_is_healed() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let mut scene = Setup::new("try-reports-full").build()?;
    for host in [0, 1] {
        let place = scene.pair.run_dir(host).join("pair.divergences");
        let place = place.display();
        let full =
            format!("mkdir -p {place}; mount -t tmpfs -o size=4k none {place}; head -c 4096 /dev/zero >{place}/filler");
        scene.pair.prepare(host, full);
    }
    let protected = scene.open()?;
    until_found(&protected, MEMORY, Tick::flip)?;
    for node in [&protected.primary, &protected.backup] {
        node.run
            .messages
            .wait_for("a divergence report cannot be kept", LIMIT)?;
    }
    // Said after that.
    protected.primary.wait_for_state("protected term=2", LIMIT)?;
    protected.kill_primary()?.settle()
}
