//! A pair under faults: the client on its one connection sees nothing but a pause.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use lockstep_integration::disk::check_ext4;
use lockstep_integration::gate::{require_program, require_root_net};
use lockstep_integration::load::redis_cli;
use lockstep_integration::pair::{Arbiter, Counter, Node, Pair};
use lockstep_integration::{Booted, Kind, work_dir};
use rustix::process::Signal;

const LIMIT: Duration = Duration::from_secs(60);
const HEARTBEAT: Duration = Duration::from_millis(100);
const DEADLINE: Duration = Duration::from_secs(3);
/// Answers that the client gets between two events.
const SOME: u64 = 15;

/// A protected machine without a disk on host a, its backup on host b, and a client.
struct Protected {
    pair: Pair,
    primary: Node,
    backup: Node,
    counter: Counter,
}

impl Protected {
    fn create(name: &str, arbiter: Arbiter) -> Result<Self> {
        let machine = Booted::get(Kind::Memory)?;
        let pair = Pair::create(&work_dir(name)?, arbiter, HEARTBEAT, DEADLINE)?;
        let backup = pair.start_backup(1, |run| run)?;
        let primary = pair.start_primary(0, |run| run.restore(&machine.snapshot()))?;
        primary.wait_for_state("protected", LIMIT)?;
        let counter = Counter::start(&pair.network.client, "counter")?;
        counter.wait_for(SOME, LIMIT)?;
        Ok(Self {
            pair,
            primary,
            backup,
            counter,
        })
    }
}

/// Ends the count: every answer is in the guest's counter, once.
fn settle(pair: &Pair, counter: Counter) -> Result<()> {
    counter.wait_for(SOME, LIMIT)?;
    let tally = counter.finish()?;
    println!("{tally:?}");
    let value = redis_cli(&pair.network.client, &["get", "counter"])?;
    ensure!(value == tally.last.to_string(), "the guest has {value}: {tally:?}");
    ensure!(tally.last == tally.acknowledged, "{tally:?}");
    ensure!(tally.broken == 0 && tally.jumps == 0, "{tally:?}");
    Ok(())
}

#[test]
fn both_hosts_die_one_after_the_other() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let Protected {
        pair,
        primary,
        backup,
        counter,
    } = Protected::create("pair-both", Arbiter::File)?;
    primary.run.kill()?;
    backup.wait_for_state("not-protected (lost-connection) term=2", LIMIT)?;
    counter.wait_for(SOME, LIMIT)?;
    let newcomer = pair.start_backup(0, |run| run)?;
    backup.wait_for_state("protected term=2", LIMIT)?;
    counter.wait_for(SOME, LIMIT)?;
    backup.run.kill()?;
    newcomer.wait_for_state("not-protected (lost-connection) term=3", LIMIT)?;
    settle(&pair, counter)?;
    newcomer.run.terminate()?.report()?;
    Ok(())
}

#[test]
fn the_backup_dies_and_another_joins() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let Protected {
        pair,
        primary,
        backup,
        counter,
    } = Protected::create("pair-backup-dies", Arbiter::File)?;
    backup.run.kill()?;
    primary.wait_for_state("not-protected (lost-connection) term=2", LIMIT)?;
    counter.wait_for(SOME, LIMIT)?;
    let _another = pair.start_backup(1, |run| run)?;
    primary.wait_for_state("protected term=2", LIMIT)?;
    settle(&pair, counter)
}

#[test]
fn a_primary_that_was_stopped_does_not_come_back() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let Protected {
        pair,
        primary,
        backup,
        counter,
    } = Protected::create("pair-stopped", Arbiter::File)?;
    primary.run.signal(Signal::STOP)?;
    backup.wait_for_state("not-protected (lost-connection) term=2", LIMIT)?;
    counter.wait_for(SOME, LIMIT)?;
    primary.run.signal(Signal::CONT)?;
    primary.wait_for_state("frozen (lost-term)", LIMIT)?;
    settle(&pair, counter)
}

#[test]
fn a_primary_that_is_cut_off_from_the_witness_too_stands_still() -> Result<()> {
    if !require_root_net() || !require_program("etcd", "etcd-server") {
        return Ok(());
    }
    let Protected {
        pair,
        primary,
        backup,
        counter,
    } = Protected::create("pair-cut", Arbiter::Etcd)?;
    pair.network.set_cable(0, false)?;
    primary.wait_for_state("frozen (no-arbiter)", LIMIT)?;
    backup.wait_for_state("not-protected (lost-connection) term=2", LIMIT)?;
    counter.wait_for(SOME, LIMIT)?;
    pair.network.set_cable(0, true)?;
    primary.wait_for_state("frozen (lost-term)", LIMIT)?;
    settle(&pair, counter)
}

#[test]
fn a_backup_that_is_cut_off_is_left_behind_and_comes_back() -> Result<()> {
    if !require_root_net() || !require_program("etcd", "etcd-server") {
        return Ok(());
    }
    let Protected {
        pair,
        primary,
        backup,
        counter,
    } = Protected::create("pair-cut-backup", Arbiter::Etcd)?;
    pair.network.set_cable(1, false)?;
    primary.wait_for_state("not-protected (lost-connection) term=2", LIMIT)?;
    backup.wait_for_state("standby: frozen (no-arbiter)", LIMIT)?;
    counter.wait_for(SOME, LIMIT)?;
    pair.network.set_cable(1, true)?;
    backup.wait_for_state("standby: protected", LIMIT)?;
    primary.wait_for_state("protected term=2", LIMIT)?;
    settle(&pair, counter)
}

/// A blank image as large as another, for a host that has never had the machine.
fn blank_like(image: &Path, to: PathBuf) -> Result<PathBuf> {
    std::fs::File::create(&to)?.set_len(std::fs::metadata(image)?.len())?;
    Ok(to)
}

#[test]
fn a_disk_goes_along() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let dir = work_dir("pair-disk")?;
    let machine = Booted::get(Kind::Redis)?;
    let pair = Pair::create(&dir, Arbiter::File, HEARTBEAT, DEADLINE)?;
    let first = machine.copy_disk(&dir)?;
    let second = blank_like(&first, dir.join("b.img"))?;
    let backup = pair.start_backup(1, |run| run.disk(&second))?;
    let mut primary = pair.start_primary(0, |run| run.restore(&machine.snapshot()).disk(&first))?;
    primary.wait_for_state("protected", LIMIT)?;
    let counter = Counter::start(&pair.network.client, "counter")?;
    counter.wait_for(SOME, LIMIT)?;
    for number in 0..3 {
        primary.run.type_text(&format!(
            "echo line-{number} >>/data/log && fsync /data/log && echo WRITTEN-$(({number} + 1000))\n"
        ))?;
        primary.run.wait_for(&format!("WRITTEN-{}", number + 1000), LIMIT)?;
    }
    primary.run.kill()?;
    backup.wait_for_state("not-protected (lost-connection) term=2", LIMIT)?;
    counter.wait_for(SOME, LIMIT)?;
    // What host a has now is behind; it gets what differs, or rather all of it.
    let returning = pair.start_backup(0, |run| run.disk(&first))?;
    backup.wait_for_state("protected term=2", LIMIT)?;
    settle(&pair, counter)?;
    backup.run.kill()?;
    returning.wait_for_state("not-protected (lost-connection) term=3", LIMIT)?;
    returning.run.terminate()?.report()?;
    check_ext4(&first)?;
    let log = lockstep_integration::disk::read_file(&first, "/log")?;
    ensure!(log == "line-0\nline-1\nline-2\n", "the disk's log has {log:?}");
    Ok(())
}

/// The output rule: while the backup stands still, the client hears nothing that the backup does not have.
#[test]
fn what_the_backup_does_not_have_does_not_leave() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let machine = Booted::get(Kind::Memory)?;
    // Long enough that the primary does not go on alone meanwhile.
    let patient = Duration::from_secs(15);
    let pair = Pair::create(&work_dir("pair-output")?, Arbiter::File, HEARTBEAT, patient)?;
    let backup = pair.start_backup(1, |run| run)?;
    let primary = pair.start_primary(0, |run| run.restore(&machine.snapshot()))?;
    primary.wait_for_state("protected", LIMIT)?;
    let counter = Counter::start(&pair.network.client, "counter")?;
    counter.wait_for(SOME, LIMIT)?;
    backup.run.signal(Signal::STOP)?;
    // There is no event to wait for: the guest goes on, and what it says must not come.
    std::thread::sleep(Duration::from_secs(2));
    let before = counter.answers();
    std::thread::sleep(Duration::from_secs(2));
    ensure!(counter.answers() == before, "an answer left without its log");
    primary.run.kill()?;
    backup.run.signal(Signal::CONT)?;
    backup.wait_for_state("not-protected (lost-connection) term=2", LIMIT)?;
    settle(&pair, counter)
}

/// A guest that resets ends on both hosts: nobody goes on with it.
#[test]
fn a_guest_that_ends_is_not_taken_over() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let Protected {
        pair,
        mut primary,
        backup,
        counter,
    } = Protected::create("pair-ends", Arbiter::File)?;
    primary.run.type_text("reboot -f\n")?;
    let outcome = primary.run.wait(LIMIT)?;
    ensure!(outcome.report()?["ended"] == "the guest reset", "{outcome:?}");
    backup.run.messages.wait_for("the guest has reset", LIMIT)?;
    backup.wait_for_state("standby: starting", LIMIT)?;
    drop((counter, pair));
    backup.run.terminate()?;
    Ok(())
}
