//! A guest that boots from its own disk: kernel, initrd and words are those that it keeps there itself.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::disk::with_sbin;
use lockstep_integration::gate::{require_kvm, require_program, require_root_net};
use lockstep_integration::net::GUEST;
use lockstep_integration::pair::{Arbiter, LIMIT, Node, Pair, Protected, Scene, Setup, blank_like};
use lockstep_integration::paths::program;
use lockstep_integration::process::check;
use lockstep_integration::snapshot::BOOT_LIMIT;
use lockstep_integration::verify::summary;
use lockstep_integration::{Guest, Run, Verify, work_dir};
use serde_json::Value;

const WAIT: Duration = Duration::from_secs(120);
const IMAGE_MIB: u64 = 160;
/// What the guest's own configuration says; not all of it can be had here.
const DEFAULTS: &str = "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet vdso=1\"\n\
                        GRUB_CMDLINE_LINUX=\"console=tty0 console=ttyS0,115200 panic=-1 rodata=off\"\n";

/// An archive with one file, for behind another one.
fn archive(name: &str, content: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content, mode) in [(name, content, 0o100_644), ("TRAILER!!!", "", 0)] {
        let fields = [1, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        bytes.extend_from_slice(b"070701");
        bytes.extend(fields.map(|field| format!("{field:08X}")).concat().into_bytes());
        for text in [format!("{name}\0"), content.to_owned()] {
            bytes.extend_from_slice(text.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    bytes
}

/// An image of a guest whose links lead to the first of two initrds, which differ in `/which`.
fn install(dir: &Path, kernel: &Path, root: &Path) -> Result<PathBuf> {
    let guest = dir.join("root");
    fs::create_dir_all(guest.join("boot"))?;
    fs::create_dir_all(guest.join("etc/default"))?;
    fs::write(guest.join("etc/default/grub"), DEFAULTS)?;
    fs::copy(kernel, guest.join("boot/vmlinuz-1"))?;
    for (name, content) in [("1", "FIRST-INITRD\n"), ("2", "SECOND-INITRD\n")] {
        let mut initrd = fs::read(root)?;
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        initrd.extend(archive("which", content));
        fs::write(guest.join(format!("boot/initrd.img-{name}")), initrd)?;
    }
    symlink("boot/vmlinuz-1", guest.join("vmlinuz"))?;
    symlink("boot/initrd.img-1", guest.join("initrd.img"))?;
    let image = dir.join("guest.img");
    // As distributions make them: a journal that needs no program to be replayed.
    check(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-O", "metadata_csum,64bit", "-d"])
            .arg(&guest)
            .arg(&image)
            .arg(format!("{IMAGE_MIB}M"))
            .env("PATH", with_sbin()),
    )?;
    fs::remove_dir_all(guest)?;
    Ok(image)
}

fn boot(run: Run, words: &str) -> Run {
    run.args(["--kernel", "disk", "--memory-mib", "128", "--cmdline"])
        .args([format!(
            "clearcpuid=smap,smep,popcnt,erms,fsrm,rdrand,rdseed,serialize {words}"
        )])
}

#[test]
fn a_guest_boots_from_its_disk_and_an_upgrade_in_it_is_in_force_at_the_next_boot() -> Result<()> {
    if !require_kvm() || !require_program("mkfs.ext4", "e2fsprogs") {
        return Ok(());
    }
    let dir = work_dir("boot-disk")?;
    let guest = Guest::find()?;
    let image = install(&dir, &guest.vmlinux, &guest.general)?;
    let log = dir.join("log");
    let run = boot(Run::bare()?, "lockstep.run=shell").disk(&image).record(&log);
    let mut run = run.start()?;
    run.wait_for("lockstep#", BOOT_LIMIT)?;
    run.type_text("cat /which /proc/cmdline\n")?;
    run.wait_for("FIRST-INITRD", WAIT)?;
    run.wait_for("root=/dev/vda ro console=ttyS0,115200 panic=-1 rodata=off quiet", WAIT)?;
    // The upgrade. What it wrote is in the journal when the power fails.
    run.type_text("ln -sf boot/initrd.img-2 /data/initrd.img && sync && echo UPGRADED-$((6 * 7))\n")?;
    run.wait_for("UPGRADED-42", WAIT)?;
    let outcome = run.terminate()?;
    outcome.report()?;
    for told in [
        "kernel /boot/vmlinuz-1, initrd /boot/initrd.img-1",
        "`console=tty0` is left out",
        "`vdso=1` is left out",
    ] {
        ensure!(outcome.messages.contains(told), "{told}: {}", outcome.messages);
    }
    // The recording needs neither the disk nor what it has now; the kernel is known by its digest.
    let verify = Verify::run_with(&log, ["--vmlinux".into(), guest.vmlinux.clone()])?;
    println!("boot from the disk: {}", summary(verify.identical()?));

    let run = boot(Run::bare()?, "lockstep.run=cat lockstep.args=/which lockstep.then=halt");
    let outcome = run.disk(&image).complete(BOOT_LIMIT)?;
    outcome.report()?;
    ensure!(outcome.console.contains("SECOND-INITRD"), "{}", outcome.console);
    ensure!(!outcome.console.contains("FIRST-INITRD"), "{}", outcome.console);
    Ok(())
}

#[test]
fn a_disk_that_cannot_be_booted_from_is_refused_with_the_reason() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("boot-disk-refused")?;
    let image = dir.join("guest.img");
    let refused = |run: Run, said: &[&str]| {
        let outcome = run.complete(WAIT)?;
        ensure!(outcome.status.code() == Some(1), "{}", outcome.status);
        for said in said {
            ensure!(outcome.messages.contains(said), "{said}: {}", outcome.messages);
        }
        Ok(())
    };
    refused(boot(Run::bare()?, ""), &["there is none", "--disk"])?;
    fs::write(&image, vec![0; 1 << 20])?;
    refused(boot(Run::bare()?, "").disk(&image), &["is blank", "Remedy"])?;
    let with_initrd = boot(Run::bare()?, "").args(["--initrd", "x"]).disk(&image);
    refused(with_initrd, &["leave --initrd out"])?;
    let mut content = vec![0; 1 << 20];
    content[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    fs::write(&image, &content)?;
    let command = format!("qemu-img convert -f qcow2 -O raw {}", image.display());
    refused(boot(Run::bare()?, "").disk(&image), &[&command])?;
    content[..8].copy_from_slice(b"XFSB\0\0\x10\0");
    fs::write(&image, &content)?;
    refused(boot(Run::bare()?, "").disk(&image), &["is xfs, which is not read"])
}

/// Outcome and words of what `check-config` finds of the kernel.
fn preflight(dir: &Path, image: &Path, more: &str) -> Result<(String, String)> {
    let file = dir.join("vm.toml");
    let text = format!(
        "name = \"boot-disk-vm\"\nnode = \"a\"\npeer-name = \"b\"\nlisten = \"127.0.0.1:17700\"\npeer = \"127.0.0.1:17701\"\n\
         pki = \"{0}\"\narbiter = \"file:{0}/arbiter\"\nkernel = \"disk\"\ndisk = [\"{1}\"]\n{more}",
        dir.display(),
        image.display()
    );
    fs::write(&file, text)?;
    let output = Command::new(program("lockstep-primary")?)
        .args(["check-config", "--offline", "--json"])
        .arg(&file)
        .output()?;
    let told: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    let findings = told["findings"].as_array().context("no findings")?;
    let kernel = findings.iter().find(|finding| finding["check"] == "kernel");
    let kernel = kernel.with_context(|| told.to_string())?;
    let text = |key: &str| kernel[key].as_str().unwrap_or_default().to_owned();
    Ok((text("outcome"), format!("{} {}", text("found"), text("remedy"))))
}

#[test]
fn check_config_tells_what_would_be_booted() -> Result<()> {
    if !require_kvm() || !require_program("mkfs.ext4", "e2fsprogs") {
        return Ok(());
    }
    let dir = work_dir("boot-disk-check")?;
    let initrd = dir.join("initrd");
    fs::write(&initrd, "initrd")?;
    let image = install(&dir, &Guest::find()?.vmlinux, &initrd)?;
    let expect = |more: &str, outcome: &str, said: &str| {
        let (found, text) = preflight(&dir, &image, more)?;
        ensure!(
            found == outcome && text.contains(said),
            "{outcome}, {said}: {found}, {text}"
        );
        Ok(())
    };
    expect("", "pass", "/boot/vmlinuz-1")?;
    expect("initrd = \"x\"\n", "fail", "take initrd out")?;
    expect("acpi = \"on\"\nmodel-revision = 2\n", "fail", "has no ACPI")?;
    fs::write(dir.join("guest.img.replica"), "a\n")?;
    expect("", "pass", "a backup's")?;
    fs::remove_file(dir.join("guest.img.replica"))?;
    fs::write(&image, vec![0; 1 << 20])?;
    expect("", "warn", "is blank")?;
    fs::write(&image, vec![1; 1 << 20])?;
    expect("", "fail", "no file system that is known")
}

/// A kernel that cannot run here, as a distribution's where KVM interprets ring 0, takes no term, makes no recording and marks no disk.
#[test]
fn a_kernel_that_does_not_run_here_is_refused_before_anything_is_written() -> Result<()> {
    if !require_root_net() || !require_program("mkfs.ext4", "e2fsprogs") {
        return Ok(());
    }
    if !lockstep_vmm::probe::at_start()?.strategies.syscalls_fault {
        println!("not for this host: its CPU runs any guest's kernel");
        return Ok(());
    }
    let dir = work_dir("boot-disk-foreign")?;
    let guest = Guest::find()?;
    // Of its banner and its mark only the first is left.
    let mark = b"lockstep.syscall_entry_fault";
    let mut kernel = fs::read(&guest.vmlinux)?;
    let at = kernel.windows(mark.len()).position(|bytes| bytes == mark);
    kernel[at.context("this project's kernel has no mark")?] = b'L';
    let foreign = dir.join("foreign");
    fs::write(&foreign, kernel)?;
    let image = install(&dir, &foreign, &guest.general)?;
    let before = check(Command::new("sha256sum").arg(&image))?;
    let log = dir.join("log");
    let said = ["does not run on this host", "SYSCALL", "VMX or SVM"];
    boot(Run::bare()?, "")
        .disk(&image)
        .record(&log)
        .complete(WAIT)?
        .expect_failure(1, &said)?;
    let (outcome, text) = preflight(&dir, &image, "")?;
    ensure!(outcome == "fail" && text.contains(said[0]), "{outcome}: {text}");
    let pair = Pair::create(&dir, Arbiter::File, Duration::from_millis(100), Duration::from_secs(3))?;
    let from_file = |run: Run| {
        run.args(["--memory-mib", "128", "--kernel"])
            .args([&foreign])
            .record(&log)
    };
    let node = pair.start_primary(0, from_file)?;
    node.run.wait(WAIT)?.expect_failure(1, &said)?;
    let node = pair.start_auto(0, |run| boot(run, "").disk(&image))?;
    node.run.wait(WAIT)?.expect_failure(1, &said)?;
    let records: Vec<_> = fs::read_dir(dir.join("arbiter"))?.collect();
    ensure!(records.is_empty(), "a term was taken: {records:?}");
    // The directory itself is the sandbox's, which needs it to let the process write there.
    ensure!(fs::read_dir(&log)?.next().is_none(), "a recording was begun");
    ensure!(!dir.join("guest.img.replica").exists(), "the disk was marked");
    ensure!(
        check(Command::new("sha256sum").arg(&image))? == before,
        "the disk was written"
    );
    Ok(())
}

/// A pair whose machine has booted from its disk, and is protected.
fn protected(name: &str) -> Result<(Scene, Node, Node)> {
    let mut scene = Setup::new(name).disk().build()?;
    let guest = Guest::find()?;
    let dir = scene.pair.dir().to_owned();
    let first = install(&dir, &guest.vmlinux, &guest.redis)?;
    let second = blank_like(&first, dir.join("second.img"))?;
    let words = format!("lockstep.run=redis lockstep.ip={GUEST}");
    let start = |host: usize, disk: &Path| {
        let machine = |run| boot(run, &words).disk(disk);
        scene.pair.start_auto(host, machine)
    };
    let primary = start(0, &first)?;
    primary.wait_for_state("not-protected (need-backup)", LIMIT)?;
    // Its disk is blank: kernel and initrd come to it with the machine's memory.
    let backup = start(1, &second)?;
    primary.wait_for_state("protected", LIMIT)?;
    primary.run.wait_for("LOCKSTEP-READY", BOOT_LIMIT)?;
    scene.disks = Some([first, second]);
    Ok((scene, primary, backup))
}

#[test]
fn a_pair_that_boots_from_its_disk_is_protected_and_survives_its_primary() -> Result<()> {
    if !require_root_net() || !require_program("mkfs.ext4", "e2fsprogs") {
        return Ok(());
    }
    let (scene, primary, backup) = protected("pair-boot-disk")?;
    let counter = scene.count()?;
    let alone = Protected::new(scene, primary, backup, counter)?.kill_primary()?;
    println!("the machine goes on: {}", alone.live.state());
    Ok(())
}

/// What the guest has installed is in force after its own `reboot`, on a pair that is protected again, by both its hosts.
#[test]
fn a_reboot_boots_what_the_guest_has_installed() -> Result<()> {
    if !require_root_net() || !require_program("mkfs.ext4", "e2fsprogs") {
        return Ok(());
    }
    let (scene, mut primary, backup) = protected("pair-boot-upgrade")?;
    let upgrade = "cat /which; ln -sf boot/initrd.img-2 /data/initrd.img && sync && echo UPGRADED-$((6 * 7))\n";
    primary.run.type_text(upgrade)?;
    primary.run.wait_for("FIRST-INITRD", WAIT)?;
    primary.run.wait_for("UPGRADED-42", WAIT)?;
    primary.run.type_text("reboot -f\n")?;
    primary
        .run
        .messages
        .wait_for("this node starts over and boots it anew", LIMIT)?;
    primary.run.messages.wait_for("initrd /boot/initrd.img-2", LIMIT)?;
    primary.wait_for_state("protected", BOOT_LIMIT)?;
    primary.run.wait_for("LOCKSTEP-READY", BOOT_LIMIT)?;
    let counter = scene.count()?;
    let mut alone = Protected::new(scene, primary, backup, counter)?.kill_primary()?;
    alone.live.run.type_text("cat /which\n")?;
    alone.live.run.wait_for("SECOND-INITRD", LIMIT)
}
