//! Logs that are not what was recorded: each is told apart, with a position, and what is good in them is used.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iced_x86::code_asm::{CodeAssembler, eax, ebx, ecx, rax, rbx};
use lockstep_integration::gate::require_kvm;
use lockstep_integration::tamper::{self, Value, segment};
use lockstep_integration::{Booted, Kind, Run, Verify, tiny, work_dir};
use lockstep_vmm::micro::Body;

const LIMIT: Duration = Duration::from_secs(120);
/// Each draws two random numbers: enough for some batches, which end after 64 KiB or earlier.
const ROUNDS: u32 = 8000;

/// One recording for all tests here, with some of each kind of input that a machine without disk and NIC has.
fn recording() -> Result<&'static Path> {
    static RECORDING: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = RECORDING.get_or_init(|| record().map_err(|error| format!("{error:#}")));
    made.as_deref().map_err(|error| anyhow::anyhow!(error.clone()))
}

fn record() -> Result<PathBuf> {
    let log = work_dir("damage")?.join("log");
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(&log).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    for number in 0..6 {
        let entropy = "dd if=/dev/hwrng bs=64 count=4 2>/dev/null | cksum";
        run.type_text(&format!("sleep 0.2; {entropy}; echo LINE $(({number} + 10))\n"))?;
        run.wait_for(&format!("\nLINE {}", number + 10), LIMIT)?;
    }
    run.terminate()?.report()?;
    Verify::run(&log)?.identical()?;
    Ok(log)
}

fn copy(name: &str) -> Result<PathBuf> {
    let to = work_dir(name)?.join("log");
    tamper::copy(recording()?, &to)?;
    Ok(to)
}

/// `share`: how far into the recording `from` a value is changed.
fn names_the_batch(from: &Path, value: Value, share: f64) -> Result<()> {
    let to = from.with_file_name(format!("flip-{value:?}").to_lowercase());
    let batch = tamper::flip_bit(from, &to, value, share)?;
    let verify = Verify::run(&to)?;
    let diverged = verify.diverged_in()?;
    println!(
        "one bit of a {value:?} value in batch {batch}: {}",
        verify.report.unwrap_or_default()["divergence"]
    );
    ensure!(
        diverged == batch,
        "batch {batch} was changed, and verify names {diverged}"
    );
    Ok(())
}

#[test]
fn a_changed_clock_value_is_found_in_its_batch() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    names_the_batch(recording()?, Value::Clock, 0.5)
}

#[test]
fn a_changed_typed_byte_is_found_in_its_batch() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    names_the_batch(recording()?, Value::Console, 0.3)
}

#[test]
fn a_changed_byte_of_entropy_is_found_in_its_batch() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    names_the_batch(recording()?, Value::Entropy, 0.2)
}

/// Linux is told not to use RDRAND and RDSEED, so a kernel that does nothing else stands in for one that does. As they are
/// trapped, they never fail.
fn random_numbers(name: &str, draw: fn(&mut CodeAssembler) -> Body) -> Result<PathBuf> {
    let dir = work_dir(name)?;
    let (kernel, log) = (dir.join("kernel"), dir.join("log"));
    let file = tiny::kernel(|a| {
        let mut again = a.create_label();
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut again)?;
        draw(a)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.cli()?;
        a.hlt()
    })?;
    fs::write(&kernel, file)?;
    let run = Run::bare()?
        .args(["--memory-mib", "16", "--kernel"])
        .args([&kernel])
        .record(&log);
    run.complete(LIMIT)?.report()?;
    Verify::run(&log)?.identical()?;
    Ok(log)
}

#[test]
fn a_changed_random_number_is_found_in_its_batch() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let log = random_numbers("random", |a| {
        a.rdrand(rax)?;
        a.add(rbx, rax)?;
        a.rdseed(rax)?;
        a.xor(rbx, rax)
    })?;
    names_the_batch(&log, Value::Random, 0.5)
}

/// The guest takes the low half of each number, and a bit of the high half is changed.
#[test]
fn a_changed_bit_that_the_guest_never_sees_is_found_in_its_batch() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let log = random_numbers("unseen", |a| {
        a.rdrand(eax)?;
        a.rdseed(ebx)
    })?;
    names_the_batch(&log, Value::Random, 0.5)
}

#[test]
fn a_truncated_log_is_compared_up_to_its_tear() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let log = copy("truncated")?;
    let whole = Verify::run(recording()?)?.identical()?["stops"]
        .as_u64()
        .context("stops")?;
    let file = OpenOptions::new().write(true).open(segment(&log))?;
    let length = file.metadata()?.len();
    for cut in [length * 2 / 3, length / 3 + 7] {
        file.set_len(cut)?;
        let verify = Verify::run(&log)?;
        let report = verify.identical()?;
        let (ending, stops) = (report["ending"].as_str().unwrap_or_default(), report["stops"].as_u64());
        println!("cut to {cut} of {length} bytes: {ending}; {stops:?} of {whole} stops compared");
        ensure!(
            ending.starts_with("torn") || ending.starts_with("without an end"),
            "{ending}"
        );
        ensure!(stops > Some(0) && stops < Some(whole), "{report}");
    }
    // Nothing but the file header is left.
    file.set_len(20)?;
    let verify = Verify::run(&log)?;
    ensure!(
        verify.status.code() == Some(1) && verify.messages.contains("ends inside its header"),
        "{verify:?}"
    );
    Ok(())
}

#[test]
fn a_corrupted_log_names_segment_and_offset() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let log = copy("corrupted")?;
    let path = segment(&log);
    let mut bytes = fs::read(&path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&path, bytes)?;
    let verify = Verify::run(&log)?;
    println!("{}", verify.messages.trim());
    ensure!(verify.status.code() == Some(1) && verify.report.is_none(), "{verify:?}");
    ensure!(
        verify.messages.contains("segment-00000000.lsl is damaged at offset"),
        "{}",
        verify.messages
    );
    Ok(())
}

#[test]
fn a_log_of_a_future_version_is_refused() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let log = copy("future")?;
    tamper::set_version(&log, 99)?;
    let verify = Verify::run(&log)?;
    println!("{}", verify.messages.trim());
    ensure!(verify.status.code() == Some(1) && verify.report.is_none(), "{verify:?}");
    ensure!(
        verify.messages.contains("version") && verify.messages.contains("99"),
        "{}",
        verify.messages
    );
    Ok(())
}

#[test]
fn a_replaced_start_state_is_refused() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let log = copy("replaced")?;
    let start = log.join("start.snapshot");
    let mut bytes = fs::read(&start)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&start, bytes)?;
    let verify = Verify::run(&log)?;
    println!("{}", verify.messages.trim());
    ensure!(
        verify.status.code() == Some(1) && verify.messages.contains("start.snapshot"),
        "{verify:?}"
    );
    fs::remove_file(&start)?;
    let verify = Verify::run(&log)?;
    println!("{}", verify.messages.trim());
    ensure!(
        verify.status.code() == Some(1) && verify.messages.contains("start.snapshot"),
        "{verify:?}"
    );
    Ok(())
}

#[test]
fn a_killed_recorder_loses_nothing_that_was_written() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let log = work_dir("killed")?.join("log");
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(&log).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    run.type_text("clock 100 & spin 100000000000\n")?;
    for _ in 0..15 {
        run.wait_for("\nCLOCK ", LIMIT)?;
    }
    let outcome = run.kill()?;
    ensure!(!outcome.status.success(), "{:?}", outcome.status);
    let verify = Verify::run(&log)?;
    let report = verify.identical()?;
    println!(
        "killed: {}; {} s of guest time compared",
        report["ending"], report["guest_seconds"]
    );
    let ending = report["ending"].as_str().unwrap_or_default();
    ensure!(
        ending.starts_with("torn") || ending.starts_with("without an end"),
        "{ending}"
    );
    ensure!(report["guest_seconds"].as_f64() > Some(1.0), "{report}");
    Ok(())
}
