//! What the machine is made from on this host: kernel, snapshot, disks, tap devices, addresses.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use lockstep_vmm::snapshot::Restore;
use rustix::fs::Access;

use super::Finding;
use crate::api;
use crate::cli::node::NodeArgs;
use crate::cli::sockets;
use crate::host::image::Image;
use crate::host::tap::TapSender;
use crate::recording::{Place, ring};
use crate::start::{DiskOption, NicOption, disk_bytes};

pub(super) fn check(node: &NodeArgs) -> Vec<Finding> {
    let runs = is_running(node);
    let where_it_runs = if runs {
        "its process runs on this host: disks and tap devices are in use by it"
    } else {
        "its process does not run on this host"
    };
    let mut findings = vec![Finding::pass("machine", where_it_runs)];
    findings.extend(boot_files(node));
    findings.extend(node.devices.disk.iter().map(|disk| check_disk(disk, runs)));
    findings.extend(node.devices.net.iter().map(|nic| check_tap(nic, runs)));
    findings.extend(addresses(node, runs));
    findings.extend(node.record.place().map(|place| check_recording(&place)));
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

fn boot_files(node: &NodeArgs) -> Vec<Finding> {
    let boot = &node.boot;
    let mut findings = Vec::new();
    for (check, path) in [("kernel", &boot.kernel), ("initrd", &boot.initrd)] {
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

fn readable(path: &Path) -> io::Result<u64> {
    let file = std::fs::File::open(path)?;
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
    let space = std::fs::metadata(&disk.path).and_then(|metadata| {
        let free = rustix::fs::statvfs(&disk.path)?;
        Ok((metadata.blocks() * 512, free.f_bavail * free.f_frsize))
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

fn check_recording(place: &Place) -> Finding {
    let shown = place.directory.display();
    let Some(max) = place.limits.max_bytes else {
        return match place.limits.max_age {
            Some(_) => Finding::warn(
                "record",
                format!("{shown}: its age is limited, its size is not"),
                "set record-max-bytes to what its file system can spare",
            ),
            None => Finding::fail(
                "record",
                format!("{shown}: a node that may stand by records a ring, which has limits"),
                "set record-max-bytes, record-max-age-seconds or both",
            ),
        };
    };
    let Some(there) = place.directory.ancestors().find(|path| path.is_dir()) else {
        return Finding::fail(
            "record",
            format!("{shown} is nowhere"),
            "name a directory by its whole path",
        );
    };
    let room = rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK)
        .and_then(|()| rustix::fs::statvfs(there))
        .map(|free| free.f_bavail * free.f_frsize);
    let kept: u64 = ring::parts(&place.directory).map_or(0, |parts| parts.iter().map(|part| part.bytes).sum());
    match room {
        Err(error) => Finding::fail(
            "record",
            format!("{}: {error}", there.display()),
            "name a directory that this user can write",
        ),
        Ok(free) if free.saturating_add(kept) < max => Finding::warn(
            "record",
            format!("{shown}: the ring may take {max} bytes, has {kept}, and its file system has {free} more"),
            "free some space or give it less: a full file system stops the recording",
        ),
        Ok(_) => Finding::pass("record", format!("{shown}, a ring of {max} bytes at most")),
    }
}

fn check_tap(nic: &NicOption, runs: bool) -> Finding {
    if runs {
        return Finding::pass("tap", format!("{} is in use", nic.tap));
    }
    if !Path::new("/sys/class/net").join(&nic.tap).exists() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::preflight::Outcome;
    use crate::recording::ring::Limits;

    #[test]
    fn a_ring_has_limits_and_room() {
        let home = tempfile::tempdir().unwrap();
        let found = |max_bytes, age: Option<u64>, directory: &Path| {
            let limits = Limits {
                max_bytes,
                max_age: age.map(std::time::Duration::from_secs),
            };
            let directory = directory.to_owned();
            check_recording(&Place { directory, limits }).outcome
        };
        let new = home.path().join("not/there/yet");
        assert_eq!(found(Some(1 << 20), None, &new), Outcome::Pass);
        assert_eq!(found(Some(u64::MAX), None, &new), Outcome::Warn);
        assert_eq!(found(None, Some(1), &new), Outcome::Warn);
        assert_eq!(found(None, None, &new), Outcome::Fail);
        assert!(!home.path().join("not").exists(), "looking changes nothing");
    }
}
