//! A pair under faults: the client on its one connection sees nothing but a pause.

use std::time::Duration;

use anyhow::{Result, ensure};
use lockstep_integration::gate::{require_program, require_root_net};
use lockstep_integration::pair::{Alone, LIMIT, Protected, Setup};
use rustix::process::Signal;

#[test]
fn both_hosts_die_one_after_the_other() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = Setup::new("pair-both").open()?;
    let again = protected.kill_primary()?.protect()?;
    again.kill_primary()?.settle_in_order()
}

#[test]
fn a_primary_that_was_stopped_does_not_come_back() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = Setup::new("pair-stopped").open()?;
    let Protected {
        primary,
        backup,
        counter,
        scene,
        ..
    } = protected;
    primary.run.signal(Signal::STOP)?;
    let alone = Alone::new(scene, backup, counter)?;
    primary.run.signal(Signal::CONT)?;
    primary.wait_for_state("frozen (lost-term)", LIMIT)?;
    alone.settle()
}

/// With its cable its clients are gone, too; tests/pair_network.rs leaves it those.
#[test]
fn a_primary_that_is_cut_off_from_the_witness_too_stands_still() -> Result<()> {
    if !require_root_net() || !require_program("etcd", "etcd-server") {
        return Ok(());
    }
    let Protected {
        primary,
        backup,
        counter,
        scene,
        ..
    } = Setup::new("pair-cut").etcd().open()?;
    scene.pair.network.set_cable(0, false)?;
    primary.wait_for_state("frozen (no-arbiter)", LIMIT)?;
    let alone = Alone::new(scene, backup, counter)?;
    alone.scene.pair.network.set_cable(0, true)?;
    primary.wait_for_state("frozen (lost-term)", LIMIT)?;
    alone.settle()
}

/// The output rule: while the backup stands still, the client hears nothing that the backup does not have.
#[test]
fn what_the_backup_does_not_have_does_not_leave() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    // Long enough that the primary does not go on alone meanwhile.
    let protected = Setup::new("pair-output").deadline(Duration::from_secs(15)).open()?;
    protected.backup.run.signal(Signal::STOP)?;
    // There is no event to wait for: the guest goes on, and what it says must not come.
    std::thread::sleep(Duration::from_secs(2));
    let before = protected.counter.answers();
    std::thread::sleep(Duration::from_secs(2));
    ensure!(protected.counter.answers() == before, "an answer left without its log");
    let Protected {
        primary,
        backup,
        counter,
        scene,
        ..
    } = protected;
    primary.run.kill()?;
    backup.run.signal(Signal::CONT)?;
    Alone::new(scene, backup, counter)?.settle()
}

/// What the guest does, how its end is reported, and what the backup hears of it.
const ENDS: [(&str, &str, &str); 3] = [
    ("reboot -f\n", "the guest reset", "the guest has reset"),
    (
        "poweroff -f\n",
        "the guest halted with interrupts off",
        "the guest has halted",
    ),
    // The kernel is told to reboot at once when it panics.
    (
        "echo c >/proc/sysrq-trigger\n",
        "the guest reset",
        "the guest has reset",
    ),
];

/// A guest that ends does so on both hosts: nobody goes on with it.
#[test]
fn a_guest_that_ends_is_not_taken_over() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    for (typed, reported, heard) in ENDS {
        let Protected {
            mut primary,
            backup,
            counter,
            scene,
            ..
        } = Setup::new("pair-ends").open()?;
        primary.run.type_text(typed)?;
        let outcome = primary.run.wait(LIMIT)?;
        ensure!(outcome.report()?["ended"] == reported, "{typed}: {outcome:?}");
        backup.run.messages.wait_for(heard, LIMIT)?;
        backup.wait_for_state("standby: starting", LIMIT)?;
        drop((counter, scene));
        backup.run.terminate()?;
    }
    Ok(())
}
