//! Thin disks: what their holes would take is neither read nor kept, whatever a machine's disk is taken for.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::{require_kvm, require_root_net};
use lockstep_integration::pair::{LIMIT, Node, Setup};
use lockstep_integration::ring::Ring;
use lockstep_integration::snapshot::BOOT_LIMIT;
use lockstep_integration::{Debug, Guest, Kind, Run, Running, work_dir};
use lockstep_node::host::holes::data_from;

/// What the disks have room for.
const SIZE: u64 = 300 << 30;
/// What whoever has them may read at most (a snapshot, a log and programs included) ...
const MOST_READ: u64 = 1 << 30;
/// ... and keep in memory beside the guest's ...
const MOST_KEPT: u64 = 96 << 20;
/// ... and have of a disk on its own.
const MOST_TAKEN: u64 = 16 << 20;
/// Where the guest writes first: 64 KiB, again and again, this far apart.
const APART: u64 = 7 << 30;
const WRITES: u64 = 40;

/// A thin image that has `pieces`: where, how many bytes, and which.
fn thin(path: &Path, pieces: &[(u64, usize, u8)]) -> Result<()> {
    let image = File::create(path)?;
    image.set_len(SIZE)?;
    for &(at, bytes, byte) in pieces {
        image.write_all_at(&vec![byte; bytes], at)?;
    }
    Ok(())
}

/// A value of a file in /proc/PID.
fn proc_value(pid: u32, file: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.with_context(|| format!("no {name} in {text}"))
}

/// Whether a process, with a guest of 64 MiB, has read and kept little.
fn check_process(what: &str, run: &Running) -> Result<()> {
    let read = proc_value(run.pid(), "io", "rchar:")?;
    let kept = proc_value(run.pid(), "status", "VmHWM:")? << 10;
    println!("{what}: {} MiB read, {} MiB of memory at most", read >> 20, kept >> 20);
    ensure!(read < MOST_READ, "{what} has read {read} bytes");
    ensure!(kept < MOST_KEPT + (64 << 20), "{what} has kept {kept} bytes");
    Ok(())
}

/// Whether a disk's file is as thin as it was.
fn check_thin(path: &Path) -> Result<()> {
    let metadata = fs::metadata(path)?;
    let taken = metadata.blocks() * 512;
    println!("{}: {} KiB", path.display(), taken >> 10);
    ensure!(
        metadata.len() == SIZE && taken < MOST_TAKEN,
        "{} has {taken} bytes",
        path.display()
    );
    Ok(())
}

/// Checks that two thin images have the same content.
fn check_equal(first: &Path, second: &Path) -> Result<()> {
    let (one, other) = (File::open(first)?, File::open(second)?);
    for file in [&one, &other] {
        let mut data = data_from(file, 0, SIZE);
        while data.start < SIZE {
            let mut content = [
                vec![0; (data.end - data.start) as usize],
                vec![0; (data.end - data.start) as usize],
            ];
            one.read_exact_at(&mut content[0], data.start)?;
            other.read_exact_at(&mut content[1], data.start)?;
            ensure!(
                content[0] == content[1],
                "{} and {} differ in {data:?}",
                first.display(),
                second.display()
            );
            data = data_from(file, data.end, SIZE);
        }
    }
    Ok(())
}

/// Types a line and waits for what its end prints.
fn typed(run: &mut Running, line: &str) -> Result<()> {
    run.type_text(&format!("{line}; echo DO''NE\n"))?;
    run.wait_for("DONE", LIMIT)
}

/// The guest fills a hole, and has it on the disk.
fn write_at(at: u64) -> String {
    let place = at >> 16;
    format!("dd if=/bin/busybox of=/dev/vda bs=65536 count=1 seek={place} conv=notrunc,fsync 2>/dev/null")
}

fn boot(guest: &Guest, run: Run) -> Run {
    Kind::Shell.boot(guest, run)
}

/// A recording begins, and its replay too.
#[test]
fn a_thin_disk_is_recorded_without_its_holes() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("thin-record")?;
    let (image, log) = (dir.join("disk.img"), dir.join("log"));
    thin(&image, &[(0, 1 << 20, 1), (200 << 30, 70_000, 2)])?;
    let mut run = boot(&Guest::find()?, Run::bare()?).disk(&image).record(&log).start()?;
    run.wait_for("lockstep#", BOOT_LIMIT)?;
    typed(&mut run, &write_at(100 << 30))?;
    check_process("a recorder", &run)?;
    run.terminate()?.report()?;
    check_thin(&image)?;
    check_thin(&log.join("disk-0.start"))?;
    let mut command = Debug::command()?;
    command.arg("verify").arg(&log);
    // A shell's own figures have those of what it waited for.
    let script = "\"$@\" >&2 && cat /proc/$$/io";
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = text.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok());
    let read: u64 = read.with_context(|| format!("no figures: {text}"))?;
    println!("a replay: {} MiB read", read >> 20);
    ensure!(read < MOST_READ, "the replay has read {read} bytes");
    // The disk that the log names is this one, holes and all.
    File::options()
        .write(true)
        .open(log.join("disk-0.start"))?
        .write_all_at(&[1], 150 << 30)?;
    Debug::run(["verify".as_ref(), log.as_os_str()])?.expect(1, "is not the disk that the log names")?;
    Ok(())
}

/// A backup's disk that had other things where the primary's has holes, and the other way round; and a guest that fills holes
/// while its disk is copied to the backup and into the parts of a ring.
#[test]
fn a_thin_disk_joins_without_its_holes_and_loses_nothing() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let mut scene = Setup::new("thin-join").build()?;
    let dir = scene.pair.dir().to_owned();
    let disks = [dir.join("a.img"), dir.join("b.img")];
    let (same, old) = ((0, 1 << 20, 1), (100 << 30, (1 << 20) + 100, 9));
    thin(&disks[0], &[same, (200 << 30, 70_000, 2)])?;
    thin(
        &disks[1],
        &[same, old, ((200 << 30) + 4096, 200_000, 9), (SIZE - 512, 512, 9)],
    )?;
    let rings = [dir.join("ring-a"), dir.join("ring-b")];
    let limits = ["--record-max-bytes", "80000000"];
    let guest = Guest::find()?;
    let mut primary = scene.pair.start_primary(0, |run| {
        boot(&guest, run).disk(&disks[0]).record(&rings[0]).args(limits)
    })?;
    primary.run.wait_for("lockstep#", BOOT_LIMIT)?;
    // One after the other, before, while and after the disk is copied.
    let place = APART >> 16;
    primary.run.type_text(&format!(
        "(i=1; while [ $i -le {WRITES} ]; do dd if=/bin/busybox of=/dev/vda bs=65536 count=1 skip=$((i % 8)) \
         seek=$((i * {place})) conv=notrunc,fsync 2>/dev/null; echo WROTE-$i; i=$((i + 1)); done; echo ALL''-WRITTEN) &\n"
    ))?;
    primary.run.wait_for("WROTE-1", LIMIT)?;
    let backup = scene
        .pair
        .start_backup(1, |run| run.disk(&disks[1]).record(&rings[1]).args(limits))?;
    primary.wait_for_state("protected", LIMIT)?;
    primary.run.wait_for("ALL-WRITTEN", LIMIT)?;
    typed(&mut primary.run, &write_at(250 << 30))?;
    let figures = |what, node: &Node| check_process(what, &node.run);
    figures("a primary", &primary)?;
    figures("its backup", &backup)?;
    scene.kill(primary)?;
    backup.wait_for_state("not-protected", LIMIT)?;
    scene.kill(backup)?;
    for disk in &disks {
        check_thin(disk)?;
    }
    check_equal(&disks[0], &disks[1])?;
    for ring in &rings {
        let ring_left = Ring::look(ring)?;
        for (number, _) in &ring_left.parts {
            check_thin(&ring.join(format!("part-{number:08}/disk-0.start")))?;
        }
        ring_left.verify_killed()?;
    }
    Ok(())
}
