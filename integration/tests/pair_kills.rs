//! Kills at random moments, one after the other on one machine: whatever the host was doing, the machine goes on, the
//! host comes back, and nothing that was acknowledged is lost.

use std::time::Duration;

use anyhow::{Result, ensure};
use lockstep_integration::gate::{ordinary_host, require_root_net, rounds, soak};
use lockstep_integration::load::Benchmark;
use lockstep_integration::pair::{Alone, Counter, Journal, LIMIT, Protected, Proxy, Scene, Setup, Weather};
use lockstep_integration::random::Random;
use lockstep_integration::snapshot::BOOT_LIMIT;

/// Kills come up to this long after what they are to hit has begun.
const SOON: Duration = Duration::from_millis(1500);
/// Requests of a burst, of which the guest answers 20 a second and more, from four connections.
const BURST: u32 = 40;

/// What goes on when a host is killed. The guest syncs its disk all the while.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// The client says nothing.
    Idle,
    /// Other clients want much.
    Burst,
    /// The host is a backup that joins; then the same machine's primary dies.
    Join,
}

/// Kills a host at a random moment, and has it come back.
fn kill(moment: Moment, protected: Protected, random: &mut Random) -> Result<Protected> {
    let after = random.moment(SOON);
    println!("{moment:?}, {after:?}, host {}", protected.primary.host);
    let alone = match moment {
        Moment::Idle => {
            protected.check_one_live()?;
            protected.counter.set_silent(true);
            std::thread::sleep(after);
            let Protected {
                counter,
                primary,
                backup,
                mut scene,
                ..
            } = protected;
            scene.kill(primary)?;
            counter.set_silent(false);
            Alone::new(scene, backup, counter)?
        }
        Moment::Burst => {
            let burst = Benchmark::start(&protected.scene.pair.network.client, BURST)?;
            std::thread::sleep(after);
            let alone = protected.kill_primary_now()?;
            // Its connections, too, have got all their answers.
            println!("{:?}", burst.wait()?);
            alone
        }
        Moment::Join => {
            let alone = protected.kill_backup()?;
            let newcomer = alone.scene.start_backup(1 - alone.live.host)?;
            alone.live.wait_for_state("syncing", LIMIT)?;
            std::thread::sleep(after);
            let alone = kill_newcomer(alone, newcomer)?;
            alone.protect()?.kill_primary()?
        }
    };
    alone.protect()
}

fn kill_newcomer(alone: Alone, newcomer: lockstep_integration::pair::Node) -> Result<Alone> {
    let Alone {
        counter,
        live,
        mut scene,
    } = alone;
    scene.kill(newcomer)?;
    Alone::new(scene, live, counter)
}

#[test]
fn hosts_die_at_random_moments() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let all = [Moment::Burst, Moment::Join, Moment::Idle];
    let kills = if soak() { 30 } else { all.len() };
    let mut random = Random::seeded();
    // One of the two hosts stops the guest by force, too.
    let setup = Setup::new("pair-kills").disk().busy();
    let mut protected = setup.arguments(1, &["--force-hz", "50"]).open()?;
    Journal::start(&mut protected.primary)?;
    for round in 0..kills {
        protected = kill(all[round % all.len()], protected, &mut random)?;
    }
    protected.settle_with_disks()
}

/// The same without a disk and without forced stops, of which an emulated host makes no 50 a second.
fn a_small_machine(rounds: usize) -> Result<()> {
    if !require_root_net() || !ordinary_host()? {
        return Ok(());
    }
    let mut random = Random::seeded();
    let mut protected = Setup::new("pair-small-kills").busy().open()?;
    for _ in 0..rounds {
        for moment in [Moment::Burst, Moment::Join, Moment::Idle] {
            protected = kill(moment, protected, &mut random)?;
        }
    }
    protected.settle()
}

#[test]
fn hosts_of_a_small_machine_die_at_random_moments() -> Result<()> {
    a_small_machine(1)
}

/// Only in soak.
#[test]
fn hosts_of_a_small_machine_die_thirty_times() -> Result<()> {
    if soak() { a_small_machine(10) } else { Ok(()) }
}

#[test]
fn a_backup_dies_protected_and_joining_and_just_named() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    for _ in 0..rounds() {
        let alone = Setup::new("pair-backup-dies").open()?.kill_backup()?;
        let joining = alone.scene.start_backup(1)?;
        alone.live.wait_for_state("syncing", LIMIT)?;
        let alone = kill_newcomer(alone, joining)?;
        let named = alone.scene.start_backup(1)?;
        named.wait_for_state("standby: protected", LIMIT)?;
        let alone = kill_newcomer(alone, named)?;
        alone.protect()?.settle()?;
    }
    Ok(())
}

/// Half a machine is none: whoever has it stands by for the next one.
#[test]
fn a_primary_that_dies_in_a_join_is_not_taken_over() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    for _ in 0..rounds() {
        let mut scene: Scene = Setup::new("pair-join").build()?;
        // The join takes seconds.
        let weather = Weather {
            delay: Duration::from_millis(200),
            ..Weather::default()
        };
        let network = &scene.pair.network;
        let slow = Proxy::start(
            &network.hosts[0].namespace,
            scene.pair.address(1),
            weather,
            Random::new(1),
        )?;
        let (direct, frames) = (scene.pair.address(1), network.frames(1)?);
        scene.pair.route(0, slow.address());
        let primary = scene.start_primary(0)?;
        // Its tap is open; and the client has its connection before a join can be over.
        primary.wait_for_state("not-protected (need-backup)", LIMIT)?;
        let counter: Counter = scene.count()?;
        let backup = scene.start_backup(1)?;
        backup.wait_for_state("standby: syncing", LIMIT)?;
        scene.kill(primary)?;
        backup.wait_for_state("standby: starting", LIMIT)?;
        ensure!(scene.pair.network.frames(1)? == frames, "the backup sent something");
        // Its connection is gone with the machine.
        drop(counter);
        scene.pair.route(0, direct);
        let primary = scene.start_primary(0)?;
        primary.wait_for_state("protected", LIMIT)?;
        let counter = scene.count()?;
        Protected::new(scene, primary, backup, counter)?
            .kill_primary()?
            .settle()?;
    }
    Ok(())
}

/// Booting takes long: only in soak.
#[test]
fn a_host_dies_while_its_machine_boots() -> Result<()> {
    if !require_root_net() || !soak() {
        return Ok(());
    }
    let mut random = Random::seeded();
    for _ in 0..3 {
        let mut scene = Setup::new("pair-boot").disk().build()?;
        let backup = scene.start_backup(1)?;
        let primary = scene.boot_primary(0)?;
        primary.wait_for_state("protected", LIMIT)?;
        std::thread::sleep(random.moment(Duration::from_secs(10)));
        scene.kill(primary)?;
        backup.run.wait_for("LOCKSTEP-READY", BOOT_LIMIT)?;
        let counter = scene.count()?;
        Alone::new(scene, backup, counter)?.protect()?.settle()?;
    }
    Ok(())
}
