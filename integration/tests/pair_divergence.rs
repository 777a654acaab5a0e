//! What cannot be controlled is found and healed: replicas that went different ways are equal again, and nobody outside
//! notices.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep_integration::disk::check_ext4;
use lockstep_integration::gate::{ordinary_host, require_program, require_root_net, soak};
use lockstep_integration::pair::{
    Arbiter, LIMIT, Node, Pair, Protected, SOME, Setup, Tick, blank_like, boot_debian, check_equal, copy_debian,
    number, rounds, status, until_found, wait_for_status,
};
use lockstep_integration::snapshot::BOOT_LIMIT;
use lockstep_integration::{Debug, Guest, work_dir};
use serde_json::Value;

/// Pages of the machine's memory.
const PAGES: u64 = 64 << 8;
/// Times that a program which stores RDTSC may be carried by a delta before one is found.
const TIMES: usize = 20;

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
    // Pages and bytes stand beside the registers.
    let is_register = |value: &Value| value["name"].as_str().is_some_and(|name| !name.contains("0x"));
    ensure!(
        first == values.iter().any(is_register),
        "registers that differ: {first}, {found:#}"
    );
    for value in values.iter().filter(|value| is_register(value)) {
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
    primary.wait_for_state("protected term=2", LIMIT)?;
    // Not before: half a report may be there.
    explains(&primary.run.messages.text())?;
    // The thread that sent the pages may tell of it later.
    let told = primary.run.messages.text();
    let since = told.rfind("the backup diverged").unwrap_or_default();
    if !told[since..].contains("same_chunks=") {
        primary.run.messages.wait_for("same_chunks=", LIMIT)?;
    }
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
    // Nothing else made it diverge.
    ensure!(is_equal(&protected.scene.pair, &protected.primary)? == 0);
    diverge(&protected.scene.pair, &mut protected.primary, 0, "rdtsc3 1\n")?;
    is_healed(&protected)?;
    protected.kill_primary()?.settle()
}

#[test]
fn a_flipped_bit_of_the_backup_is_healed() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = Setup::new("pair-flip").open()?;
    until_found(&protected, PAGES << 12, Tick::flip)?;
    is_healed(&protected)?;
    protected.kill_primary()?.settle()
}

/// What `diff --report` makes of a node's last report that was kept.
fn kept(pair: &Pair, node: &Node) -> Result<Value> {
    let directory = pair.run_dir(node.host).join("pair.divergences");
    let mut files: Vec<_> = std::fs::read_dir(&directory)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    let last = files.pop().context("no report is kept")?;
    let vmlinux = Guest::find()?.vmlinux;
    let arguments = [
        "diff".as_ref(),
        "--json".as_ref(),
        "--report".as_ref(),
        last.as_os_str(),
    ];
    let found = Debug::run(arguments.into_iter().chain(["--vmlinux".as_ref(), vmlinux.as_os_str()]))?;
    found.expect(1, "")?;
    let found = found.json()?;
    println!("{}: {found:#}", last.display());
    Ok(found)
}

/// Nobody reads the bit, so only the comparison of memory finds it, and names it.
#[test]
fn a_bit_that_nobody_reads_is_named_with_its_page_and_byte() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let protected = Setup::new("pair-bit").open()?;
    let (primary, backup) = (&protected.primary, &protected.backup);
    let address = until_found(&protected, PAGES << 12, Tick::set_beside)?;
    is_healed(&protected)?;
    backup.run.messages.wait_for("pages that differed:", LIMIT)?;
    let page = format!("page {:#x}", address & !0xfff);
    let byte = format!("byte {address:#x} (jiffies_64+0x9)");
    for (node, is_healed_here) in [(primary, false), (backup, true)] {
        let found = kept(&protected.scene.pair, node)?;
        let values = found["values"].as_array().context("values")?;
        let names = |start: &str, healed: bool| -> Vec<&Value> {
            let fits = |value: &&Value| {
                let name = value["name"].as_str().unwrap_or("");
                name.starts_with(start) && name.ends_with(" when healed") == healed
            };
            values.iter().filter(fits).collect()
        };
        let pages = names("page ", false);
        ensure!(pages.len() == 1 && pages[0]["name"] == *page, "{page}: {found:#}");
        let bytes = names("byte ", false);
        ensure!(
            bytes.len() == 1 && bytes[0]["name"] == *byte && bytes[0]["expected"] == "00" && bytes[0]["actual"] == "40",
            "{byte}: {found:#}"
        );
        let healed = names(&byte, true);
        ensure!(healed.len() == usize::from(is_healed_here), "{found:#}");
        for value in healed {
            ensure!(value["expected"] == "00" && value["actual"] == "40", "{found:#}");
        }
    }
    protected.kill_primary()?.settle()
}

/// A round of Debian's programs takes half a minute, and some minutes on a busy machine.
const LOAD_LIMIT: Duration = Duration::from_secs(900);

/// Has a program in the guest store RDTSC, by these words on its console, until the replicas have diverged more often than this.
/// A delta may have carried what it stored, or others stored there before memory was compared: that is no divergence.
fn diverge(pair: &Pair, primary: &mut Node, diverged: u64, words: &str) -> Result<()> {
    let mut times = 0..TIMES;
    while is_equal(pair, primary)? == diverged {
        times
            .next()
            .context("nothing diverged: can this host trap CPUID and RDTSC?")?;
        primary.run.type_text(words)?;
        primary.run.wait_for("RDTSC3 rounds=1", LIMIT)?;
    }
    Ok(())
}

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

/// A protected Debian, and the disks of both hosts.
fn debians(name: &str) -> Result<(Pair, Node, Node, [PathBuf; 2])> {
    let dir = work_dir(name)?;
    let disks = [dir.join("a.img"), dir.join("b.img")];
    copy_debian(&disks[0])?;
    blank_like(&disks[0], disks[1].clone())?;
    let guest = Guest::find()?;
    let pair = Pair::create(&dir, Arbiter::File, Duration::from_millis(100), Duration::from_secs(3))?;
    let primary = pair.start_primary(0, |run| boot_debian(run, &guest, &disks[0]))?;
    primary.run.wait_for("DEBIAN-READY", BOOT_LIMIT)?;
    let backup = pair.start_backup(1, |run| run.disk(&disks[1]))?;
    primary.wait_for_state("protected", LIMIT)?;
    Ok((pair, primary, backup, disks))
}

/// Debian's programs run CPUID and RDTSC as they start: where the host cannot trap them, each of them makes the replicas
/// differ. All of it is found and healed, and nothing that the guest computes is wrong.
#[test]
fn a_debian_under_load_is_healed_again_and_again() -> Result<()> {
    if !require_root_net() || !require_program("debootstrap", "debootstrap") {
        return Ok(());
    }
    let (pair, mut primary, mut backup, disks) = debians("pair-debian")?;
    let socket = pair.socket(0);
    let count = if soak() { 100 } else { 2 };
    for _ in 0..count {
        primary.run.type_text("load 1\n")?;
        primary.run.wait_for("LOAD-DONE 1", LOAD_LIMIT)?;
        // Whatever the round's programs did: one is made that is found.
        let diverged = is_equal(&pair, &primary)?;
        println!("the round diverged {diverged} times until now");
        diverge(&pair, &mut primary, diverged, "tsc 1\n")?;
    }
    let diverged = is_equal(&pair, &primary)?;
    let told = status(&socket)?;
    ensure!(
        diverged >= count as u64,
        "{diverged} divergences in {count} rounds: {told}"
    );
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

/// Where RDTSC of programs can be trapped, and CPUID is as the profile says, nothing diverges.
#[test]
fn a_pair_that_runs_programs_of_glibc_does_not_diverge() -> Result<()> {
    if !require_root_net() || !require_program("debootstrap", "debootstrap") || !ordinary_host()? {
        return Ok(());
    }
    let (pair, mut primary, backup, _) = debians("pair-glibc")?;
    let (begin, long) = (Instant::now(), Duration::from_secs(if soak() { 600 } else { 60 }));
    let mut rounds = 0;
    while begin.elapsed() < long {
        rounds += 1;
        primary.run.type_text(&format!("glibc 1\nask {rounds}\n"))?;
        primary.run.wait_for(&format!("HERE {rounds}"), LOAD_LIMIT)?;
        is_equal(&pair, &primary)?;
        pair.ensure_no_divergence([&primary, &backup])
            .with_context(|| format!("{rounds} rounds"))?;
    }
    println!(
        "{rounds} rounds in {:.0} s, no divergence",
        begin.elapsed().as_secs_f64()
    );
    primary.kill()?;
    backup.kill()?;
    Ok(())
}
