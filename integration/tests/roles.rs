//! Nodes that are all started with the same command: the arbiter's record decides which one has the machine.

use std::fs::OpenOptions;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::require_root_net;
use lockstep_integration::pair::{Alone, Arbiter, LIMIT, PORT, Pair, Protected, Setup};
use lockstep_integration::{Booted, Kind, work_dir};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde_json::Value;

const LIMIT_SECONDS: &str = "240";
const HEARTBEAT: Duration = Duration::from_millis(100);
const DEADLINE: Duration = Duration::from_secs(3);
/// A process that is started looks at the record before this, also while others use the host.
const UNHURRIED: Duration = Duration::from_secs(15);

fn create(name: &str) -> Result<Pair> {
    Pair::create(&work_dir(name)?, Arbiter::File, HEARTBEAT, DEADLINE)
}

fn wait_on(pair: &Pair, host: usize, state: &str) -> Result<()> {
    let done = pair.operate(host, &["wait", "pair", "--for", state, "--timeout", LIMIT_SECONDS])?;
    ensure!(done.status.success(), "{}", told(&done));
    Ok(())
}

fn told(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn status(pair: &Pair, host: usize) -> Result<Value> {
    let output = pair.operate(host, &["status", "pair", "--json"])?;
    ensure!(output.status.success(), "{}", told(&output));
    let all: Value = serde_json::from_slice(&output.stdout)?;
    Ok(all[0].clone())
}

#[test]
fn an_owner_that_was_killed_comes_back_as_a_backup_by_the_same_command() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = Setup::new("roles-killed").auto().open()?;
    let stands_by = "owns the machine: this one stands by";
    protected.backup.run.messages.wait_for(stands_by, LIMIT)?;
    for host in [0, 1] {
        wait_on(&protected.scene.pair, host, "protected")?;
    }
    let again = protected.kill_primary()?.protect()?;
    again.kill_primary()?.protect()?.settle()
}

/// It is killed and started again before its backup has claimed the term: it waits for that, and stands by.
#[test]
fn an_owner_that_is_back_before_its_peer_has_claimed_lets_it() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let Protected {
        primary,
        backup,
        counter,
        mut scene,
        ..
    } = Setup::new("roles-quick").auto().deadline(UNHURRIED).open()?;
    let host = primary.host;
    scene.kill(primary)?;
    let returned = scene.start_backup(host)?;
    returned.run.messages.wait_for("was in sync and may take over", LIMIT)?;
    Alone::new(scene, backup, counter)?.protect_with(returned)?.settle()
}

#[test]
fn an_owner_that_stood_still_too_long_becomes_a_backup_by_itself() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let Protected {
        primary: owner,
        backup,
        counter,
        scene,
        ..
    } = Setup::new("roles-stopped").auto().open()?;
    let pid = status(&scene.pair, owner.host)?["pid"].clone();
    owner.run.signal(Signal::STOP)?;
    let alone = Alone::new(scene, backup, counter)?;
    owner.run.signal(Signal::CONT)?;
    owner.run.messages.wait_for("this one starts over", LIMIT)?;
    let protected = alone.protect_with(owner)?;
    let now = status(&protected.scene.pair, protected.backup.host)?;
    ensure!(now["role"] == "backup" && now["pid"] == pid, "{now}");
    // A backup as good as any.
    protected.kill_primary()?.settle()
}

#[test]
fn nothing_boots_while_the_arbiter_is_out_of_reach() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let pair = create("roles-arbiter")?;
    let machine = Booted::get(Kind::Memory)?;
    let place = pair.arbiter().strip_prefix("file:").context("no directory")?;
    let path = format!("{place}/pair.lock");
    let lock = OpenOptions::new().create(true).append(true).open(path)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let node = pair.start_auto(0, |run| run.restore(&machine.snapshot()))?;
    wait_on(&pair, 0, "starting (no-arbiter)")?;
    drop(lock);
    node.wait_for_state("not-protected (need-backup) term=1", LIMIT)?;
    wait_on(&pair, 0, "not-protected (need-backup)")
}

#[test]
fn a_node_is_promoted_by_force_only_when_the_other_host_is_silent() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let pair = create("roles-promote")?;
    let machine = Booted::get(Kind::Redis)?;
    let first = machine.copy_disk(pair.dir())?;
    let second = pair.dir().join("b.img");
    std::fs::copy(&first, &second)?;
    let mark = pair.dir().join("b.img.replica");
    std::fs::write(&mark, "a\n")?;
    let with = |disk: &std::path::Path| {
        let (snapshot, disk) = (machine.snapshot(), disk.to_owned());
        move |run: lockstep_integration::Run| run.restore(&snapshot).disk(&disk)
    };
    // No record, and a disk that is a backup's: it neither boots nor takes the term.
    let marked = pair.start_auto(1, with(&second))?.run.wait(LIMIT)?;
    marked.expect_failure(1, &["is a backup's"])?;
    let owner = pair.start_auto(0, with(&first))?;
    owner.wait_for_state("not-protected (need-backup) term=1", LIMIT)?;
    owner.run.kill()?;
    let (image, peer) = (
        second.to_str().context("path")?,
        format!("{}:{PORT}", pair.network.hosts[0].ip),
    );
    let arbiter = pair.arbiter();
    let base = ["promote", "pair", "--node", "b", "--arbiter", arbiter, "--disk", image];
    let promote = |more: &[&str]| pair.operate(1, &[&base[..], more].concat());
    let refused = |output: Output, why: &str| {
        ensure!(
            output.status.code() == Some(1) && told(&output).contains(why),
            "{}",
            told(&output)
        );
        Ok(())
    };
    let both = ["--force", "--peer-is-powered-off"];
    refused(promote(&[])?, "Nothing was changed")?;
    refused(promote(&["--force"])?, "--peer-is-powered-off")?;
    refused(promote(&[&both[..], &["--peer", &peer]].concat())?, "not powered off")?;
    // A process that stands by here is in the way, too.
    let standby = pair.start_auto(1, with(&second))?;
    standby.run.messages.wait_for("this one stands by", LIMIT)?;
    standby.wait_for_state("standby: starting", LIMIT)?;
    refused(promote(&both)?, "end it first")?;
    standby.run.terminate()?;
    ensure!(mark.exists(), "the mark went without a promotion");
    pair.network.set_cable(0, false)?;
    let done = promote(&[&both[..], &["--peer", &peer]].concat())?;
    ensure!(done.status.success() && !mark.exists(), "{}", told(&done));
    let kept = std::fs::read_to_string(pair.dir().join("b.img.promoted"))?;
    ensure!(kept.contains("term 2") && kept.contains("term 1 of `a`"), "{kept}");
    refused(promote(&both)?, "already")?;
    let owner = pair.start_auto(1, with(&second))?;
    owner.wait_for_state("not-protected (need-backup) term=3", LIMIT)
}
