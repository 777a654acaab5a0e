//! A guest that resets: its machine is booted anew and protected unasked, by whichever node may, and not for ever.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::require_root_net;
use lockstep_integration::pair::{LIMIT, Node, Scene, Setup, status, wait_for_status};
use lockstep_integration::snapshot::BOOT_LIMIT;
use lockstep_integration::{Debug, work_dir};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

/// Bytes of a ring: many start states.
const RING: &str = "1000000000";
const ANEW: &str = "this node starts over and boots it anew";

/// A pair whose machine was booted, with more arguments on both hosts.
fn booted(name: &str, arguments: &[&str]) -> Result<(Scene, Node, Node)> {
    let setup = Setup::new(name).disk().auto();
    let scene = setup.arguments(0, arguments).arguments(1, arguments).build()?;
    let primary = scene.boot_auto(0)?;
    primary.wait_for_state("not-protected (need-backup)", BOOT_LIMIT)?;
    let backup = scene.boot_auto(1)?;
    is_ready(&scene, &primary)?;
    Ok((scene, primary, backup))
}

/// Waits until the machine has booted on this node, and is protected.
fn is_ready(scene: &Scene, node: &Node) -> Result<()> {
    node.run.wait_for("LOCKSTEP-READY", BOOT_LIMIT)?;
    let socket = scene.pair.socket(node.host);
    let is_protected = |status: &Value| Ok(status["state"] == "protected" && status["role"] == "primary");
    wait_for_status(&socket, LIMIT, is_protected)?;
    Ok(())
}

fn socket(scene: &Scene, node: &Node) -> PathBuf {
    scene.pair.socket(node.host)
}

/// The parts of a ring, as `info` tells them.
fn parts(ring: &Path) -> Result<Vec<(String, String)>> {
    let info = Debug::run(["info".as_ref(), ring.as_os_str(), "--json".as_ref()])?.json()?;
    let text = |part: &Value, name: &str| part[name].as_str().unwrap_or_default().to_owned();
    let parts = info["parts"].as_array().context("parts")?;
    Ok(parts
        .iter()
        .map(|part| (text(part, "begins"), text(part, "ends")))
        .collect())
}

#[test]
fn a_guest_that_resets_is_booted_anew_and_protected() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let ring = work_dir("pair-reset-ring")?.join("ring");
    let setup = Setup::new("pair-reset").disk().auto();
    let record = ["--record", &ring.display().to_string(), "--record-max-bytes", RING];
    let scene = setup.arguments(0, &record).build()?;
    let mut primary = scene.boot_auto(0)?;
    primary.wait_for_state("not-protected (need-backup)", BOOT_LIMIT)?;
    let backup = scene.boot_auto(1)?;
    is_ready(&scene, &primary)?;
    let first = status(&socket(&scene, &primary))?;
    primary
        .run
        .type_text("echo KEPT-$((6 * 7)) >/data/kept; sync; cat /data/kept\n")?;
    primary.run.wait_for("KEPT-42", LIMIT)?;
    // By the keyboard controller or the reset register; at once; by a panic.
    let ways = [
        "reboot -f\n",
        "echo b >/proc/sysrq-trigger\n",
        "echo c >/proc/sysrq-trigger\n",
    ];
    for way in ways {
        primary.run.type_text(way)?;
        primary.run.messages.wait_for(ANEW, LIMIT)?;
        is_ready(&scene, &primary)?;
        primary.run.type_text("cat /data/kept\n")?;
        primary.run.wait_for("KEPT-42", LIMIT)?;
    }
    let last = status(&socket(&scene, &primary))?;
    ensure!(first["pid"] == last["pid"], "{first} {last}");
    // Each boot has a term: the one that is won for the reset, and the one that it is booted in.
    let term = |status: &Value| status["term"].as_u64();
    ensure!(
        term(&last) == term(&first).map(|term| term + 2 * ways.len() as u64),
        "{last}"
    );
    drop(backup);
    drop(primary);
    let parts = parts(&ring)?;
    let boots: Vec<_> = parts.iter().filter(|(begins, _)| begins.starts_with("boot")).collect();
    ensure!(
        boots.len() == 1 + ways.len() && boots[3].0 == "boot after reset 3",
        "{parts:?}"
    );
    let resets = parts
        .iter()
        .filter(|(_, ends)| ends.contains("the guest reset"))
        .count();
    ensure!(resets == ways.len(), "{parts:?}");
    Ok(())
}

/// The arbiter does not answer while the primary, whose guest has reset, asks for its term; and it dies then.
#[test]
fn a_primary_that_dies_in_a_reboot_leaves_it_to_its_backup() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let (mut scene, mut primary, mut backup) = booted("pair-reset-killed", &[])?;
    primary
        .run
        .type_text("echo KEPT-$((6 * 7)) >/data/kept; sync; cat /data/kept\n")?;
    primary.run.wait_for("KEPT-42", LIMIT)?;
    let place = scene.pair.arbiter().strip_prefix("file:").context("no directory")?;
    let lock = OpenOptions::new()
        .create(true)
        .append(true)
        .open(format!("{place}/pair.lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    primary.run.type_text("reboot -f\n")?;
    primary.wait_for_state("fencing (lost-connection)", LIMIT)?;
    let host = primary.host;
    scene.kill(primary)?;
    drop(lock);
    backup.run.messages.wait_for(ANEW, LIMIT)?;
    let returned = scene.boot_auto(host)?;
    is_ready(&scene, &backup)?;
    backup.run.type_text("cat /data/kept\n")?;
    backup.run.wait_for("KEPT-42", LIMIT)?;
    returned.wait_for_state("standby: protected", LIMIT)
}

#[test]
fn a_guest_that_resets_too_often_is_stopped() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let (scene, mut primary, backup) = booted("pair-reset-often", &["--restarts-at-most", "1"])?;
    primary.run.type_text("reboot -f\n")?;
    primary.run.messages.wait_for(ANEW, LIMIT)?;
    is_ready(&scene, &primary)?;
    primary.run.type_text("reboot -f\n")?;
    let is_stopped = |status: &Value| Ok(status["state"] == "stopped");
    let told = wait_for_status(&socket(&scene, &primary), LIMIT, is_stopped)?;
    ensure!(
        told["reason"] == "restarts-too-often" && told["role"] == "primary",
        "{told}"
    );
    let is_waiting = |status: &Value| Ok(status["state"] == "starting");
    wait_for_status(&socket(&scene, &backup), LIMIT, is_waiting)?;
    let refused = scene.pair.operate(primary.host, &["switchover"])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(1) && said.contains("too often"), "{said}");
    let ended = scene.pair.operate(primary.host, &["shutdown"])?;
    ensure!(ended.status.success(), "{ended:?}");
    let outcome = primary.run.wait(LIMIT)?;
    ensure!(outcome.status.success(), "{outcome:?}");
    Ok(())
}

/// Waits until the machine is stopped on `node`, ends the node, and returns its reason.
fn is_stopped(scene: &Scene, node: Node) -> Result<String> {
    let stopped = |status: &Value| Ok(status["state"] == "stopped" && status["role"] == "primary");
    let told = wait_for_status(&socket(scene, &node), LIMIT, stopped)?;
    let ended = scene.pair.operate(node.host, &["shutdown"])?;
    ensure!(ended.status.success(), "{ended:?}");
    let outcome = node.run.wait(LIMIT)?;
    ensure!(outcome.status.success(), "{outcome:?}");
    Ok(told["reason"].as_str().context("a reason")?.to_owned())
}

/// A reboot does what it always does; a panic stops the machine, also where the kernel said so to a node that has died since.
#[test]
fn a_guest_that_panics_is_stopped_where_that_is_wanted() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let (mut scene, mut primary, backup) = booted("pair-reset-panic", &["--on-panic", "stop"])?;
    primary.run.type_text("reboot -f\n")?;
    primary.run.messages.wait_for(ANEW, LIMIT)?;
    is_ready(&scene, &primary)?;
    // Seconds from the panic to the reset.
    primary
        .run
        .type_text("echo 10 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger\n")?;
    primary.run.wait_for("Kernel panic - not syncing", LIMIT)?;
    scene.kill(primary)?;
    let host = backup.host;
    ensure!(is_stopped(&scene, backup)? == "panic", "heard as a replica");
    // Who starts the process anew wants the machine to be booted.
    let mut anew = scene.boot_auto(host)?;
    anew.run.wait_for("LOCKSTEP-READY", BOOT_LIMIT)?;
    anew.run.type_text("echo c >/proc/sysrq-trigger\n")?;
    ensure!(is_stopped(&scene, anew)? == "panic", "heard as the primary");
    Ok(())
}

#[test]
fn a_machine_whose_protection_is_suspended_stays_so_after_a_reset() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let (scene, mut primary, _backup) = booted("pair-reset-suspended", &[])?;
    let suspended = scene.pair.operate(primary.host, &["suspend"])?;
    ensure!(suspended.status.success(), "{suspended:?}");
    primary.wait_for_state("not-protected (suspended-by-user)", LIMIT)?;
    primary.run.type_text("reboot -f\n")?;
    primary.run.messages.wait_for(ANEW, LIMIT)?;
    primary.wait_for_state("not-protected (suspended-by-user)", LIMIT)?;
    // It boots to its end, which is longer than a backup that waits takes to join.
    primary.run.wait_for("LOCKSTEP-READY", BOOT_LIMIT)?;
    let told = status(&socket(&scene, &primary))?;
    ensure!(
        told["state"] == "not-protected" && told["reason"] == "suspended-by-user",
        "{told}"
    );
    let resumed = scene.pair.operate(primary.host, &["resume"])?;
    ensure!(resumed.status.success(), "{resumed:?}");
    primary.wait_for_state("protected", LIMIT)
}
