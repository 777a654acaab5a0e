//! What the machine is made from on this host: kernel, snapshot, disks, tap devices, uplink, addresses.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use lockstep_node::api;
use lockstep_node::bootdisk::{self, Refusal};
use lockstep_node::cli::boot::check_no_fork_of;
use lockstep_node::cli::cards::{self, Clash};
use lockstep_node::cli::node::NodeArgs;
use lockstep_node::cli::sockets;
use lockstep_node::host::image::Image;
use lockstep_node::host::interface::Interfaces;
use lockstep_node::host::mark::check_no_replica;
use lockstep_node::host::size::allocated;
use lockstep_node::host::tap::TapSender;
use lockstep_node::out::one_line;
use lockstep_node::start::{DiskOption, Kernel, NicOption, disk_bytes};
use lockstep_node::sys::uplink::{has_carrier, is_there};
use lockstep_proto::model::DEFAULT_MTU;
use lockstep_vmm::probe::Start;
use lockstep_vmm::snapshot::Restore;

use super::{Finding, Outcome, places};

/// `host`: what the probe says of this one, where it says something.
pub(super) fn check(file: &Path, node: &NodeArgs, host: Option<&Start>) -> Vec<Finding> {
    let runs = is_running(node);
    let where_it_runs = if runs {
        "its process runs on this host: disks and tap devices are in use by it"
    } else {
        "its process does not run on this host"
    };
    let mut findings = vec![Finding::pass("machine", where_it_runs)];
    findings.extend(boot_files(node, runs));
    let all_there = findings.iter().all(|finding| finding.outcome == Outcome::Pass);
    if let Some(refused) = host
        .filter(|_| all_there && !runs)
        .and_then(|host| check_kernel_runs(node, host))
    {
        findings.retain(|finding| finding.check != refused.check);
        findings.push(refused);
    }
    findings.extend(node.devices.disk.iter().map(|disk| check_disk(disk, runs)));
    findings.extend(node.devices.net.iter().map(|nic| check_tap(nic, runs)));
    findings.extend(node.devices.net.iter().filter_map(check_mtu));
    findings.extend(check_macs(file, node));
    findings.extend(node.pair.uplink.as_deref().map(check_uplink));
    findings.extend(addresses(node, runs));
    findings.extend(places::check(node, runs));
    findings
}

/// Whether this node can have the addresses that it is to be reached at.
fn addresses(node: &NodeArgs, runs: bool) -> Vec<Finding> {
    let check = |check, key, address: SocketAddr, bound: io::Result<()>| match bound {
        _ if runs => Finding::pass(check, format!("{address} is this node's")),
        Ok(()) => Finding::pass(check, format!("{address} is free")),
        Err(error) => Finding::fail(
            check,
            format!("{address}: {error}"),
            format!("set {key} to an address of this host with a port that nobody else uses"),
        ),
    };
    let listen = node.listen;
    let mut findings = vec![check("listen", "listen", listen, UdpSocket::bind(listen).map(drop))];
    if let Some(metrics) = node.api.metrics {
        findings.push(check(
            "metrics",
            "metrics",
            metrics,
            TcpListener::bind(metrics).map(drop),
        ));
    }
    findings
}

fn is_running(node: &NodeArgs) -> bool {
    let socket = node.api.api.clone().unwrap_or_else(|| sockets::of(&node.pair.name));
    api::client::status(&socket).is_ok()
}

fn boot_files(node: &NodeArgs, runs: bool) -> Vec<Finding> {
    let boot = &node.boot;
    let mut findings = Vec::new();
    if boot.kernel == Some(Kernel::Disk) {
        findings.push(check_disk_kernel(node, runs));
    }
    let kernel = boot.kernel.as_ref().and_then(Kernel::file);
    for (check, path) in [("kernel", kernel), ("initrd", boot.initrd.as_deref())] {
        let Some(path) = path else { continue };
        findings.push(match readable(path) {
            Ok(bytes) => Finding::pass(check, format!("{}, {bytes} bytes", path.display())),
            Err(error) => Finding::fail(
                check,
                format!("{}: {error}", path.display()),
                "name a file that this user can read",
            ),
        });
    }
    if let Some(path) = &boot.snapshot {
        findings.push(match Restore::open(path) {
            Ok(snapshot) if check_no_fork_of(&node.pair.name, snapshot.forked_from()).is_err() => Finding::fail(
                "snapshot",
                format!("{} is a fork of the machine with this name", path.display()),
                "give the machine another name",
            ),
            Ok(snapshot) => Finding::pass(
                "snapshot",
                format!("{}, of a host of class `{}`", path.display(), snapshot.host_class()),
            ),
            Err(error) => Finding::fail(
                "snapshot",
                error.to_string(),
                "make a new one: lockstep-primary run --save",
            ),
        });
    }
    findings
}

/// Whether the kernel that would be booted runs on this host, if it does not.
fn check_kernel_runs(node: &NodeArgs, host: &Start) -> Option<Finding> {
    if node.boot.kernel == Some(Kernel::Disk) && check_no_replica(&node.devices.disk.first()?.path).is_err() {
        return None;
    }
    let error = node.boot.check(None, &node.devices, host).err()?;
    let found = one_line(&format!("{error:#}")).into_owned();
    Some(Finding::fail("kernel", found, "choose another kernel, or other hosts"))
}

/// What the guest would be booted with from its own disk.
fn check_disk_kernel(node: &NodeArgs, runs: bool) -> Finding {
    if node.boot.initrd.is_some() {
        let found = "the kernel is taken from the disk, and its initrd is too";
        return Finding::fail("kernel", found, "take initrd out");
    }
    let Some(disk) = node.devices.disk.first() else {
        let found = "the kernel is to be taken from the first disk, and there is none";
        return Finding::fail("kernel", found, "name the guest's disk in `disk`, or a kernel file");
    };
    let (path, shown) = (&disk.path, disk.path.display());
    if runs {
        return Finding::pass("kernel", format!("taken from {shown} at each boot"));
    }
    if check_no_replica(path).is_err() {
        return Finding::pass(
            "kernel",
            format!("taken from {shown} when it is live: now it is a backup's"),
        );
    }
    if bootdisk::is_blank(path).unwrap_or(false) {
        return Finding::warn(
            "kernel",
            format!("{shown} is blank: this node can stand by, and boot no machine"),
            "install the guest on the other node's disk, or copy its image here",
        );
    }
    match bootdisk::look_up(path, node.boot.memory_mib().saturating_mul(1 << 20)) {
        Ok(found) => Finding::pass(
            "kernel",
            format!("{} of {shown} ({})", one_line(&found.kernel_path), one_line(&found.how)),
        ),
        Err(error) => match error.downcast_ref::<Refusal>() {
            Some(refusal) => Finding::fail(
                "kernel",
                one_line(&format!("{shown}: {}: {}", refusal.at, refusal.why)).into_owned(),
                refusal.remedy.clone(),
            ),
            None => Finding::fail("kernel", format!("{error:#}"), "let this user read it"),
        },
    }
}

fn readable(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else {
        Err(io::Error::other("it is no file"))
    }
}

fn check_disk(disk: &DiskOption, runs: bool) -> Finding {
    let path = disk.path.display();
    let bytes = match disk_bytes(&disk.path) {
        Ok(bytes) => bytes,
        Err(error) => {
            let remedy = "make a raw image with the same size on both hosts: truncate -s 10G FILE";
            return Finding::fail("disk", format!("{error:#}"), remedy);
        }
    };
    if !runs && let Err(error) = Image::open(&disk.path, disk.read_only) {
        return Finding::fail(
            "disk",
            format!("{path}: {error}"),
            "let this user write it, and no other process use it",
        );
    }
    let space = File::open(&disk.path).and_then(|image| {
        let free = rustix::fs::statvfs(&disk.path)?;
        Ok((allocated(&image)?, free.f_bavail * free.f_frsize))
    });
    match space {
        Ok((used, free)) if !disk.read_only && bytes.saturating_sub(used) > free => Finding::warn(
            "disk",
            format!(
                "{path}: {} bytes are not allocated yet and its file system has {free}",
                bytes - used
            ),
            "free some space, or allocate the image whole (fallocate): a full file system hands the machine over",
        ),
        Ok(_) => Finding::pass("disk", format!("{path}, {bytes} bytes")),
        Err(error) => Finding::fail(
            "disk",
            format!("{path}: {error}"),
            "see that its file system can be used",
        ),
    }
}

/// The addresses that the machine's cards are booted with.
fn check_macs(file: &Path, node: &NodeArgs) -> Vec<Finding> {
    let remedy = "give each card of `net` a mac= of its own, or none";
    let name = &node.pair.name;
    let cards = match cards::of(&node.boot, &node.devices.net, name) {
        Ok(cards) => cards,
        // A snapshot that tells none has a check of its own, which says why.
        Err(_) if node.boot.snapshot.is_some() => return Vec::new(),
        Err(error) => return vec![Finding::fail("mac", format!("{error:#}"), remedy)],
    };
    let others = [
        cards::of_others_here(name, &cards),
        cards::of_files_beside(file, name, &cards),
    ];
    let clashes: Vec<_> = others.concat();
    if clashes.is_empty() {
        let texts: Vec<_> = cards.iter().map(|card| card.mac.as_str()).collect();
        return (!texts.is_empty())
            .then(|| Finding::pass("mac", texts.join(", ")))
            .into_iter()
            .collect();
    }
    let finding = |clash: Clash| {
        if clash.is_apart() {
            let found = format!("{}, in another bridge", clash.describe());
            Finding::warn("mac", found, "see that the two bridges never become one network")
        } else {
            Finding::fail("mac", clash.describe(), remedy)
        }
    };
    clashes.into_iter().map(finding).collect()
}

/// What may be larger than what is told: the card's and the tap device's MTU, and the bridge's.
fn check_mtu(nic: &NicOption) -> Option<Finding> {
    let mut interfaces = Interfaces::open().ok()?;
    let tap = interfaces.by_name(&nic.tap).ok()??;
    let bridge = tap.master.and_then(|master| interfaces.by_index(master).ok()?);
    let wanted = nic.mtu.unwrap_or(DEFAULT_MTU);
    let narrow = [Some(&tap), bridge.as_ref()].into_iter().flatten();
    if let Some(narrow) = narrow.filter(|one| one.mtu < wanted).min_by_key(|one| one.mtu) {
        return Some(Finding::fail(
            "mtu",
            format!(
                "{} lets packets of {} bytes pass, and the card on {} takes {wanted}",
                narrow.name, narrow.mtu, nic.tap
            ),
            format!(
                "ip link set {} mtu {wanted}, or give the card mtu={}",
                narrow.name, narrow.mtu
            ),
        ));
    }
    if tap.mtu > wanted {
        return Some(Finding::warn(
            "mtu",
            format!(
                "{} lets packets of {} bytes pass, and the card takes {wanted}: larger ones are dropped",
                nic.tap, tap.mtu
            ),
            format!(
                "give the card mtu={}, on both hosts, and boot the machine anew; or ip link set {} mtu {wanted}",
                tap.mtu, nic.tap
            ),
        ));
    }
    Some(Finding::pass("mtu", format!("{wanted} bytes on {}", nic.tap)))
}

fn check_tap(nic: &NicOption, runs: bool) -> Finding {
    if runs {
        return Finding::pass("tap", format!("{} is in use", nic.tap));
    }
    if !is_there(&nic.tap) {
        return Finding::fail(
            "tap",
            format!("there is no interface {}", nic.tap),
            format!(
                "make it: ip tuntap add {} mode tap user lockstep; ip link set {} up master BRIDGE",
                nic.tap, nic.tap
            ),
        );
    }
    match TapSender::open(&nic.tap) {
        Ok(_) => Finding::pass("tap", format!("{} can be used", nic.tap)),
        Err(error) => Finding::fail(
            "tap",
            format!("{}: {error}", nic.tap),
            format!("make it this user's: ip tuntap add {} mode tap user USER", nic.tap),
        ),
    }
}

/// The interface that is looked at while the node runs. Without it nothing starts.
fn check_uplink(uplink: &str) -> Finding {
    match has_carrier(uplink) {
        Ok(true) => Finding::pass("uplink", format!("{uplink} has a carrier")),
        Ok(false) => Finding::warn(
            "uplink",
            format!("{uplink} is down or has no carrier: this node would hand the machine over, or not take it"),
            format!("plug its cable in, or bring it up: ip link set {uplink} up"),
        ),
        Err(error) => Finding::fail(
            "uplink",
            error.to_string(),
            "set uplink to an interface of this host (`ip link` shows them), or take it out",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::preflight::Outcome;

    #[test]
    fn an_uplink_is_there() {
        let absent = check_uplink("no-such-nic");
        assert_eq!(absent.outcome, Outcome::Fail);
        assert!(absent.found.contains("no-such-nic"), "{absent:?}");
        assert_eq!(check_uplink("a-name-that-is-too-long").outcome, Outcome::Fail);
        // The loopback interface of a network namespace may be down; it exists in each.
        assert_ne!(check_uplink("lo").outcome, Outcome::Fail);
    }
}
