//! What only hosts can do whose CPU runs the guest's kernel: guests that nobody built for us, and their programs. On this
//! project's own machines they run on an emulated host (`integration/emulated/tests.txt`).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use lockstep_integration::gate::{ordinary_host, require_kvm, require_program, require_root_net, soak};
use lockstep_integration::pair::{boot_debian, copy_debian};
use lockstep_integration::paths::{Guest, program, target_dir};
use lockstep_integration::process::check;
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

/// Debian's kernel for virtual machines.
fn stock_kernel() -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/stock-kernel.sh");
    check(&mut Command::new(script))?;
    Ok(target_dir().join("stock/vmlinuz"))
}

#[test]
fn debians_own_kernel_replays() -> Result<()> {
    if !require_kvm() || !require_program("apt-get", "apt") {
        return Ok(());
    }
    let kernel = stock_kernel()?;
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
    // Work: threads, signals, floating point, processes, pipes, files, clocks.
    let seconds = if soak() { 600 } else { 5 };
    run.type_text(&format!("stress -t {seconds} -s 7; echo STRESS-ENDED=$?\n"))?;
    run.wait_for("STRESS-ENDED=0", LIMIT + Duration::from_secs(3 * seconds))?;
    let outcome = run.terminate()?;
    let report = outcome.report()?;
    ensure!(report["forced_stops"].as_u64() > Some(5), "{report}");
    let verified = replays(&log)?;
    ensure!(verified["deltas"].as_u64() > Some(5), "{verified}");
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

#[test]
fn programs_of_glibc_replay() -> Result<()> {
    if !require_kvm() || !require_program("debootstrap", "debootstrap") {
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
    if !require_kvm() || !require_program("debootstrap", "debootstrap") {
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
