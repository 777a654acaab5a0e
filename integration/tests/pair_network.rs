//! A bad network between the hosts of a pair: packets that are lost, late or doubled, and partitions with the witness on
//! either side. The client's own path stays good, so that whatever leaves a host would reach it.

use std::time::Duration;

use anyhow::{Result, ensure};
use lockstep_integration::gate::{require_program, require_root_net, rounds};
use lockstep_integration::pair::{Alone, LIMIT, LONG, Place, Protected, Proxy, SOME, Setup, Weather};
use lockstep_integration::random::Random;

const A: Place = Place::Host(0);
const B: Place = Place::Host(1);
/// A deadline: a primary that hears nobody asks the witness a sixth of the deadline before its backup does: here that is more than a host
/// stands still.
const UNHURRIED: Duration = Duration::from_secs(12);

/// Kills a primary whose network is bad. Where the connection was lost meanwhile it has come back first.
fn kill_when_protected(protected: Protected) -> Result<()> {
    protected.counter.wait_for(LONG, LIMIT)?;
    while !protected.primary.state().starts_with("protected") {
        println!("the primary is {}", protected.primary.state());
        protected.primary.wait_for_state("protected", LIMIT)?;
    }
    protected.kill_primary()?.settle()
}

fn with_loss(percent: u8) -> Result<()> {
    if !require_root_net() || !require_program("nft", "nftables") {
        return Ok(());
    }
    for _ in 0..rounds() {
        let scene = Setup::new(&format!("pair-loss-{percent}")).build()?;
        // The join, too, has to get through.
        scene.pair.network.lose(percent)?;
        let protected = scene.open()?;
        protected.counter.wait_for(LONG, LIMIT)?;
        let lost = protected.scene.pair.network.lost()?;
        println!("{lost} packets were lost");
        ensure!(lost > 0, "nothing was lost");
        kill_when_protected(protected)?;
    }
    Ok(())
}

#[test]
fn one_packet_in_a_hundred_is_lost() -> Result<()> {
    with_loss(1)
}

#[test]
fn one_packet_in_twenty_is_lost() -> Result<()> {
    with_loss(5)
}

/// Runs a pair over a proxy. Returns how many packets were overtaken and how many came twice.
fn with_weather(name: &str, weather: Weather) -> Result<(u64, u64)> {
    let mut scene = Setup::new(name).build()?;
    let namespace = &scene.pair.network.hosts[0].namespace;
    let proxy = Proxy::start(namespace, scene.pair.address(1), weather, Random::seeded())?;
    scene.pair.route(0, proxy.address());
    kill_when_protected(scene.open()?)?;
    Ok((proxy.overtaken(), proxy.repeated()))
}

#[test]
fn every_packet_takes_20_ms() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    for _ in 0..rounds() {
        let delay = Duration::from_millis(20);
        with_weather(
            "pair-delay",
            Weather {
                delay,
                ..Weather::default()
            },
        )?;
    }
    Ok(())
}

#[test]
fn packets_are_overtaken_and_come_twice() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    for _ in 0..rounds() {
        let weather = Weather {
            late: 100,
            twice: 100,
            ..Weather::default()
        };
        let (overtaken, repeated) = with_weather("pair-disorder", weather)?;
        println!("{overtaken} packets were overtaken, {repeated} came twice");
        ensure!(overtaken > 0 && repeated > 0, "the network was good");
    }
    Ok(())
}

/// A machine that is protected, with an etcd, and hosts that no longer hear each other and what else is cut.
fn parted(setup: Setup, cuts: &[(Place, Place)]) -> Result<Protected> {
    let protected = setup.etcd().open()?;
    protected.check_one_live()?;
    protected.scene.pair.network.part(cuts)?;
    Ok(protected)
}

#[test]
fn hosts_that_lose_each_other_ask_the_witness_and_the_primary_stays() -> Result<()> {
    if !require_root_net() || !require_program("etcd", "etcd-server") || !require_program("nft", "nftables") {
        return Ok(());
    }
    for _ in 0..rounds() {
        let Protected {
            primary,
            backup,
            counter,
            scene,
            ..
        } = parted(Setup::new("pair-part-both").deadline(UNHURRIED), &[(A, B)])?;
        backup.wait_for_state("standby: failing-over", LIMIT)?;
        backup.wait_for_state("standby: starting", LIMIT)?;
        let alone = Alone::new(scene, primary, counter)?;
        alone.check_silent(1)?;
        alone.scene.pair.network.part(&[])?;
        alone.protect_with(backup)?.settle()?;
    }
    Ok(())
}

#[test]
fn a_backup_that_hears_nobody_freezes_and_comes_back() -> Result<()> {
    if !require_root_net() || !require_program("etcd", "etcd-server") || !require_program("nft", "nftables") {
        return Ok(());
    }
    for _ in 0..rounds() {
        let Protected {
            primary,
            backup,
            counter,
            scene,
            ..
        } = parted(Setup::new("pair-part-primary"), &[(A, B), (B, Place::Witness)])?;
        backup.wait_for_state("standby: frozen (no-arbiter)", LIMIT)?;
        let alone = Alone::new(scene, primary, counter)?;
        alone.check_silent(1)?;
        alone.scene.pair.network.part(&[])?;
        alone.protect_with(backup)?.settle()?;
    }
    Ok(())
}

/// Its way to the clients is good: only its own restraint keeps it silent.
#[test]
fn a_primary_that_hears_nobody_freezes_and_stays_frozen() -> Result<()> {
    if !require_root_net() || !require_program("etcd", "etcd-server") || !require_program("nft", "nftables") {
        return Ok(());
    }
    for _ in 0..rounds() {
        let Protected {
            primary,
            backup,
            counter,
            scene,
            ..
        } = parted(Setup::new("pair-part-backup"), &[(A, B), (A, Place::Witness)])?;
        primary.wait_for_state("frozen (no-arbiter)", LIMIT)?;
        let alone = Alone::new(scene, backup, counter)?;
        alone.check_silent(0)?;
        alone.scene.pair.network.part(&[])?;
        primary.wait_for_state("frozen (lost-term)", LIMIT)?;
        alone.check_silent(0)?;
        primary.run.kill()?;
        alone.protect()?.settle()?;
    }
    Ok(())
}

#[test]
fn without_a_witness_nobody_is_live_and_with_it_one_is() -> Result<()> {
    if !require_root_net() || !require_program("etcd", "etcd-server") || !require_program("nft", "nftables") {
        return Ok(());
    }
    for _ in 0..rounds() {
        let protected = parted(
            Setup::new("pair-part-all"),
            &[(A, B), (A, Place::Witness), (B, Place::Witness)],
        )?;
        let Protected {
            primary,
            backup,
            counter,
            scene,
            ..
        } = protected;
        primary.wait_for_state("frozen (no-arbiter)", LIMIT)?;
        backup.wait_for_state("standby: frozen (no-arbiter)", LIMIT)?;
        let answers = counter.answers();
        // There is no event to wait for: nothing must happen.
        std::thread::sleep(Duration::from_secs(2));
        ensure!(
            counter.answers() == answers,
            "the client has an answer of a machine that stands still"
        );
        // Both ask, and one of them is first.
        scene.pair.network.part(&[(A, B)])?;
        counter.wait_for(SOME, LIMIT)?;
        if primary.state().starts_with("not-protected") {
            backup.wait_for_state("standby: starting", LIMIT)?;
            let alone = Alone::new(scene, primary, counter)?;
            alone.check_silent(1)?;
            alone.scene.pair.network.part(&[])?;
            alone.protect_with(backup)?.settle()?;
        } else {
            primary.wait_for_state("frozen (lost-term)", LIMIT)?;
            let alone = Alone::new(scene, backup, counter)?;
            alone.check_silent(0)?;
            alone.scene.pair.network.part(&[])?;
            primary.run.kill()?;
            alone.protect()?.settle()?;
        }
    }
    Ok(())
}
