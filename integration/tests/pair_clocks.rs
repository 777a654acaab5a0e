//! Hosts whose clocks are days apart: the guest's neither step back nor leap when it changes hosts.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::{require_file, require_root_net, soak};
use lockstep_integration::http::{body, get_unix};
use lockstep_integration::pair::{
    Alone, FAKETIME, HostCalendar, LIMIT, Node, Protected, Scene, Setup, TimeWatch, set_clocks,
};
use lockstep_integration::snapshot::BOOT_LIMIT;

const DAY: u64 = 86_400;
/// Answers about the time between two events.
const SOME: u64 = 20;

/// The guest's clock program looks at both of the guest's clocks, ten times a second, and says so if one goes back.
const CLOCKS: &str = "clock 100 &\n";

/// The last time that the clock program told, by the clock that starts with the guest.
fn last_monotonic(console: &str) -> Result<f64> {
    let whole = console.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let line = whole.lines().rev().find_map(|line| line.strip_prefix("CLOCK "));
    let told = line.and_then(|line| line.split(' ').next()?.parse().ok());
    told.context("the clock program tells nothing")
}

/// A machine on a host whose clocks are set so, with the clock program and a client, and a backup.
fn with_clocks(scene: Scene) -> Result<Protected> {
    let mut primary = scene.boot_primary(0)?;
    primary.run.wait_for("LOCKSTEP-READY", BOOT_LIMIT)?;
    let backup = scene.start_backup(1)?;
    primary.wait_for_state("protected", LIMIT)?;
    primary.run.type_text(CLOCKS)?;
    primary.run.wait_for("CLOCK ", LIMIT)?;
    let counter = scene.count()?;
    Protected::new(scene, primary, backup, counter)
}

/// One host is a day ahead, and was started a day earlier, too; the other one is a day behind.
#[test]
fn clocks_of_the_guest_go_on_though_the_hosts_are_two_days_apart() -> Result<()> {
    if !require_root_net() || !require_file(FAKETIME, "libfaketime") {
        return Ok(());
    }
    let mut scene = Setup::new("pair-clocks").build()?;
    scene.pair.prepare(0, set_clocks(DAY as i64, DAY));
    scene.pair.prepare(1, set_clocks(-(DAY as i64), 0));
    let mut protected = with_clocks(scene)?;
    let watch = TimeWatch::start(&protected.scene.pair.network.client)?;
    let mut last = 0.0;
    // One more comes after these.
    for round in 0..if soak() { 9 } else { 3 } {
        watch.wait_for(SOME, LIMIT)?;
        let alone = protected.kill_primary()?;
        watch.wait_for(SOME, LIMIT)?;
        // One line to its end.
        alone.live.run.wait_for("CLOCK ", LIMIT)?;
        alone.live.run.wait_for("\n", LIMIT)?;
        for console in [
            alone.scene.consoles.last().context("no console")?,
            &alone.live.run.console.text(),
        ] {
            let now = last_monotonic(console)?;
            ensure!(now >= last, "{now} s after {last} s, in round {round}");
            last = now;
        }
        protected = alone.protect()?;
    }
    let Alone { live, counter, scene } = protected.kill_primary()?;
    let times = watch.finish()?;
    let texts = [live.run.console.text()];
    ensure!(
        !texts
            .iter()
            .chain(&scene.consoles)
            .any(|text| text.contains("CLOCK-FAIL")),
        "a clock went back: {texts:?}"
    );
    // It has kept the calendar of the host that it was booted on.
    let ours = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let ahead = times.last().context("no answer")?.saturating_sub(ours);
    println!("{} answers; {ahead:?} ahead of us", times.len());
    ensure!(
        ahead > Duration::from_secs(DAY / 2) && ahead < Duration::from_secs(DAY + DAY / 2),
        "the guest is {ahead:?} ahead: the hosts' clocks were not apart"
    );
    Alone { live, counter, scene }.settle()
}

/// Seconds that the new host's calendar is behind the old one's.
const APART: i64 = 40;
/// What stands before how far the guest's clock was behind its new host's, in milliseconds.
const BEHIND: &str = "the guest's clock follows this host's behind_ms=";

fn behind_ms(node: &Node) -> Result<i64> {
    let messages = node.run.messages.text();
    let told = messages
        .split_once(BEHIND)
        .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    told.context("it does not tell by how much")
}

/// The guest comes from a host whose calendar is ahead: its clock is brought back, and slowly, so that it never steps.
#[test]
fn a_promoted_guests_clock_follows_its_new_hosts() -> Result<()> {
    if !require_root_net() || !require_file(FAKETIME, "libfaketime") {
        return Ok(());
    }
    let mut scene = Setup::new("pair-slew").build()?;
    scene.pair.prepare(0, set_clocks(APART, 0));
    let alone = with_clocks(scene)?.kill_primary()?;
    let behind_ms = behind_ms(&alone.live)?;
    // The guest has read whole seconds from its clock chip when it booted.
    ensure!(
        (-APART * 1000 - 500..=-APART * 1000 + 2000).contains(&behind_ms),
        "{behind_ms} ms behind"
    );
    alone.live.run.wait_for("CLOCK ", LIMIT)?;
    ensure!(
        !alone.live.run.console.text().contains("CLOCK-FAIL"),
        "a clock went back"
    );
    alone.settle()
}

/// Two hours, in seconds: more than is made good.
const FAR: i64 = 7200;

/// How far the machine's clock is behind its host's calendar, as Prometheus is told.
fn behind_seconds(scene: &Scene) -> Result<f64> {
    let answer = get_unix(&scene.pair.socket(0), "/metrics")?;
    let line = body(&answer)
        .lines()
        .find(|line| line.starts_with("lockstep_clock_behind_seconds{"));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.with_context(|| format!("no clock_behind_seconds: {answer}"))
}

/// The host's calendar is wrong when the machine is booted, and is put right while it runs: the guest's follows, and slowly. One
/// that is set far off is left alone, and told.
#[test]
fn a_guests_clock_follows_a_calendar_that_is_set() -> Result<()> {
    if !require_root_net() || !require_file(FAKETIME, "libfaketime") {
        return Ok(());
    }
    let mut scene = Setup::new("clock-set").build()?;
    let calendar = HostCalendar::new(scene.pair.dir(), -APART)?;
    scene.pair.prepare(0, calendar.script());
    let mut primary = scene.boot_primary(0)?;
    primary.run.wait_for("LOCKSTEP-READY", BOOT_LIMIT)?;
    primary.run.type_text(CLOCKS)?;
    primary.run.wait_for("CLOCK ", LIMIT)?;
    let watch = TimeWatch::start(&scene.pair.network.client)?;
    watch.wait_for(SOME, LIMIT)?;
    ensure!(
        !primary.run.messages.text().contains(BEHIND),
        "nobody has set the calendar yet"
    );
    calendar.set(0)?;
    primary
        .run
        .messages
        .wait_for("calendar was set while the machine runs", LIMIT)?;
    primary.run.messages.wait_for(BEHIND, LIMIT)?;
    let behind_ms = behind_ms(&primary)?;
    ensure!(
        (APART * 1000 - 500..=APART * 1000 + 2000).contains(&behind_ms),
        "{behind_ms} ms behind"
    );
    // In four minutes no more than 0.12 s of it is made good.
    let behind = behind_seconds(&scene)?;
    ensure!(
        behind > APART as f64 - 1.0 && behind < APART as f64 + 2.0,
        "{behind} s behind"
    );
    watch.wait_for(SOME, LIMIT)?;
    calendar.set(FAR)?;
    primary
        .run
        .messages
        .wait_for("the guest's clock is left as it is", LIMIT)?;
    let behind = behind_seconds(&scene)?;
    let far = (FAR + APART) as f64;
    ensure!(behind > far - 1.0 && behind < far + 2.0, "{behind} s behind");
    watch.wait_for(SOME, LIMIT)?;
    // It finds each answer to be not before, and not much after, the one before it.
    watch.finish()?;
    ensure!(!primary.run.console.text().contains("CLOCK-FAIL"), "a clock went back");
    Ok(())
}
