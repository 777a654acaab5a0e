//! The programs as they run.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lockstep_integration::gate::{require_kvm, require_root_net};
use lockstep_integration::load::redis_cli;
use lockstep_integration::net::GUEST;
use lockstep_integration::pair::{LIMIT, Protected, Setup};
use lockstep_integration::paths::program;
use lockstep_integration::process::check;
use lockstep_integration::{Booted, Guest, Kind, Namespace, Run};
use nix::errno::Errno;
use nix::libc::user_regs_struct;
use nix::sys::signal::Signal;
use nix::sys::{ptrace, wait};
use nix::unistd::Pid;

/// A user that owns nothing.
const NOBODY: u32 = 65534;
/// A group that no other process has.
const GROUP: u32 = 47_111;

/// Each thread's name and what the kernel says of it.
fn threads(pid: u32) -> Result<Vec<(String, BTreeMap<String, String>)>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let Ok(status) = fs::read_to_string(entry?.path().join("status")) else {
            continue;
        };
        let fields: BTreeMap<String, String> = status
            .lines()
            .filter_map(|line| line.split_once(":\t"))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        threads.push((fields.get("Name").cloned().unwrap_or_default(), fields));
    }
    Ok(threads)
}

/// Whether every thread has a filter, and no way to more privileges; returns their names.
fn confined(pid: u32) -> Result<Vec<String>> {
    let mut threads = threads(pid)?;
    // The kernel's own, which runs no program: it shares the process' memory and nothing of what binds it.
    threads.retain(|(name, _)| !name.starts_with("kvm-nx-lpage"));
    for (name, fields) in &threads {
        let field = |name: &str| fields.get(name).map_or("", String::as_str);
        ensure!(
            field("Seccomp") == "2" && field("NoNewPrivs") == "1",
            "{name}: {fields:?}"
        );
        let filters: u32 = field("Seccomp_filters").parse()?;
        // The one that starts the others has the base filter; a tap device may be another user's.
        let is_starter = name == "threads";
        ensure!(is_starter || filters >= 2, "{name} has {filters} filters");
        for set in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
            let all = u64::from_str_radix(field(set), 16)?;
            let net_admin = 1 << 12;
            let allowed = if is_starter || set == "CapBnd" { net_admin } else { 0 };
            ensure!(all & !allowed == 0, "{name}: {set} {all:x}");
        }
    }
    Ok(threads.into_iter().map(|(name, _)| name).collect())
}

#[test]
fn every_thread_of_a_pair_is_confined_before_and_after_a_failover() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = Setup::new("sandbox-pair").open()?;
    let Protected { primary, backup, .. } = &protected;
    for node in [primary, backup] {
        let told = node.run.messages.text();
        ensure!(told.contains("the sandbox is on"), "{told}");
        let names = confined(node.run.pid())?;
        for wanted in ["link", "api", "arbiter", "taps", "threads"] {
            ensure!(names.iter().any(|name| name == wanted), "no {wanted}: {names:?}");
        }
    }
    let alone = protected.kill_primary()?;
    let names = confined(alone.live.run.pid())?;
    ensure!(names.iter().any(|name| name == "tap-0"), "{names:?}");
    alone.settle()
}

/// Has the main thread of a process, which runs the vCPU, make a system call of ours. `None`: it lives.
fn inject(pid: u32, call: i64) -> Result<Option<wait::WaitStatus>> {
    let thread = Pid::from_raw(pid as i32);
    let before = stop_in_a_call(thread)?;
    let mut registers = before;
    registers.rip -= 2;
    registers.rax = call as u64;
    // Nothing is to be made again.
    registers.orig_rax = u64::MAX;
    ptrace::setregs(thread, registers)?;
    // A signal that waits comes before the instruction.
    while ptrace::getregs(thread)?.rip == registers.rip {
        ptrace::step(thread, None)?;
        if let Some(end) = stopped(thread)? {
            return Ok(Some(end));
        }
    }
    ptrace::setregs(thread, before)?;
    ptrace::detach(thread, None)?;
    Ok(None)
}

/// Stops a thread where it stands behind the instruction by which it entered the kernel: it may be between two calls when it
/// is looked at.
fn stop_in_a_call(thread: Pid) -> Result<user_regs_struct> {
    let begin = Instant::now();
    loop {
        ptrace::attach(thread).context("cannot stop the vCPU thread")?;
        stopped(thread)?;
        let registers = ptrace::getregs(thread)?;
        let code = ptrace::read(thread, (registers.rip - 2) as ptrace::AddressType)?;
        if code & 0xffff == 0x050f {
            return Ok(registers);
        }
        ensure!(
            begin.elapsed() < LIMIT,
            "no SYSCALL before {:#x}: {code:#x}",
            registers.rip
        );
        ptrace::detach(thread, None)?;
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a thread has stopped; `Some`: it has ended.
fn stopped(thread: Pid) -> Result<Option<wait::WaitStatus>> {
    match wait::waitpid(thread, Some(wait::WaitPidFlag::__WALL)) {
        // By a signal that has no name: that of a kick.
        Ok(wait::WaitStatus::Stopped(..)) | Err(Errno::EINVAL) => Ok(None),
        Ok(end) => Ok(Some(end)),
        Err(error) => Err(error.into()),
    }
}

/// As if the guest had taken the thread over.
#[test]
fn a_vcpu_thread_that_makes_a_call_of_others_ends_its_process() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    for (sandbox, call, dies) in [
        ("on", nix::libc::SYS_getppid, true),
        ("off", nix::libc::SYS_getppid, false),
        ("on", nix::libc::SYS_getpid, false),
    ] {
        let run = Booted::get(Kind::Shell)?.go_on()?.args(["--sandbox", sandbox]);
        let mut run = run.start()?;
        run.wait_for("lockstep#", LIMIT)?;
        let end = inject(run.pid(), call)?;
        if dies {
            let killed = matches!(end, Some(wait::WaitStatus::Signaled(_, Signal::SIGSYS, _)));
            ensure!(killed, "{end:?}");
        } else {
            ensure!(end.is_none(), "{end:?}");
            run.type_text("echo LIVES-$((6 * 7))\n")?;
            run.wait_for("LIVES-42", LIMIT)?;
            run.terminate()?.report()?;
        }
    }
    Ok(())
}

/// A whole machine, by a user without any right but the group of /dev/kvm and a tap device of its own.
#[test]
fn a_machine_runs_without_root_and_without_capabilities() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let namespace = Namespace::create()?;
    // The device that every namespace has is root's.
    let ip = |words: &[&str]| check(namespace.command("ip").args(words)).map(drop);
    ip(&["link", "del", "tap0"])?;
    ip(&["tuntap", "add", "tap0", "mode", "tap", "user", &NOBODY.to_string()])?;
    ip(&["link", "set", "tap0", "addrgenmode", "none"])?;
    ip(&["link", "set", "tap0", "up"])?;
    ip(&["addr", "add", "10.77.0.1/24", "dev", "tap0"])?;
    // The test's own files may lie where others may not look.
    let home = tempfile::tempdir()?;
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755))?;
    let guest = Guest::find()?;
    let mut copies = Vec::new();
    for (from, name) in [
        (&program("lockstep-primary")?, "lockstep-primary"),
        (&guest.vmlinux, "vmlinux"),
        (&guest.redis, "redis.cpio"),
    ] {
        let copy = home.path().join(name);
        fs::copy(from, &copy)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
        copies.push(copy);
    }
    let guest = Guest {
        vmlinux: copies[1].clone(),
        redis: copies[2].clone(),
        ..guest
    };
    let devices = home.path().join("devices");
    fs::create_dir(&devices)?;
    let mut command: Command = namespace.command("sh");
    let script = format!(
        "set -e; mount -t tmpfs -o mode=755 none {0}; mknod {0}/kvm c 10 232; chgrp {GROUP} {0}/kvm; chmod 660 {0}/kvm; \
         mknod {0}/tun c 10 200; chmod 666 {0}/tun; mount --bind {0}/kvm /dev/kvm; mount --bind {0}/tun /dev/net/tun; \
         exec setpriv --reuid {NOBODY} --regid {NOBODY} --groups {GROUP} --bounding-set=-all --inh-caps=-all \
         --no-new-privs -- \"$@\"",
        devices.display()
    );
    command.args(["-c", &script, "sh"]).arg(&copies[0]);
    let words = format!("lockstep.run=redis lockstep.ip={GUEST}");
    let run = Run::with(command)
        .boot(&guest, &guest.redis, 64, &words)
        .args(["--net", "tap=tap0"])
        .start()?;
    run.wait_for("LOCKSTEP-READY", Duration::from_secs(240))?;
    ensure!(redis_cli(&namespace, &["PING"])? == "PONG");
    confined(run.pid())?;
    for (name, fields) in threads(run.pid())? {
        for set in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
            ensure!(fields[set].trim_start_matches('0').is_empty(), "{name}: {fields:?}");
        }
        ensure!(fields["Uid"].starts_with(&NOBODY.to_string()), "{name}: {fields:?}");
    }
    let outcome = run.terminate()?;
    outcome.report()?;
    if outcome.messages.contains("root's") {
        bail!("{}", outcome.messages);
    }
    Ok(())
}
