//! Both hosts die. Only the one that the arbiter's record names boots, from its own disk, and the other one joins it.

use std::time::Duration;

use anyhow::{Result, ensure};
use lockstep_integration::gate::require_root_net;
use lockstep_integration::pair::{Alone, Journal, LIMIT, Node, Protected, Scene, Setup};
use lockstep_integration::snapshot::BOOT_LIMIT;
use rustix::process::Signal;

/// Whether `host` refuses to run the machine, and says why.
fn check_refused(scene: &Scene, host: usize, owner: &str, term: u32) -> Result<()> {
    let outcome = scene.start_primary(host)?.run.wait(LIMIT)?;
    println!("{}", outcome.messages.trim());
    let holder = format!("node `{owner}` holds term {term}");
    outcome.expect_failure(1, &[&holder, "newer than this node's disk", "lockstep-backup run"])
}

/// Waits until a machine that boots is protected, and has all that was acknowledged before; then its host dies, too.
fn check_booted(mut scene: Scene, primary: Node, mut backup: Node, records: u64) -> Result<()> {
    primary.run.wait_for("LOCKSTEP-READY", BOOT_LIMIT)?;
    primary.wait_for_state("protected", LIMIT)?;
    scene.kill(primary)?;
    backup.wait_for_state("not-protected (lost-connection)", LIMIT)?;
    backup.run.type_text("appendlog --check /data/journal\n")?;
    backup.run.wait_for(&format!("LOG-OK records={records}"), LIMIT)
}

#[test]
fn the_primary_boots_where_both_died_protected() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let Protected {
        mut primary,
        backup,
        mut scene,
        ..
    } = Setup::new("pair-restart-first")
        .disk()
        // The primary is not to miss its backup before it dies itself.
        .deadline(Duration::from_secs(10))
        .open()?;
    Journal::start(&mut primary)?;
    for node in [&backup, &primary] {
        node.run.signal(Signal::KILL)?;
    }
    scene.kill(backup)?;
    scene.kill(primary)?;
    let Some([disk, replica]) = scene.disks.clone() else {
        return Ok(());
    };
    let records = Journal::check(&disk, &scene.consoles)?;
    check_refused(&scene, 1, "a", 1)?;
    // Without a pair there is no arbiter to ask; the disk itself says what it is.
    let bare = lockstep_integration::Run::bare()?
        .restore(&scene.snapshot())
        .disk(&replica);
    let outcome = bare.complete(LIMIT)?;
    println!("{}", outcome.messages.trim());
    outcome.expect_failure(1, &["is a backup's and was never live", "lockstep-backup run"])?;
    // The one that may not boot is there first.
    let backup = scene.start_backup(1)?;
    let primary = scene.boot_primary(0)?;
    check_booted(scene, primary, backup, records)
}

#[test]
fn the_heir_boots_where_both_died_after_a_failover() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let mut protected = Setup::new("pair-restart-second").disk().open()?;
    Journal::start(&mut protected.primary)?;
    let Alone { live, mut scene, .. } = protected.kill_primary()?;
    let more = Journal::last_acknowledged(&scene.consoles[0])?.unwrap_or(0) + 10;
    live.run.wait_for(&format!("ACK {more}"), LIMIT)?;
    scene.kill(live)?;
    let Some([old, disk]) = scene.disks.clone() else {
        return Ok(());
    };
    let records = Journal::check(&disk, &scene.consoles)?;
    let behind = Journal::check(&old, [])?;
    ensure!(
        behind < records,
        "the disk that is behind has {behind} records of {records}"
    );
    check_refused(&scene, 0, "b", 2)?;
    let primary = scene.boot_primary(1)?;
    primary.run.wait_for("LOCKSTEP-INIT", BOOT_LIMIT)?;
    check_refused(&scene, 0, "b", 3)?;
    let backup = scene.start_backup(0)?;
    check_booted(scene, primary, backup, records)
}
