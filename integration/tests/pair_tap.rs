//! A tap device that goes away, and comes again: a machine that nobody reaches goes to the other node where it is reached, and
//! no node says that it is well.

use anyhow::{Result, ensure};
use lockstep_integration::gate::require_root_net;
use lockstep_integration::http::{body, get_unix};
use lockstep_integration::load::redis_cli;
use lockstep_integration::net::{BRIDGE, TAP, inside};
use lockstep_integration::pair::{LIMIT, Network, Node, Pair, Protected, SOME, Setup, wait_for_status};
use lockstep_integration::prometheus::value;
use lockstep_integration::{Booted, Kind, Namespace, Run};
use lockstep_node::host::tap::{TapKeeper, TapSender};

/// Waits until a node says `state`, with this reason, and looks at its health and at what it counts.
fn wait_until_told(pair: &Pair, host: usize, state: &str, reason: Option<&str>, is_cut_off: bool) -> Result<()> {
    let socket = pair.socket(host);
    wait_for_status(&socket, LIMIT, |told| {
        Ok(told["state"] == state && told["reason"].as_str() == reason)
    })?;
    let code = |path| get_unix(&socket, path).map(|answer| answer.contains(" 200 "));
    ensure!(code("/healthz")? == (state != "cut-off"), "{state}: /healthz");
    ensure!(
        code("/healthz?protected")? == (state == "protected"),
        "{state}: /healthz?protected"
    );
    let metrics = get_unix(&socket, "/metrics")?;
    let metrics = body(&metrics);
    for (name, labels, wanted) in [
        ("lockstep_state", &[format!("state=\"{state}\"")][..], 1.0),
        ("lockstep_cut_off", &[], f64::from(u8::from(is_cut_off))),
    ] {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        ensure!(value(metrics, name, &labels) == Some(wanted), "{name}: {metrics}");
    }
    Ok(())
}

/// The machine has gone to the other node, whose own backup cannot be reached: both say so.
fn has_gone(pair: &Pair, old: &Node, new: &Node, term: u64, trouble: &str) -> Result<()> {
    new.wait_for_state(&format!("not-protected (lost-connection) term={term}"), LIMIT)?;
    let blocked = "protected, failover blocked";
    wait_until_told(pair, new.host, blocked, Some("cut-off-there"), false)?;
    wait_until_told(pair, old.host, blocked, Some(trouble), true)
}

/// Both nodes are well.
fn are_protected(pair: &Pair) -> Result<()> {
    (0..2).try_for_each(|host| wait_until_told(pair, host, "protected", None, false))
}

type Break = fn(&Network, usize) -> Result<()>;

fn ip(network: &Network, host: usize, words: &[&str]) -> Result<()> {
    network.hosts[host].namespace.ip(words)
}

/// In each way in which a tap device can be lost the machine goes to the other node, and when it is mended, this one is as good
/// as before. What the client was told stands.
#[test]
fn a_tap_device_that_is_lost_hands_the_machine_over_and_is_taken_again() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let ways: [(&str, Break, Break); 3] = [
        (
            "tap tap0 is gone",
            |network, host| ip(network, host, &["link", "del", TAP]),
            Network::make_tap,
        ),
        (
            "tap tap0 is in no bridge any more",
            |network, host| ip(network, host, &["link", "set", TAP, "nomaster"]),
            |network, host| ip(network, host, &["link", "set", TAP, "master", BRIDGE]),
        ),
        (
            "tap tap0 is down",
            |network, host| ip(network, host, &["link", "set", TAP, "down"]),
            |network, host| ip(network, host, &["link", "set", TAP, "up"]),
        ),
    ];
    let mut protected = Setup::new("tap-lost").auto().open()?;
    for (term, (trouble, cut, mend)) in (2..).zip(ways) {
        let Protected {
            counter,
            primary: old,
            backup: new,
            scene,
            ..
        } = protected;
        cut(&scene.pair.network, old.host)?;
        old.wait_for_state(&format!("cut-off ({trouble})"), LIMIT)?;
        has_gone(&scene.pair, &old, &new, term, trouble)?;
        counter.wait_for(SOME, LIMIT)?;
        // Nobody hands it back to where it is not reached.
        let asked = scene.pair.operate(new.host, &["switchover"])?;
        let said = String::from_utf8_lossy(&asked.stderr);
        ensure!(
            !asked.status.success() && said.contains("the other node's network is cut off"),
            "{said}"
        );
        mend(&scene.pair.network, old.host)?;
        are_protected(&scene.pair)?;
        counter.wait_for(SOME, LIMIT)?;
        protected = Protected::new(scene, new, old, counter)?;
        protected.check_one_live()?;
    }
    protected.kill_primary()?.settle()
}

/// A backup without its tap device says so, and is handed nothing, though the primary has lost its own. Both take theirs again.
#[test]
fn a_backup_whose_tap_device_is_gone_is_handed_nothing() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = Setup::new("tap-both").auto().open()?;
    let Protected {
        counter,
        primary,
        backup,
        scene,
        ..
    } = protected;
    let (pair, network) = (&scene.pair, &scene.pair.network);
    let blocked = "protected, failover blocked";
    ip(network, backup.host, &["link", "del", TAP])?;
    wait_until_told(pair, backup.host, blocked, Some("tap tap0 is gone"), true)?;
    wait_until_told(pair, primary.host, blocked, Some("cut-off-there"), false)?;
    ip(network, primary.host, &["link", "del", TAP])?;
    wait_until_told(pair, primary.host, "cut-off", Some("tap tap0 is gone"), true)?;
    network.make_tap(primary.host)?;
    // It was not handed over, however long that took: it is the same node that is reached again.
    wait_until_told(pair, primary.host, blocked, Some("cut-off-there"), false)?;
    counter.wait_for(SOME, LIMIT)?;
    ensure!(!primary.run.messages.text().contains("handing the machine over"));
    network.make_tap(backup.host)?;
    are_protected(pair)?;
    Protected::new(scene, primary, backup, counter)?
        .kill_primary()?
        .settle()
}

/// A machine that is alone goes on, says so, and takes its tap device again.
#[test]
fn a_single_machine_takes_its_tap_device_again() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let namespace = Namespace::create()?;
    let run = Run::inside(&namespace)?
        .restore(&Booted::get(Kind::Memory)?.snapshot())
        .start()?;
    let answers = || redis_cli(&namespace, &["ping"]).is_ok_and(|answer| answer == "PONG");
    ensure!(answers(), "it is not reached");
    namespace.ip(&["link", "del", TAP])?;
    run.messages
        .wait_for("the guest cannot be reached: tap tap0 is gone", LIMIT)?;
    namespace.add_own_tap()?;
    run.messages.wait_for("tap tap0 is in order again", LIMIT)?;
    ensure!(answers(), "it is not reached any more");
    run.terminate()?.report()?;
    Ok(())
}

/// Each change of an interface is judged as what it is. A name that is changed cuts nobody off.
#[test]
fn what_happens_to_a_tap_device_is_seen_as_what_it_is() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let (host, other) = (Namespace::empty()?, Namespace::empty()?);
    host.add_bridge()?;
    host.add_tap()?;
    host.ip(&["link", "set", TAP, "master", BRIDGE])?;
    let keeper = inside(host.name(), || Ok(TapKeeper::start(&[TapSender::open(TAP)?])?))?;
    let taps = keeper.taps();
    let is_told = |wanted: Option<&str>| -> Result<()> {
        let begin = std::time::Instant::now();
        while taps.trouble().as_deref() != wanted {
            ensure!(begin.elapsed() < LIMIT, "{:?} instead of {wanted:?}", taps.trouble());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Ok(())
    };
    is_told(None)?;
    for (words, trouble) in [
        (
            &["link", "set", BRIDGE, "down"][..],
            Some("bridge br0 of tap tap0 is down"),
        ),
        (&["link", "set", BRIDGE, "up"], None),
        (&["link", "del", BRIDGE], Some("tap tap0 is in no bridge any more")),
    ] {
        host.ip(words)?;
        is_told(trouble)?;
    }
    host.add_bridge()?;
    host.ip(&["link", "set", TAP, "master", BRIDGE])?;
    is_told(None)?;
    // It is moved away and back: the one that comes is another interface to the kernel, or the same.
    host.ip(&["link", "set", TAP, "netns", other.name()])?;
    is_told(Some("tap tap0 is gone"))?;
    other.ip(&["link", "set", TAP, "netns", host.name()])?;
    is_told(Some("tap tap0 is down"))?;
    host.ip(&["link", "set", TAP, "up"])?;
    is_told(Some("tap tap0 is in no bridge any more"))?;
    host.ip(&["link", "set", TAP, "master", BRIDGE])?;
    is_told(None)?;
    // Under another name it is the same wire.
    host.ip(&["link", "set", TAP, "down"])?;
    is_told(Some("tap tap0 is down"))?;
    host.ip(&["link", "set", TAP, "name", "tap9"])?;
    host.ip(&["link", "set", "tap9", "up"])?;
    is_told(None)?;
    // What has its name and is no tap device is not taken, and said to be none.
    host.ip(&["link", "del", "tap9"])?;
    is_told(Some("tap tap0 is gone"))?;
    host.ip(&["link", "add", TAP, "type", "bridge"])?;
    let begin = std::time::Instant::now();
    while !taps
        .trouble()
        .is_some_and(|trouble| trouble.contains("it is not a tap device"))
    {
        ensure!(begin.elapsed() < LIMIT, "{:?}", taps.trouble());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    host.ip(&["link", "del", TAP])?;
    is_told(Some("tap tap0 is gone"))
}
