//! What the programs cannot do any more: calls that end them, paths that are refused, privileges that they have not.

mod child;
mod running;

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use anyhow::{Result, ensure};
use lockstep_integration::gate::require_kvm;
use lockstep_integration::work_dir;
use nix::libc::SIGSYS;

use child::{CHILD, DONE};

/// What becomes of a child of this program that enters the sandbox (`on`) or does not, and then does `act` on a thread of
/// `kind`: the signal that ended it, or its exit status.
fn fate(sandbox: &str, kind: &str, act: &str) -> Result<(Option<i32>, Option<i32>)> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--exact", "child::acts", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{sandbox} {kind} {act}"))
        .output()?;
    println!("{sandbox} {kind} {act}: {}", String::from_utf8_lossy(&output.stderr));
    Ok((output.status.signal(), output.status.code()))
}

/// Each call ends the process, and would not without the filter.
#[test]
fn a_forbidden_call_ends_the_process() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    for (kind, act) in [
        ("base", "chroot"),
        ("base", "signal-another"),
        ("vcpu", "remove"),
        ("vcpu", "socket"),
        ("vcpu", "thread"),
        ("vcpu", "make-vm"),
        ("replica", "socket"),
        ("replica", "thread"),
        ("disk", "remove"),
        ("bytes", "remove"),
        ("waits", "remove"),
        ("files", "socket"),
        ("network", "execute"),
        ("network", "open-kvm-and-ask"),
    ] {
        ensure!(fate("on", kind, act)? == (Some(SIGSYS), None), "{kind} {act}: it lives");
        ensure!(
            fate("off", kind, act)? == (None, Some(DONE)),
            "{kind} {act}: not without a sandbox"
        );
    }
    Ok(())
}

/// Opening a file is what an allocator does in passing: it is refused.
#[test]
fn threads_without_files_open_none() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    for kind in ["vcpu", "disk", "bytes", "waits"] {
        ensure!(fate("on", kind, "is-open-refused")? == (None, Some(DONE)), "{kind}");
        ensure!(
            fate("off", kind, "is-open-refused")? == (None, Some(child::OPEN)),
            "{kind}: without a sandbox"
        );
    }
    Ok(())
}

/// What each kind is for goes on working.
#[test]
fn what_a_kind_is_for_is_allowed() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    for (kind, act) in [
        ("base", "execute"),
        ("base", "open-kvm-and-ask"),
        ("vcpu", "nothing"),
        ("vcpu", "spawn"),
        ("vcpu", "aside"),
        ("replica", "make-vm"),
        ("replica", "open"),
        ("replica", "then-vcpu"),
        ("files", "open"),
        ("network", "socket"),
        ("network", "thread"),
    ] {
        ensure!(fate("on", kind, act)? == (None, Some(DONE)), "{kind} {act}: it dies");
    }
    Ok(())
}

/// Paths and ports that were not named are refused, whatever the user may.
#[test]
fn paths_and_ports_that_were_not_named_are_refused() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("sandbox-paths")?;
    for name in ["read", "make", "other"] {
        std::fs::create_dir_all(dir.join(name))?;
        std::fs::write(dir.join(name).join("file"), name)?;
    }
    let paths = format!("paths:{}", dir.display());
    ensure!(fate("on", "base", &paths)? == (None, Some(DONE)));
    ensure!(
        fate("off", "base", &paths)? == (None, Some(child::OPEN)),
        "it is refused without a sandbox"
    );
    Ok(())
}

/// A process that takes its own place has the same filter, and not one more: neither does the number of Landlock's domains
/// grow, of which there may be sixteen.
#[test]
fn a_process_that_is_replaced_again_and_again_keeps_one_sandbox() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    ensure!(fate("on", "vcpu", "replace:20")? == (None, Some(DONE)));
    Ok(())
}
