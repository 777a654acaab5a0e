//! What cannot be controlled is found and healed: replicas that went different ways are equal again, and nobody outside
//! notices.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::disk::check_ext4;
use lockstep_integration::gate::{require_program, require_root_net, soak};
use lockstep_integration::pair::{
    Arbiter, LIMIT, Node, Pair, Protected, SOME, Setup, blank_like, boot_debian, check_equal, copy_debian, flip_tick,
    number, rounds, status, wait_for_status,
};
use lockstep_integration::snapshot::BOOT_LIMIT;
use lockstep_integration::{Debug, Guest, work_dir};
use serde_json::Value;

/// Pages of the machine's memory.
const PAGES: u64 = 64 << 8;

/// What `diff --report` makes of the primary's messages is what stands in them.
fn explains(messages: &str) -> Result<()> {
    let file = work_dir("divergence-report")?.join("messages");
    // More may have come since; the report is in what was there.
    std::fs::write(&file, messages)?;
    let file = file.to_string_lossy().into_owned();
    let found = Debug::run(["diff", "--report", &file, "--json"])?;
    found.expect(1, "")?;
    let found = found.json()?;
    println!("{found:#}");
    let what = found["what"].as_str().context("what")?;
    let stop = found["stop"].as_u64().context("stop")?;
    ensure!(messages.contains(&format!("first divergence: {what}")), "{found:#}");
    let values = found["values"].as_array().context("values")?;
    let first = messages.contains(&format!("registers differ first at stop {stop}:"));
    ensure!(first != values.is_empty(), "registers that differ: {first}, {found:#}");
    for value in values {
        let [name, expected, actual] = ["name", "expected", "actual"].map(|key| value[key].as_str().unwrap_or(""));
        let line = format!("* {name:>6} expected {expected} actual {actual}");
        ensure!(messages.contains(&line), "`{line}` is not in the messages");
    }
    Ok(())
}

/// Waits until the pair has found a divergence and is protected again; most of memory did not have to travel.
fn is_healed(protected: &Protected) -> Result<()> {
    let primary = &protected.primary;
    primary.run.messages.wait_for("the backup diverged", LIMIT)?;
    // The program differs in what it prints, or in memory before.
    primary.run.messages.wait_for("registers ", LIMIT)?;
    explains(&primary.run.messages.text())?;
    primary.wait_for_state("protected term=2", LIMIT)?;
    let sent = primary.number("sent_pages").context("nothing was said of a join")?;
    let same = primary.number("same_pages").context("nothing was said of a join")?;
    println!("{sent} pages healed it, {same} were the same");
    ensure!(
        sent < PAGES / 8 && same > PAGES / 2,
        "{sent} pages were sent, {same} were the same"
    );
    protected.counter.wait_for(SOME, LIMIT)
}

/// Where the host cannot trap RDTSC in ring 3, each side stores its own.
#[test]
fn a_program_that_reads_the_tsc_is_healed() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let mut protected = Setup::new("pair-tsc").open()?;
    protected.primary.run.type_text("rdtsc3 1\n")?;
    protected.primary.run.wait_for("RDTSC3 rounds=1", LIMIT)?;
    is_healed(&protected)?;
    protected.kill_primary()?.settle()
}

#[test]
fn a_flipped_bit_of_the_backup_is_healed() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = Setup::new("pair-flip").open()?;
    flip_tick(&protected.backup, PAGES << 12)?;
    is_healed(&protected)?;
    protected.kill_primary()?.settle()
}

/// A round of Debian's programs takes half a minute, and some minutes on a busy machine.
const LOAD_LIMIT: Duration = Duration::from_secs(900);
/// Rounds beyond those wanted in which the first divergence must have come.
const MORE: usize = 10;

/// How often a status says that the backup diverged.
fn divergences(status: &Value) -> Result<u64> {
    status["divergences"].as_u64().context("no number of divergences")
}

/// Waits until the pair is protected, and the backup has executed and compared all that there was to execute when it was
/// asked. Returns how often it had diverged by then.
fn is_equal(pair: &Pair, primary: &Node) -> Result<u64> {
    let socket = pair.socket(primary.host);
    loop {
        let before = wait_for_status(&socket, LIMIT, |now| Ok(now["state"] == "protected"))?;
        let (position, diverged) = (number(&before, "received")?, divergences(&before)?);
        let after = wait_for_status(&socket, LIMIT, |now| {
            Ok(divergences(now)? > diverged || number(now, "verified")? > position)
        })?;
        if divergences(&after)? == diverged && after["state"] == "protected" {
            return Ok(diverged);
        }
    }
}

/// Debian's programs run CPUID and RDTSC as they start: where the host cannot trap them, each of them makes the replicas
/// differ. All of it is found and healed, and nothing that the guest computes is wrong.
#[test]
fn a_debian_under_load_is_healed_again_and_again() -> Result<()> {
    if !require_root_net() || !require_program("debootstrap", "debootstrap") {
        return Ok(());
    }
    let dir = work_dir("pair-debian")?;
    let disks = [dir.join("a.img"), dir.join("b.img")];
    copy_debian(&disks[0])?;
    blank_like(&disks[0], disks[1].clone())?;
    let guest = Guest::find()?;
    let pair = Pair::create(&dir, Arbiter::File, Duration::from_millis(100), Duration::from_secs(3))?;
    let mut primary = pair.start_primary(0, |run| boot_debian(run, &guest, &disks[0]))?;
    primary.run.wait_for("DEBIAN-READY", BOOT_LIMIT)?;
    let mut backup = pair.start_backup(1, |run| run.disk(&disks[1]))?;
    primary.wait_for_state("protected", LIMIT)?;
    // What a program that has ended stored is often overwritten before memory is compared: that is no divergence any more.
    let least = if soak() { 100 } else { 1 };
    let mut count = 0;
    while count < least || divergences(&status(&pair.socket(0))?)? == 0 {
        ensure!(
            count < least + MORE,
            "nothing diverged: can this host trap CPUID and RDTSC?"
        );
        primary.run.type_text("load 1\n")?;
        primary.run.wait_for("LOAD-DONE 1", LOAD_LIMIT)?;
        count += 1;
    }
    let diverged = is_equal(&pair, &primary)?;
    let told = status(&pair.socket(0))?;
    println!("{diverged} divergences in {count} rounds: {told}");
    let console = primary.run.console.text();
    let digests = rounds(&console);
    ensure!(
        digests.len() == count && digests.iter().all(|digest| *digest == digests[0] && digest.len() == 16),
        "the rounds had different results: {console}"
    );
    // What had been compared goes on elsewhere, and is the same machine.
    primary.run.kill()?;
    backup.wait_for_state("not-protected (lost-connection)", LIMIT)?;
    backup.run.type_text("ask there\n")?;
    backup.run.wait_for("HERE there", LIMIT)?;
    backup.run.kill()?;
    check_equal(&disks[0], &disks[1])?;
    check_ext4(&disks[0])
}
