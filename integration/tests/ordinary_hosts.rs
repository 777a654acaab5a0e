//! What only hosts can do whose CPU runs the guest's kernel: guests that nobody built for us, and their programs. On this
//! project's own machines they run on an emulated host (`integration/emulated/tests.txt`).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use lockstep_integration::disk::{make_ext4_of, read_file};
use lockstep_integration::gate::{ordinary_host, require_kvm, require_program, require_root_net, soak};
use lockstep_integration::net::{CLIENT_IP, GUEST};
use lockstep_integration::pair::{Arbiter, Pair, boot_debian, copy_debian, require_debian};
use lockstep_integration::paths::{Guest, program, target_dir};
use lockstep_integration::process::{bound, check};
use lockstep_integration::run::Run;
use lockstep_integration::verify::summary;
use lockstep_integration::{Booted, Kind, Verify, work_dir};

const LIMIT: Duration = Duration::from_secs(300);

/// Replays what was recorded, with the vCPU kicked at random, and tells what was compared.
fn replays(log: &Path) -> Result<serde_json::Value> {
    let verify = Verify::run(log)?;
    let report = verify.identical()?;
    println!("{}", summary(report));
    Ok(report.clone())
}

#[test]
fn debians_own_kernel_replays() -> Result<()> {
    if !require_kvm() || !require_program("apt-get", "apt") {
        return Ok(());
    }
    let kernel = Guest::stock_kernel()?;
    if !ordinary_host()? {
        return Ok(());
    }
    let log = work_dir("stock")?.join("log");
    let guest = Guest {
        vmlinux: kernel,
        ..Guest::find()?
    };
    let general = guest.general.clone();
    let mut run = Run::bare()?.boot(&guest, &general, 256, "").record(&log).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    // Work by the guest's own clock: threads, signals, floating point, processes, pipes, files, clocks; and then programs of every day
    // for the rest of a minute. How many there were is the host's matter.
    let (stress, minutes) = if soak() { (60, 10) } else { (5, 1) };
    run.type_text("read begin rest </proc/uptime; begin=${begin%.*}; up=$begin; i=0\n")?;
    run.type_text(&format!("stress -t {stress} -s 7; echo STRESS-ENDED=$?\n"))?;
    run.wait_for("STRESS-ENDED=0", LIMIT + Duration::from_secs(3 * stress))?;
    let seconds = 60 * minutes;
    run.type_text(&format!(
        "while [ $up -lt $((begin + {seconds})) ]; do date; ls -lR /proc/self | cksum; sleep 2; i=$((i + 1)); \
         read up rest </proc/uptime; up=${{up%.*}}; done; [ $i -gt 1 ]; echo WORK-ENDED=$? ROUNDS=$i\n"
    ))?;
    run.wait_for("WORK-ENDED=0", LIMIT + Duration::from_secs(2 * seconds))?;
    let outcome = run.terminate()?;
    let report = outcome.report()?;
    ensure!(report["forced_stops"].as_u64() > Some(5), "{report}");
    let verified = replays(&log)?;
    ensure!(verified["deltas"].as_u64() > Some(5), "{verified}");
    ensure!(verified["guest_seconds"].as_f64() >= Some(seconds as f64), "{verified}");
    Ok(())
}

/// Errors that Debian's kernel tells on this machine: it has no performance counters, and no PCI.
const EXPECTED: [&str; 2] = ["Failed to access perfctr msr", "No config space access function found"];

/// What `lockstep-debug events` lists of one kind, below a line of its own.
fn events(log: &Path, kind: &str) -> Result<String> {
    check(
        bound(program("lockstep-debug")?)
            .args(["events", "--kind", kind])
            .arg(log),
    )
}

/// Debian's own kernel with the initrd that has its drivers as modules, and disks in `dir` of what that looks for.
fn stock<const N: usize>(dir: &Path, kernel: PathBuf, names: [&str; N]) -> Result<(Guest, [PathBuf; N])> {
    let content = dir.join("content");
    std::fs::create_dir(&content)?;
    std::fs::write(content.join("words"), "found by ACPI\n")?;
    let disks = names.map(|name| dir.join(name));
    for disk in &disks {
        make_ext4_of(disk, 16, &content)?;
    }
    let guest = Guest {
        general: target_dir().join("stock/initrd.cpio"),
        vmlinux: kernel,
        ..Guest::find()?
    };
    Ok((guest, disks))
}

/// Debian's kernel has no other way to its devices than ACPI. Its drivers are modules, as in its own initramfs.
#[test]
fn debians_own_kernel_finds_its_devices_by_acpi_and_hears_the_power_button() -> Result<()> {
    if !require_root_net() || !require_program("apt-get", "apt") || !require_program("busybox", "busybox-static") {
        return Ok(());
    }
    let kernel = Guest::stock_kernel()?;
    if !ordinary_host()? {
        return Ok(());
    }
    let dir = work_dir("stock-acpi")?;
    let log = dir.join("log");
    let (guest, [disk]) = stock(&dir, kernel, ["disk.img"])?;
    let pair = Pair::create(&dir, Arbiter::File, Duration::from_millis(100), Duration::from_secs(3))?;
    let words = format!("stock_address={GUEST} stock_peer={CLIENT_IP}");
    let node = pair.start_primary(0, |run| {
        let initrd = guest.general.clone();
        run.boot(&guest, &initrd, 256, &words).disk(&disk).record(&log)
    })?;
    node.run.wait_for("STOCK-READY /dev/input/event", LIMIT)?;
    let asked = pair.operate(0, &["shutdown", "--timeout", "300"])?;
    ensure!(asked.status.success(), "{asked:?}");
    let outcome = node.run.wait(LIMIT)?;
    let (report, console) = (outcome.report()?, outcome.console);
    ensure!(report["ended"] == "the guest powered off", "{report}: {console}");
    ensure!(report["modules"].as_u64() > Some(0), "{report}: {console}");
    for line in [
        "STOCK-DISK found by ACPI",
        // The disk, the card and the entropy device, in the order of their slots.
        "LNRO0005:00/virtio0",
        "LNRO0005:01/virtio1",
        "LNRO0005:02/virtio2",
        &format!("STOCK-PING {CLIENT_IP}"),
        "STOCK-EVENT 1 116 1 0",
    ] {
        ensure!(console.contains(line), "no `{line}`: {console}");
    }
    for word in ["STOCK-FAILED", "ACPI Error", "ACPI BIOS", "ACPI Warning"] {
        ensure!(!console.contains(word), "{word}: {console}");
    }
    let errors = console.lines().filter(|line| line.contains("STOCK-ERROR"));
    let errors: Vec<_> = errors
        .filter(|line| !EXPECTED.iter().any(|known| line.contains(known)))
        .collect();
    ensure!(errors.is_empty(), "{errors:?}");
    let presses = events(&log, "power-button")?;
    ensure!(
        presses.lines().count() == 2 && presses.contains("power button"),
        "{presses}"
    );
    ensure!(events(&log, "keyboard")?.lines().count() < 2, "keys were pressed too");
    let info = check(bound(program("lockstep-debug")?).args(["info", "--json"]).arg(&log))?;
    let info: serde_json::Value = serde_json::from_str(&info)?;
    let words = info["cmdline"].as_str().unwrap_or_default();
    ensure!(!words.contains("acpi=") && !words.contains("virtio_mmio."), "{words}");
    let verified = replays(&log)?;
    for count in ["modules", "module_instructions", "modules_left"] {
        ensure!(verified[count] == report[count], "{verified}: {report}");
    }
    let ending = verified["ending"].as_str().unwrap_or_default();
    ensure!(ending.contains("powered off"), "{verified}");
    let answer = read_file(&disk, "answer")?;
    ensure!(answer == "answered\n", "the guest's write: {answer}");
    Ok(())
}

/// Debian's own kernel in a pair: the button is an input as others, and both hosts end.
#[test]
fn a_protected_machine_of_debians_own_kernel_hears_the_power_button() -> Result<()> {
    if !require_root_net() || !require_program("apt-get", "apt") || !soak() {
        return Ok(());
    }
    let kernel = Guest::stock_kernel()?;
    if !ordinary_host()? {
        return Ok(());
    }
    let dir = work_dir("stock-button")?;
    let (guest, disks) = stock(&dir, kernel, ["a.img", "b.img"])?;
    let pair = Pair::create(&dir, Arbiter::File, Duration::from_millis(100), Duration::from_secs(10))?;
    let words = format!("stock_address={GUEST} stock_peer={CLIENT_IP}");
    let backup = pair.start_backup(1, |run| run.disk(&disks[1]))?;
    let primary = pair.start_primary(0, |run| {
        let initrd = guest.general.clone();
        run.boot(&guest, &initrd, 256, &words).disk(&disks[0])
    })?;
    primary.run.wait_for("STOCK-READY /dev/input/event", LIMIT)?;
    primary.wait_until_protected_by(&backup)?;
    let asked = pair.operate(0, &["shutdown", "--timeout", "300"])?;
    ensure!(asked.status.success(), "{asked:?}");
    let (outcome, other) = (primary.run.wait(LIMIT)?, backup.run.wait(LIMIT)?);
    let report = outcome.report()?;
    ensure!(
        report["ended"] == "the guest powered off",
        "{report}: {}",
        outcome.console
    );
    ensure!(outcome.console.contains("STOCK-EVENT 1 116 1 0"), "{}", outcome.console);
    ensure!(other.status.success(), "{other:?}");
    // What the guest wrote after the button is on both disks.
    for disk in &disks {
        let answer = read_file(disk, "answer")?;
        ensure!(answer == "answered\n", "the guest's write: {answer}");
    }
    Ok(())
}

/// The small guest from its first instruction: what the slowest of emulated hosts has time for.
#[test]
fn twenty_seconds_with_forced_stops_replay() -> Result<()> {
    if !require_kvm() || !ordinary_host()? {
        return Ok(());
    }
    let log = work_dir("twenty-seconds")?.join("log");
    let guest = Guest::find()?;
    let general = guest.general.clone();
    let mut run = Run::bare()?.boot(&guest, &general, 64, "").record(&log).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    run.type_text("rdtsc3 1; stress -t 2 -s 7; sleep 18; echo WORK-ENDED=$?\n")?;
    run.wait_for("WORK-ENDED=0", LIMIT)?;
    let outcome = run.terminate()?;
    let report = outcome.report()?;
    ensure!(report["forced_stops"].as_u64() > Some(5), "{report}");
    let verified = replays(&log)?;
    ensure!(verified["deltas"].as_u64() > Some(5), "{verified}");
    ensure!(verified["guest_seconds"].as_f64() >= Some(20.0), "{verified}");
    Ok(())
}

#[test]
fn rdtsc_in_programs_replays() -> Result<()> {
    if !require_kvm() || !ordinary_host()? {
        return Ok(());
    }
    let log = work_dir("rdtsc3")?.join("log");
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(&log).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    run.type_text("rdtsc3 2; rdtsc3 2\n")?;
    for _ in 0..2 {
        run.wait_for("RDTSC3 rounds=2", LIMIT)?;
    }
    let outcome = run.terminate()?;
    let sums: Vec<_> = outcome
        .console
        .lines()
        .filter(|line| line.starts_with("RDTSC3 "))
        .collect();
    ensure!(sums.len() == 2 && sums[0] != sums[1], "time has passed: {sums:?}");
    // The console is part of the digest chain: the same numbers are printed, or the replay has diverged.
    replays(&log)?;
    Ok(())
}

/// It reads the clock by RDTSC, in programs.
#[test]
fn a_vdso_that_is_wanted_replays() -> Result<()> {
    if !require_kvm() || !ordinary_host()? {
        return Ok(());
    }
    let log = work_dir("vdso")?.join("log");
    let guest = Guest::find()?;
    let general = guest.general.clone();
    let mut run = Run::bare()?.boot(&guest, &general, 64, "vdso=1").record(&log).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    run.type_text("clock 10 200; echo CLOCK-ENDED=$?\n")?;
    run.wait_for("CLOCK-ENDED=0", LIMIT)?;
    run.terminate()?.report()?;
    replays(&log)?;
    Ok(())
}

#[test]
fn programs_of_glibc_replay() -> Result<()> {
    if !require_kvm() || !require_debian() {
        return Ok(());
    }
    let dir = work_dir("glibc")?;
    let disk = dir.join("disk.img");
    copy_debian(&disk)?;
    if !ordinary_host()? {
        return Ok(());
    }
    let guest = Guest::find()?;
    let log = dir.join("log");
    let mut run = boot_debian(Run::bare()?, &guest, &disk).record(&log).start()?;
    run.wait_for("DEBIAN-READY", LIMIT)?;
    let rounds = if soak() { 30 } else { 2 };
    run.type_text(&format!("glibc {rounds}\n"))?;
    run.wait_for(&format!("GLIBC-DONE {rounds}"), LIMIT * rounds)?;
    let outcome = run.terminate()?;
    for word in ["BASH 200", "PYTHON ", "sha256 "] {
        ensure!(outcome.console.contains(word), "no {word}: {}", outcome.console);
    }
    replays(&log)?;
    Ok(())
}

/// Accessed and dirty bits of page tables that the CPU walks depend on its TLB, and reclaim and swap depend on them.
#[test]
fn a_guest_under_memory_pressure_replays() -> Result<()> {
    if !require_kvm() || !require_debian() {
        return Ok(());
    }
    let dir = work_dir("pressure")?;
    let [disk, swap] = ["disk.img", "swap.img"].map(|name| dir.join(name));
    copy_debian(&disk)?;
    if !ordinary_host()? {
        return Ok(());
    }
    std::fs::File::create(&swap)?.set_len(256 << 20)?;
    let log = dir.join("log");
    let run = boot_debian(Run::bare()?, &Guest::find()?, &disk).disk(&swap);
    let mut run = run.record(&log).start()?;
    run.wait_for("DEBIAN-READY", LIMIT)?;
    let seconds = if soak() { 600 } else { 60 };
    run.type_text(&format!("pressure {seconds}\n"))?;
    run.wait_for(
        &format!("PRESSURE-DONE {seconds}"),
        LIMIT + Duration::from_secs(3 * seconds),
    )?;
    let outcome = run.terminate()?;
    let of = |word: &str| {
        let line = outcome.console.lines().find_map(|line| line.trim().strip_prefix(word));
        let numbers = line.map(|line| {
            line.split_whitespace()
                .filter_map(|it| it.parse::<u64>().ok())
                .collect()
        });
        numbers.unwrap_or_else(Vec::new)
    };
    let (sums, swapped) = (of("PRESSURE "), of("SWAPPED "));
    println!("{seconds} s: PRESSURE {sums:?}, pages swapped out and in {swapped:?}");
    ensure!(
        sums.first() == Some(&0) && swapped.len() == 2 && swapped.iter().all(|pages| *pages > 1000),
        "memory was lost, or was not short: {}",
        outcome.console
    );
    replays(&log)?;
    Ok(())
}

/// What `make demo` plays, and its table.
#[test]
fn the_demo_plays() -> Result<()> {
    if !require_root_net() || !require_program("etcd", "etcd-server") || !ordinary_host()? {
        return Ok(());
    }
    let demo = Command::new(program("lockstep-demo")?)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    let said = String::from_utf8_lossy(&demo.stdout);
    println!("{said}");
    ensure!(demo.status.success(), "the demo ended with {}", demo.status);
    for line in [
        "lost                     0",
        "duplicated               0",
        "connections broken       0",
    ] {
        ensure!(said.contains(line), "no line `{line}`");
    }
    Ok(())
}
