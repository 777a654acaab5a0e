//! Jumbo frames: a guest that is told its MTU takes them, and what is too large for one that was told none is counted.

use anyhow::{Result, ensure};
use lockstep_integration::gate::{require_program, require_root_net};
use lockstep_integration::http::{body, get_unix};
use lockstep_integration::net::{BRIDGE, GUEST_IP, TAP};
use lockstep_integration::pair::{LIMIT, Setup, number, wait_for_status};
use lockstep_integration::prometheus::value;
use lockstep_integration::{Guest, Kind, Namespace, Run, Verify, work_dir};

const MTU: &str = "9000";
/// All of a packet of that size but the headers of IPv4 and ICMP.
const WHOLE: &str = "8972";

/// Sends a packet with so many bytes to the guest, in one piece, and waits so many seconds for the answer.
fn ping(namespace: &Namespace, bytes: &str, seconds: &str) -> Result<bool> {
    let mut command = namespace.command("ping");
    command.args(["-M", "do", "-c", "1", "-W", seconds, "-s", bytes, GUEST_IP]);
    Ok(command.output()?.status.success())
}

#[test]
fn a_guest_that_is_told_its_mtu_takes_jumbo_frames() -> Result<()> {
    if !require_root_net() || !require_program("ping", "iputils-ping") {
        return Ok(());
    }
    let log = work_dir("jumbo")?.join("log");
    let host = Namespace::empty()?;
    host.add_bridge()?;
    host.add_tap()?;
    host.ip(&["link", "set", TAP, "mtu", MTU, "master", BRIDGE])?;
    host.ip(&["link", "set", BRIDGE, "mtu", MTU])?;
    host.ip(&["addr", "add", "10.77.0.1/24", "dev", BRIDGE])?;
    let run = Run::with(host.command(lockstep_integration::paths::program("lockstep-primary")?))
        .args(["--net", &format!("tap={TAP},mtu={MTU}")])
        .record(&log);
    let run = Kind::Memory.boot(&Guest::find()?, run).start()?;
    run.wait_for("LOCKSTEP-READY", LIMIT)?;
    for bytes in ["56", "1472", "8000", WHOLE] {
        ensure!(ping(&host, bytes, "60")?, "{bytes} bytes do not come back");
    }
    run.terminate()?.report()?;
    Verify::run(&log)?.identical()?;
    Ok(())
}

#[test]
fn frames_that_are_too_large_for_the_guest_are_counted() -> Result<()> {
    if !require_root_net() || !require_program("ping", "iputils-ping") {
        return Ok(());
    }
    let protected = Setup::new("too-large").open()?;
    let host = &protected.scene.pair.network.hosts[protected.primary.host].namespace;
    for device in [TAP, "uplink", BRIDGE] {
        host.ip(&["link", "set", device, "mtu", MTU])?;
    }
    let socket = protected.scene.pair.socket(protected.primary.host);
    let too_large = |at_least: f64| {
        wait_for_status(&socket, LIMIT, |told| Ok(number(told, "frames_too_large")? >= at_least)).map(drop)
    };
    too_large(0.0)?;
    ensure!(ping(host, "1472", "60")?, "1472 bytes do not come back");
    ensure!(!ping(host, "8000", "1")?, "the guest takes what it was not told of");
    too_large(1.0)?;
    let scrape = get_unix(&socket, "/metrics")?;
    let counted = value(body(&scrape), "lockstep_frames_dropped_total", &["why=\"too-large\""]);
    ensure!(counted >= Some(1.0), "{scrape}");
    protected.kill_primary()?.settle()
}
