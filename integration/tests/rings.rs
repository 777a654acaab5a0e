//! Recordings as rings: the newest part of what happened is there, in whole recordings, within a bound.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::{require_kvm, require_root_net};
use lockstep_integration::pair::{Pair, Setup, status, wait_for_status};
use lockstep_integration::ring::Ring;
use lockstep_integration::stopped::StoppedThread;
use lockstep_integration::{Booted, Debug, Kind, Namespace, Run, Running, Verify, work_dir};

const LIMIT: Duration = Duration::from_secs(240);
/// Parts in which the copying is held, at least, and at most where it was over too soon.
const LEAST_PARTS: u32 = 5;
const MOST_PARTS: u32 = 12;
/// What a start state of the machines here takes at most, and rings are sized by.
const START: u64 = 5 << 20;

fn ring(run: Run, directory: &Path, max_bytes: u64) -> Run {
    run.record(directory)
        .args(["--record-max-bytes", &max_bytes.to_string(), "--force-hz", "100"])
}

/// A guest that writes its memory, stopped by force so often that its log grows.
fn busy(run: Run) -> Result<Running> {
    let mut run = run.start()?;
    run.wait_for("lockstep#", LIMIT)?;
    run.type_text("while :; do cat /bin/busybox >/tmp/a; done &\n")?;
    Ok(run)
}

fn answers(run: &mut Running, word: &str) -> Result<()> {
    run.type_text(&format!("echo {word}-$((40 + 2))\n"))?;
    run.wait_for(&format!("{word}-42"), LIMIT)
}

#[test]
fn a_ring_keeps_its_newest_parts_and_goes_on_with_the_next_process() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let directory = work_dir("ring")?.join("log");
    let max_bytes = 5 * START;
    let machine = || Booted::get(Kind::Shell)?.go_on();
    let mut run = busy(ring(machine()?, &directory, max_bytes))?;
    Ring::wait_for(&directory, 7, max_bytes, LIMIT)?;
    answers(&mut run, "FIRST")?;
    let report = run.terminate()?.report()?;
    ensure!(report["recording_stopped"].is_null(), "{report}");
    let left = Ring::look(&directory)?;
    let first = left.parts.first().context("parts")?.0;
    ensure!(first > 1 && left.parts.len() >= 2, "{left:?}");
    left.verify()?;

    // The next process goes on with the numbers, and what it is killed in stays readable.
    let last = left.parts.last().context("parts")?.0;
    let run = busy(ring(machine()?, &directory, max_bytes))?;
    let ring = Ring::wait_for(&directory, last + 2, max_bytes, LIMIT)?;
    let newest = ring.parts.last().context("parts")?;
    Ring::wait_for_batch(&newest.1, LIMIT)?;
    run.kill()?;
    let torn = Ring::look(&directory)?;
    let (number, part) = torn.parts.last().context("parts")?;
    ensure!(*number >= last + 2, "{torn:?}");
    let verify = Verify::run(part)?;
    let report = verify.identical()?;
    ensure!(report["ending"] != "clean", "{report}");
    // Another one may have begun meanwhile.
    ensure!(*number > newest.0 || report["stops"].as_u64() > Some(0), "{report}");

    // The tools tell a ring from a recording.
    let info = Debug::run(["info".as_ref(), directory.as_os_str(), "--json".as_ref()])?.json()?;
    let told = info["parts"].as_array().context("parts")?;
    ensure!(told.len() == torn.parts.len(), "{info:#}");
    let name = |part: &serde_json::Value| part["part"].as_str().map(|name| directory.join(name));
    let begins: Vec<_> = told.iter().filter_map(|part| part["begins"].as_str()).collect();
    ensure!(begins.last() == Some(&"while it runs"), "{begins:?}");
    ensure!(name(&told[0]).as_ref() == Some(&torn.parts[0].1), "{info:#}");
    Debug::run(["info".as_ref(), directory.as_os_str()])?.expect(0, "the next part of the ring goes on")?;
    for command in ["verify", "events", "console"] {
        Debug::run([command.as_ref(), directory.as_os_str()])?.expect(1, "is a ring of")?;
    }
    Debug::run(["info".as_ref(), part.as_os_str()])?.expect(0, "of a ring")?;
    // With a position they find the part. Both processes' machines go on from one snapshot, so that their stops are the same ones.
    let events = |position: &str| {
        Debug::run([
            "events".as_ref(),
            directory.as_os_str(),
            "--from".as_ref(),
            position.as_ref(),
        ])
    };
    ensure!(events("-1s")?.expect(0, "stop")?.text().lines().count() > 1);
    let info = Debug::run(["info".as_ref(), torn.parts[0].1.as_os_str(), "--json".as_ref()])?.json()?;
    let calendar = info["to"].as_str().context("a time of the calendar")?;
    events(calendar)?.expect(0, "stop")?;
    Ok(())
}

/// How often the guest says it has written its file and read it.
fn passes(run: &Running) -> usize {
    let text = run.console.text();
    text.lines().filter(|line| line.starts_with("PASS ")).count()
}

/// Memory and a disk are copied while the guest writes both.
#[test]
fn parts_have_the_disk_as_it_was_where_they_begin() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let dir = work_dir("ring-disk")?;
    let directory = dir.join("log");
    let namespace = Namespace::create()?;
    let max_bytes = 24 * START;
    let run = Booted::get(Kind::Redis)?.go_on_inside(&namespace, &dir)?;
    let mut run = ring(run, &directory, max_bytes).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    // It writes sectors past the page cache, and reads them all when it has written each: a part that has one as it was when
    // the copying began, and not as it was at the part's start, is found by its replay.
    run.type_text(
        "F=/data/file; N=0; dd if=/dev/zero of=$F bs=64k count=1; sync; while dd if=/dev/urandom of=$F bs=512 count=100 oflag=direct \
         conv=notrunc; do dd if=$F of=/tmp/all bs=64k iflag=direct; N=$((N + 1)); echo PASS $N; done 2>/dev/null &\n",
    )?;
    let mut held = 0;
    for number in 2..=MOST_PARTS {
        if number > LEAST_PARTS && held > 1 {
            break;
        }
        Ring::wait_for_copied_disks(&directory, number, LIMIT)?;
        // Here all sectors are written anew before the copying goes on. It may be over already.
        if let Some(_copying) = StoppedThread::stop_named(run.pid(), "part")?
            && !Ring::has_whole(&directory, number)
        {
            held += 1;
            let passed = passes(&run);
            run.wait_for(&format!("PASS {}", passed + 2), LIMIT)?;
        }
        Ring::wait_for(&directory, number, max_bytes, LIMIT)?;
    }
    ensure!(held > 1, "the copying was held {held} times");
    answers(&mut run, "DISK")?;
    run.terminate()?.report()?;
    let ring = Ring::look(&directory)?;
    ensure!(ring.parts.len() >= 2, "{ring:?}");
    ring.verify()?;

    let (_, part) = ring.parts.last().context("parts")?;
    let image = part.join("disk-0.start");
    let mut disk = fs::read(&image)?;
    let middle = disk.len() / 2;
    disk[middle] ^= 1;
    fs::write(&image, disk)?;
    Debug::run(["verify".as_ref(), part.as_os_str()])?.expect(1, "is not the disk that the log names")?;
    Ok(())
}

/// Waits until a node's recording has this state, and a part where it is on.
fn wait_for_recording(hosts: &Pair, host: usize, state: &str) -> Result<serde_json::Value> {
    wait_for_status(&hosts.socket(host), LIMIT, |told| {
        let recording = &told["recording"];
        Ok(recording["state"] == state && (state != "on" || recording["parts"].as_u64() > Some(0)))
    })
}

/// The numbers of a ring's last part and its parts' terms, with why each began.
fn terms(ring: &Ring) -> Result<Vec<(u64, String)>> {
    let mut terms = Vec::new();
    for (_, part) in &ring.parts {
        let info = Debug::run(["info".as_ref(), part.as_os_str(), "--json".as_ref()])?.json()?;
        for term in info["pair"]["terms"].as_array().context("terms")? {
            let why = term["why"].as_str().context("why")?.to_owned();
            terms.push((term["term"].as_u64().context("term")?, why));
        }
    }
    Ok(terms)
}

#[test]
fn both_nodes_of_a_pair_record_and_the_promoted_one_goes_on() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let home = work_dir("ring-pair-logs")?;
    let logs = [home.join("a"), home.join("b")];
    let max_bytes = 60 * START;
    let mut setup = Setup::new("ring-pair").disk();
    for (host, log) in logs.iter().enumerate() {
        let log = log.to_str().context("path")?;
        let max = max_bytes.to_string();
        let limits = ["--record-max-bytes", &max, "--record-max-age-seconds", "60"];
        setup = setup.arguments(host, &["--record", log]).arguments(host, &limits);
    }
    let protected = setup.open()?;
    let hosts = &protected.scene.pair;
    for (host, log) in logs.iter().enumerate() {
        let told = wait_for_recording(hosts, host, "on")?;
        ensure!(told["recording"]["bytes"].as_u64() > Some(0), "{told}");
        Ring::wait_for(log, 2, max_bytes, LIMIT)?;
    }
    let alone = protected.kill_primary()?;
    let before = Ring::look(&logs[1])?.parts.last().context("parts")?.0;
    Ring::wait_for(&logs[1], before + 1, max_bytes, LIMIT)?;
    wait_for_recording(&alone.scene.pair, 1, "on")?;
    alone.settle_in_order()?;
    Ring::look(&logs[0])?.verify_killed()?;
    Ring::look(&logs[1])?.verify()?;
    let of_the_dead = terms(&Ring::look(&logs[0])?)?;
    ensure!(of_the_dead.iter().all(|(term, _)| *term == 1), "{of_the_dead:?}");
    let ring = Ring::look(&logs[1])?;
    let told = terms(&ring)?;
    ensure!(told.contains(&(2, "failing-over".into())), "{told:?}");
    // It began as the replica's, and what follows is the live machine's.
    ensure!(told.first().is_some_and(|(term, _)| *term == 1), "{told:?}");
    ensure!(told.last().is_some_and(|(term, _)| *term == 2), "{told:?}");
    Ok(())
}

#[test]
fn a_backup_whose_recording_cannot_be_kept_protects_and_goes_live() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let directory = work_dir("ring-full-log")?.join("log");
    let place = directory.to_str().context("path")?;
    let max = (100 * START).to_string();
    let mut scene = Setup::new("ring-full")
        .arguments(1, &["--record", place, "--record-max-bytes", &max])
        .build()?;
    scene
        .pair
        .prepare(1, format!("mkdir -p {place}; mount -t tmpfs -o size=100m none {place}"));
    let protected = scene.open()?;
    let hosts = &protected.scene.pair;
    wait_for_recording(hosts, 1, "on")?;
    // The file system is in the program's own mounts.
    let inside = format!("/proc/{}/root{place}/part-00000001/filler", protected.backup.run.pid());
    let full = std::io::copy(&mut std::io::repeat(0), &mut fs::File::create(inside)?);
    ensure!(full.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull));
    let told = wait_for_recording(hosts, 1, "stopped")?;
    let reason = told["recording"]["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("No space left"), "{told}");
    let table = hosts.operate(1, &["status"])?;
    let table = String::from_utf8_lossy(&table.stdout);
    ensure!(table.contains("no longer recorded"), "{table}");
    let alone = protected.kill_primary()?;
    let told = status(&alone.scene.pair.socket(1))?;
    ensure!(
        told["role"] == "primary" && told["recording"]["state"] == "stopped",
        "{told}"
    );
    alone.settle_in_order()
}

#[test]
fn a_node_that_stands_by_records_within_limits_or_not_at_all() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let directory = work_dir("ring-without-limits")?;
    let log = directory.join("log");
    let scene = Setup::new("ring-unlimited")
        .arguments(1, &["--record", log.to_str().context("path")?])
        .build()?;
    let backup = scene.start_backup(1)?;
    let outcome = backup.run.wait(LIMIT)?;
    outcome.expect_failure(1, &["--record-max-bytes", "--record-max-age-seconds"])?;
    let is_empty = !log.exists() || fs::read_dir(&log)?.next().is_none();
    ensure!(is_empty, "something is written");
    Ok(())
}
