//! A pair under faults: the client on its one connection sees nothing but a pause.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lockstep_integration::gate::{require_program, require_root_net, rounds};
use lockstep_integration::pair::{Alone, LIMIT, Protected, Setup, wait_for_status};
use rustix::process::Signal;

/// From one look at what a network counts to the next.
const LOOK: Duration = Duration::from_millis(50);

#[test]
fn both_hosts_die_one_after_the_other() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = Setup::new("pair-both").open()?;
    let again = protected.kill_primary()?.protect()?;
    again.kill_primary()?.settle_in_order()
}

/// Stops a protected primary, and has it go on when its machine is another's; `idle`, when all that its guest said had left.
fn stop_until_it_is_too_late(name: &str, idle: bool) -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    for _ in 0..rounds() {
        let Protected {
            primary,
            backup,
            counter,
            scene,
            ..
        } = Setup::new(name).open()?;
        if idle {
            counter.hush(LIMIT)?;
            wait_for_status(&scene.pair.socket(primary.host), LIMIT, |now| Ok(now["held"] == 0))?;
        }
        primary.run.signal(Signal::STOP)?;
        // What the client wants now waits for the stopped machine, too, which answers it in its time.
        counter.set_silent(false);
        let alone = Alone::new(scene, backup, counter)?;
        let sent = alone.scene.pair.network.frames(primary.host)?;
        primary.run.signal(Signal::CONT)?;
        primary.wait_for_state("frozen (lost-term)", LIMIT)?;
        // Stopped between asking whether a turn's effects may go and letting them go, it lets those go, which were committed; what
        // its guest says from now on stays.
        alone.check_silent(primary.host)?;
        let late = alone.scene.pair.network.frames(primary.host)? - sent;
        println!("{late} frames left late");
        ensure!(late == 0 || !idle, "{late} frames left of a machine that is another's");
        alone.settle()?;
    }
    Ok(())
}

#[test]
fn a_primary_that_was_stopped_does_not_come_back() -> Result<()> {
    stop_until_it_is_too_late("pair-stopped", false)
}

#[test]
fn a_primary_that_was_stopped_with_nothing_to_let_go_says_nothing_more() -> Result<()> {
    stop_until_it_is_too_late("pair-stopped-idle", true)
}

/// Each network learns where its machine is now, and learns nothing of it from a host where it only stands by.
#[test]
fn a_machine_is_announced_where_it_goes_live() -> Result<()> {
    if !require_root_net() || !require_program("nft", "nftables") {
        return Ok(());
    }
    let scene = Setup::new("pair-announced").build()?;
    scene.pair.network.count_announcements()?;
    let mut protected = scene.open()?;
    for host in [1, 0] {
        protected.check_one_live()?;
        let before = protected.scene.pair.network.announcements(host)?;
        ensure!(before == 0, "a backup has announced the machine {before} times");
        let alone = protected.kill_primary()?;
        // At once, and then again and again: a switch may have missed the first one.
        let begin = Instant::now();
        while alone.scene.pair.network.announcements(host)? < 2 {
            ensure!(begin.elapsed() < LIMIT, "the machine is not announced again");
            std::thread::sleep(LOOK);
        }
        protected = alone.protect()?;
    }
    protected.settle()
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
