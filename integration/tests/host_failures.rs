//! What a host can lack or refuse: each ends with a clear message and the documented exit status, without a panic, and
//! with what was written before still good.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use lockstep_integration::gate::{require_kvm, require_loop_device, require_root, require_root_net};
use lockstep_integration::paths::program;
use lockstep_integration::process::{bound, check};
use lockstep_integration::snapshot::BOOT_LIMIT;
use lockstep_integration::{Booted, Guest, Kind, Namespace, Run, Verify, work_dir};

/// What a guest does in a second takes minutes while others use the host.
const LIMIT: Duration = Duration::from_secs(240);

/// `lockstep-primary` in a mount namespace of its own after `prepare` (shell) has run there.
fn in_private_mounts(prepare: &str, then: &str) -> Result<Run> {
    let mut command = bound("unshare");
    let script = format!("set -e; {prepare}; set +e; \"$@\"; status=$?; {then}; exit $status");
    command.args(["--mount", "--propagation", "private", "--", "sh", "-c", &script, "sh"]);
    command.arg(program("lockstep-primary")?);
    Ok(Run::with(command))
}

fn boot(run: Run) -> Result<Run> {
    let guest = Guest::find()?;
    Ok(run.boot(&guest, &guest.general, 64, "lockstep.run=shell"))
}

/// Whether there is nothing in a directory: the sandbox has it made, since it allows what is there.
fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}

#[test]
fn without_dev_kvm() -> Result<()> {
    if !require_root() {
        return Ok(());
    }
    let dir = work_dir("no-kvm")?;
    let log = dir.join("log");
    let hidden = format!("mkdir {0}/empty; mount --bind {0}/empty /dev", dir.display());
    let outcome = boot(in_private_mounts(&hidden, ":")?)?.record(&log).complete(LIMIT)?;
    println!("{}", outcome.messages.trim());
    outcome.expect_failure(1, &["/dev/kvm"])?;
    ensure!(is_empty(&log), "nothing is written before the machine is there");

    let outcome = boot(in_private_mounts("mount --bind /dev/null /dev/kvm", ":")?)?.complete(LIMIT)?;
    println!("{}", outcome.messages.trim());
    outcome.expect_failure(1, &["KVM"])
}

#[test]
fn without_permission() -> Result<()> {
    if !require_root() {
        return Ok(());
    }
    let mut command = bound("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
        .arg(program("lockstep-primary")?);
    let outcome = boot(Run::with(command))?.complete(LIMIT)?;
    println!("{}", outcome.messages.trim());
    outcome.expect_failure(1, &["/dev/kvm", "ermission"])
}

#[test]
fn a_directory_that_cannot_be_written() -> Result<()> {
    if !require_root() {
        return Ok(());
    }
    let dir = work_dir("read-only")?;
    let prepare = format!("mount -t tmpfs -o ro none {}", dir.display());
    let run = in_private_mounts(&prepare, ":")?.restore(&Booted::get(Kind::Shell)?.snapshot());
    let outcome = run.record(&dir.join("log")).complete(LIMIT)?;
    println!("{}", outcome.messages.trim());
    outcome.expect_failure(1, &["cannot create", "read-only/log"])
}

#[test]
fn a_full_disk_ends_the_recording_and_leaves_what_was_written_and_the_machine() -> Result<()> {
    if !require_root() {
        return Ok(());
    }
    let dir = work_dir("full")?;
    let (small, kept) = (dir.join("small"), dir.join("kept"));
    fs::create_dir(&small)?;
    let snapshot = Booted::get(Kind::Shell)?.snapshot();
    let mib = fs::metadata(&snapshot)?.len().div_ceil(1 << 20) + 1;
    let prepare = format!("mount -t tmpfs -o size={mib}m none {}", small.display());
    let keep = format!("cp -r {}/log {}", small.display(), kept.display());
    let run = in_private_mounts(&prepare, &keep)?
        .restore(&snapshot)
        .record(&small.join("log"));
    let mut run = run.args(["--force-hz", "100"]).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    run.type_text("while :; do cat /bin/busybox >/tmp/a; done &\n")?;
    run.messages
        .wait_for("the recording stops, and the machine goes on", LIMIT)?;
    run.type_text("echo GOES-$((40 + 2))\n")?;
    run.wait_for("GOES-42", LIMIT)?;
    run.type_text("reboot -f\n")?;
    let outcome = run.wait(LIMIT)?;
    println!("{}", outcome.messages.trim());
    for text in ["cannot write the log", "No space left on device", "can be replayed"] {
        ensure!(outcome.messages.contains(text), "its message lacks `{text}`");
    }
    let report = outcome.report()?;
    let reason = report["recording_stopped"].as_str().unwrap_or_default();
    ensure!(reason.contains("No space left on device"), "{report}");
    let verify = Verify::run(&kept)?;
    let report = verify.identical()?;
    println!(
        "kept: {} s of guest time, log ends {}",
        report["guest_seconds"], report["ending"]
    );
    ensure!(report["stops"].as_u64() > Some(0), "{report}");

    let prepare = format!("mount -t tmpfs -o size=1m none {}", small.display());
    let run = in_private_mounts(&prepare, ":")?
        .restore(&snapshot)
        .record(&small.join("log"));
    let outcome = run.complete(LIMIT)?;
    println!("{}", outcome.messages.trim());
    outcome.expect_failure(1, &["No space left on device"])
}

/// A file system that takes nothing until this is dropped.
struct Frozen(String);

impl Frozen {
    fn new(place: String) -> Result<Self> {
        check(Command::new("fsfreeze").args(["--freeze", &place]))?;
        Ok(Self(place))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It is gone with the program at the latest.
        let _ = Command::new("fsfreeze").args(["--unfreeze", &self.0]).status();
    }
}

#[test]
fn a_disk_that_hangs_ends_the_recording_and_leaves_the_machine() -> Result<()> {
    if !require_loop_device() {
        return Ok(());
    }
    let dir = work_dir("hangs")?;
    let (image, place) = (dir.join("image"), dir.join("place"));
    fs::create_dir(&place)?;
    fs::File::create(&image)?.set_len(256 << 20)?;
    check(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
    let prepare = format!("mount -o loop {} {}", image.display(), place.display());
    let run = in_private_mounts(&prepare, ":")?
        .restore(&Booted::get(Kind::Shell)?.snapshot())
        .record(&place.join("log"));
    let mut run = run.args(["--force-hz", "100"]).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    let frozen = Frozen::new(format!("/proc/{}/root{}", run.pid(), place.display()))?;
    run.type_text("while :; do cat /bin/busybox >/tmp/a; done &\n")?;
    let words = "the recording stops, and the machine goes on: cannot write the log: its disk has taken nothing";
    run.messages.wait_for(words, LIMIT)?;
    run.type_text("echo GOES-$((40 + 2))\n")?;
    run.wait_for("GOES-42", LIMIT)?;
    drop(frozen);
    run.type_text("reboot -f\n")?;
    run.wait(LIMIT)?.report()?;
    Ok(())
}

#[test]
fn a_missing_or_busy_tap() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let dir = work_dir("tap")?;
    let log = dir.join("log");
    let run = boot(Run::bare()?)?.record(&log).args(["--net", "tap=lockstep-none"]);
    let outcome = run.complete(LIMIT)?;
    println!("{}", outcome.messages.trim());
    outcome.expect_failure(1, &["lockstep-none", "does not exist", "ip tuntap add"])?;
    ensure!(is_empty(&log), "nothing is written before the tap is there");

    let namespace = Namespace::create()?;
    let first = boot(Run::inside(&namespace)?)?.start()?;
    first.wait_for("LOCKSTEP-INIT", BOOT_LIMIT)?;
    let outcome = boot(Run::inside(&namespace)?)?.complete(LIMIT)?;
    println!("{}", outcome.messages.trim());
    outcome.expect_failure(1, &["tap0", "another program uses it"])
}

#[test]
fn files_that_are_missing_or_wrong() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("files")?;
    let path = |name: &str| -> PathBuf { dir.join(name) };
    let guest = Guest::find()?;
    fs::write(path("odd.img"), vec![0; 1000])?;
    fs::write(path("empty.img"), [])?;
    fs::write(path("text"), "no kernel")?;
    fs::create_dir(path("used"))?;
    fs::write(path("used/file"), "mine")?;
    let missing = Guest {
        vmlinux: path("no-kernel"),
        ..guest.clone()
    };
    let text = Guest {
        vmlinux: path("text"),
        ..guest.clone()
    };
    let snapshot = Booted::get(Kind::Shell)?.snapshot();
    let cases: Vec<(Run, &[&str])> = vec![
        (
            Run::bare()?.boot(&missing, &guest.general, 64, ""),
            &["cannot read the kernel", "no-kernel"],
        ),
        (
            Run::bare()?.boot(&guest, &path("no-initrd"), 64, ""),
            &["cannot read the initrd", "no-initrd"],
        ),
        (
            Run::bare()?.boot(&text, &guest.general, 64, ""),
            &["cannot load", "text"],
        ),
        (
            boot(Run::bare()?)?.disk(&path("odd.img")),
            &["odd.img", "1000 bytes", "multiple of 512"],
        ),
        (boot(Run::bare()?)?.disk(&path("empty.img")), &["empty.img", "0 bytes"]),
        (boot(Run::bare()?)?.disk(&path("no.img")), &["no.img", "No such file"]),
        (
            Run::bare()?.restore(&path("no.snapshot")),
            &["no.snapshot", "No such file"],
        ),
        (Run::bare()?.restore(&path("text")), &["snapshot", "text"]),
        (
            Run::bare()?.restore(&snapshot).disk(&path("odd.img")),
            &["the machine has 0 disks and 1"],
        ),
        (
            Run::bare()?.restore(&snapshot).record(&path("used")),
            &["is not empty", "new or empty"],
        ),
        (
            Run::bare()?.restore(&snapshot).record(&path("text")),
            &["cannot create", "text"],
        ),
    ];
    for (run, texts) in cases {
        let outcome = run.complete(LIMIT)?;
        println!("{}", outcome.messages.trim());
        outcome.expect_failure(1, texts)?;
    }
    ensure!(
        fs::read_to_string(path("used/file"))? == "mine",
        "a directory in use is left alone"
    );
    Ok(())
}

#[test]
fn wrong_usage_ends_with_status_2() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let cases: [(&str, &[&str], &str); 8] = [
        ("lockstep-primary", &["run"], "--kernel"),
        (
            "lockstep-primary",
            &["run", "--kernel", "a", "--snapshot", "b"],
            "cannot be used with",
        ),
        (
            "lockstep-primary",
            &["run", "--kernel", "a", "--memory-mib", "1"],
            "--memory-mib",
        ),
        ("lockstep-primary", &["run", "--kernel", "a", "--net", "tap="], "tap="),
        ("lockstep-primary", &["run", "--kernel", "a", "--compress"], "--record"),
        ("lockstep-primary", &["fly"], "fly"),
        ("lockstep-debug", &["verify"], "LOGDIR"),
        ("lockstep-debug", &["events", "x", "--kind", "magic"], "magic"),
    ];
    for (name, arguments, text) in cases {
        let output = Command::new(program(name)?).args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(2),
            "{name} {arguments:?}: {} {said}",
            output.status
        );
        ensure!(
            said.contains(text) && !said.contains("panicked"),
            "{name} {arguments:?}: {said}"
        );
    }
    Ok(())
}

#[test]
fn recordings_that_are_not_there() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("no-recording")?;
    for (path, text) in [(dir.join("none"), "none"), (dir.clone(), "holds no log")] {
        for command in ["verify", "info", "events"] {
            let output = Command::new(program("lockstep-debug")?)
                .arg(command)
                .arg(&path)
                .output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(1), "{command}: {} {said}", output.status);
            ensure!(said.contains(text) && !said.contains("panicked"), "{command}: {said}");
        }
    }
    Ok(())
}

#[test]
fn a_reader_that_closes_early_is_no_failure() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let log = work_dir("early")?.join("log");
    let run = Run::bare()?
        .restore(&Booted::get(Kind::Shell)?.snapshot())
        .record(&log)
        .args(["--for", "2"]);
    run.complete(LIMIT)?.report()?;
    let script = format!(
        "set -o pipefail; '{}' events '{}' | head -n 1",
        program("lockstep-debug")?.display(),
        log.display()
    );
    let line = check(Command::new("bash").args(["-c", &script]))?;
    ensure!(line.lines().count() == 1, "{line}");
    Ok(())
}
