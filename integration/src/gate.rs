//! What a test needs of this machine. A test whose need is not met prints `SKIPPED: <reason>` and passes; with
//! LOCKSTEP_REQUIRE_KVM=1 it fails.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;

use crate::paths::{Guest, program};
use crate::process::check;

/// Whether the long forms of the tests are wanted.
pub fn soak() -> bool {
    std::env::var_os("LOCKSTEP_SOAK").is_some_and(|value| value == "1")
}

/// How often a test plays a fault whose moment is left to chance: once, and in the long forms five times.
pub fn rounds() -> u32 {
    if soak() { 5 } else { 1 }
}

/// Whether /dev/kvm, the guest's images and our programs are there. Use: `if !require_kvm() { return Ok(()); }`.
///
/// # Panics
/// If something is missing and LOCKSTEP_REQUIRE_KVM=1.
pub fn require_kvm() -> bool {
    met(kvm())
}

/// As [`require_kvm`], and network namespaces and tap devices can be made, and Redis' client programs are there.
///
/// # Panics
/// As [`require_kvm`].
pub fn require_root_net() -> bool {
    met(kvm().and_then(|()| root_net()))
}

/// As [`require_kvm`], and this process is root.
///
/// # Panics
/// As [`require_kvm`].
pub fn require_root() -> bool {
    met(kvm().and_then(|()| root()))
}

/// Whether a program is there; the Debian package that has it is named if not.
///
/// # Panics
/// As [`require_kvm`].
pub fn require_program(program: &str, package: &str) -> bool {
    met(program_in_path(program, package))
}

/// As [`require_root_net`], and hosts can be run in containers, and Ansible is there.
///
/// # Panics
/// As [`require_kvm`].
pub fn require_hosts() -> bool {
    met(kvm().and_then(|()| root_net()).and_then(|()| hosts()))
}

/// Whether a file is there; the Debian package that has it is named if not.
///
/// # Panics
/// As [`require_kvm`].
pub fn require_file(path: &str, package: &str) -> bool {
    met(if Path::new(path).exists() {
        Ok(())
    } else {
        Err(format!("{path} is missing (Debian package {package})"))
    })
}

/// Whether files can be mounted by a loop device.
///
/// # Panics
/// As [`require_kvm`].
pub fn require_loop_device() -> bool {
    let found = Path::new("/dev/loop-control").exists();
    met(if found {
        Ok(())
    } else {
        Err("there are no loop devices (/dev/loop-control)".into())
    })
}

/// Whether the CPU runs the guest's kernel here, and RDTSC of its programs can be trapped, as on AMD's and Intel's hosts; says
/// so where it is not. A test that is for such hosts alone runs on an emulated one (`integration/emulated/tests.txt`).
pub fn ordinary_host() -> anyhow::Result<bool> {
    let strategies = lockstep_vmm::probe::at_start()?.strategies;
    if !strategies.guard_programs {
        println!("not for this host: its CPU does not run the guest's kernel, or cannot trap a program's RDTSC");
    }
    Ok(strategies.guard_programs)
}

fn met(need: Result<(), String>) -> bool {
    let Err(reason) = need else { return true };
    let required = std::env::var_os("LOCKSTEP_REQUIRE_KVM").is_some_and(|value| value == "1");
    assert!(!required, "LOCKSTEP_REQUIRE_KVM=1, but {reason}");
    println!("SKIPPED: {reason}");
    false
}

/// Why /dev/kvm, the images or the programs cannot be used.
pub fn kvm() -> Result<(), String> {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    opened.map_err(|error| format!("/dev/kvm cannot be used: {error}"))?;
    Guest::find().map_err(|error| error.to_string())?;
    for name in ["lockstep-primary", "lockstep-debug"] {
        program(name).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Why this process is not root enough.
pub fn root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err("this needs root".into())
    }
}

/// Why namespaces and taps cannot be made, or the clients are missing.
pub fn root_net() -> Result<(), String> {
    root()?;
    let opened = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    opened.map_err(|error| format!("/dev/net/tun cannot be used: {error}"))?;
    for (program, package) in [
        ("ip", "iproute2"),
        ("redis-cli", "redis-tools"),
        ("redis-benchmark", "redis-tools"),
        ("mkfs.ext4", "e2fsprogs"),
    ] {
        program_in_path(program, package)?;
    }
    Ok(())
}

/// Why hosts cannot be run in containers, or be reached by Ansible.
fn hosts() -> Result<(), String> {
    for (program, package) in [
        ("ansible-playbook", "ansible"),
        ("debootstrap", "debootstrap"),
        ("systemd-nspawn", "systemd-container"),
        ("ssh-keygen", "openssh-client"),
        ("openssl", "openssl"),
        ("dpkg-shlibdeps", "dpkg-dev"),
    ] {
        program_in_path(program, package)?;
    }
    // What a container begins with; where this process is in one itself, it may not be allowed.
    let mut unshare = Command::new("unshare");
    unshare.args([
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "mount",
        "-t",
        "tmpfs",
        "none",
        "/mnt",
    ]);
    check(&mut unshare).map_err(|error| format!("containers cannot be made: {error:#}"))?;
    Ok(())
}

/// Why a program is missing: the Debian package that has it.
pub fn program_in_path(program: &str, package: &str) -> Result<(), String> {
    if in_path(program) {
        Ok(())
    } else {
        Err(format!("`{program}` is missing (Debian package {package})"))
    }
}

fn in_path(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|directory| Path::new(directory).join(name).is_file())
}
