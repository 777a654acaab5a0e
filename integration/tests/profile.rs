//! `profile` of a recording in which a program computes for some seconds: it is found with its function and its time, and
//! profiles of the same are equal to the byte.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use lockstep_integration::gate::require_kvm;
use lockstep_integration::paths::target_dir;
use lockstep_integration::{Booted, Debug, Guest, Kind, work_dir};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(180);
/// Some two seconds of a CPU of these years.
const ROUNDS: u64 = 1_000_000_000;

/// Lets `spin` compute, and then `stress`, with pauses.
fn record(log: &Path) -> Result<()> {
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(log).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    run.type_text(&format!("sleep 1; echo BEFORE-$((40 + 2)); spin {ROUNDS}; sleep 1\n"))?;
    run.wait_for("SPIN iterations", LIMIT)?;
    run.type_text("stress -n 60 -w float\n")?;
    run.wait_for("STRESS-OK", LIMIT)?;
    run.terminate()?.report()?;
    Ok(())
}

/// The guest's programs with their symbols: those that are in its initrd without.
fn programs(guest: &Guest) -> Result<PathBuf> {
    let initrd = fs::read(&guest.general)?;
    for entry in fs::read_dir(target_dir().join("guest/cache"))? {
        let built = entry?.path();
        if fs::read(built.join("general.cpio")).is_ok_and(|bytes| bytes == initrd) {
            return Ok(built.join("programs"));
        }
    }
    anyhow::bail!("no build of {} is kept", guest.general.display())
}

/// When a line was printed, in seconds of guest time.
fn printed(log: &str, text: &str) -> Result<f64> {
    let console = Debug::run(["console", log, "--timestamps"])?.text();
    let line = console.lines().find(|line| line.contains(text) && !line.contains('$'));
    let line = line.with_context(|| format!("no {text}: {console}"))?;
    let time = line.trim_start_matches(['[', ' ']).split([' ', ']']).next();
    Ok(time.context("no time")?.parse()?)
}

fn number(value: &Value, name: &str) -> Result<u64> {
    value[name].as_u64().with_context(|| format!("no {name}: {value:#}"))
}

/// Samples of the function as the innermost one, and anywhere on the stack.
fn function(profile: &Value, name: &str, file: &str) -> Result<(u64, u64)> {
    let list = profile["functions"].as_array().context("functions")?;
    let found = list.iter().find(|row| row["function"] == name && row["file"] == file);
    let found = found.with_context(|| format!("no {name} of {file}: {profile:#}"))?;
    Ok((number(found, "self")?, number(found, "total")?))
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

#[test]
fn who_computed_and_where_is_found() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("profile")?;
    let log_dir = dir.join("log");
    record(&log_dir)?;
    let log = log_dir.to_str().context("path")?;
    let guest = Guest::find()?;
    let sysroot = dir.join("sysroot");
    fs::create_dir_all(sysroot.join("bin"))?;
    for entry in fs::read_dir(programs(&guest)?)? {
        let entry = entry?;
        fs::copy(entry.path(), sysroot.join("bin").join(entry.file_name()))?;
    }
    fs::rename(sysroot.join("bin/init"), sysroot.join("init"))?;
    let vmlinux = guest.vmlinux.to_str().context("path")?;
    let root = sysroot.to_str().context("path")?;
    let known = ["--vmlinux", vmlinux, "--sysroot", root];
    let profile = |more: &[&str]| -> Result<Debug> {
        let mut arguments = vec!["profile", log];
        arguments.extend(known);
        arguments.extend(more);
        let told = Debug::run(arguments)?;
        told.expect(0, "")?;
        Ok(told)
    };

    // All of it: the parts are the whole, and so are the samples.
    let whole = profile(&["--json"])?.json()?;
    let span = number(&whole, "to_ns")? - number(&whole, "from_ns")?;
    let (idle, carried) = (number(&whole, "idle_ns")?, number(&whole, "carried_ns")?);
    ensure!(idle + carried + number(&whole, "replayed_ns")? == span, "{whole:#}");
    let ticks = number(&whole, "samples")? + number(&whole, "idle_samples")?;
    ensure!(
        ticks == (u128::from(span) * 999 / 1_000_000_000) as u64,
        "{ticks} ticks in {span} ns"
    );
    let share = percent(
        number(&whole, "user_samples_with_symbol")?,
        number(&whole, "user_samples")?,
    );
    ensure!(
        share > 90.0,
        "{share:.1} % with a symbol: {:#}",
        whole["without_symbols"]
    );
    ensure!(number(&whole, "batches_compared")? > 0 && number(&whole, "epochs_compared")? > 0);

    // The time in which it computed, not knowing who did: it comes first. On a host with much else to do the guest's kernel takes
    // some of that time, for its timer.
    let (before, after) = (printed(log, "BEFORE-42")?, printed(log, "SPIN iterations")?);
    let (from, to) = (format!("{:.9}s", before + 0.3), format!("{:.9}s", after - 0.1));
    let spun = profile(&["--json", "--from", &from, "--to", &to])?.json()?;
    ensure!(spun["tasks"][0]["comm"] == "spin", "{:#}", spun["tasks"]);
    let functions = spun["functions"].as_array().context("functions")?;
    let first = functions
        .iter()
        .find(|row| row["ring"] == 3)
        .context("no program's function")?;
    ensure!(first["function"] == "main" && first["file"] == "/bin/spin", "{first:#}");
    let samples = number(&spun["tasks"][0], "samples")?;
    let (own, total) = function(&spun, "main", "/bin/spin")?;
    ensure!(
        percent(total, samples) > 90.0 && own <= total,
        "{own} of {samples}: {spun:#}"
    );
    ensure!(
        number(&spun, "carried_ns")? > 0,
        "who makes no stop is carried: {spun:#}"
    );
    println!(
        "spin computed for {:.2} s: {total} of its {samples} samples have its main; {share:.1} % of all in programs have a symbol",
        after - before
    );

    // A stack of more than one frame, and one task alone.
    let stressed = profile(&["--json", "--task", "stress"])?.json()?;
    let (_, total) = function(&stressed, "stress_float", "/bin/stress")?;
    let (_, called) = function(&stressed, "main", "/bin/stress")?;
    ensure!(total > 0 && called >= total, "main calls stress_float: {stressed:#}");
    ensure!(
        stressed["tasks"].as_array().is_some_and(|tasks| tasks.len() == 1),
        "{stressed:#}"
    );
    ensure!(number(&stressed, "other_samples")? > 0, "{stressed:#}");

    // Equal to the byte, at any rate, in every form.
    for (rate, name) in [
        ("999", "a.svg"),
        ("999", "a.folded"),
        ("5000", "a.pb.gz"),
        ("50", "a.txt"),
        ("999", "a.json.gz"),
    ] {
        let file = dir.join(name);
        let mut written = Vec::new();
        for _ in 0..2 {
            profile(&["--from", &from, "--rate", rate, "-o", file.to_str().context("path")?])?;
            written.push(fs::read(&file)?);
        }
        ensure!(
            written[0] == written[1] && !written[0].is_empty(),
            "{name} differs from {name}"
        );
    }
    let left: Vec<_> = fs::read_dir(&dir)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left.len() == 7, "the log, the directory and five files: {left:?}");

    // By time: as many samples of `spin` as the table has, between the lines that say when it computed.
    let file = dir.join("spin.json.gz");
    let shown = file.to_str().context("path")?;
    let table = profile(&["--json", "--from", &from, "--to", &to, "--task", "spin", "-o", shown])?.json()?;
    let firefox: Value = serde_json::from_reader(GzDecoder::new(fs::File::open(&file)?))?;
    let threads = firefox["threads"].as_array().context("threads")?;
    ensure!(threads.len() == 1 && threads[0]["name"] == "spin", "{threads:?}");
    let length = number(&threads[0]["samples"], "length")?;
    ensure!(length == number(&table, "samples")?, "{length} samples, of {table:#}");
    let deltas = threads[0]["samples"]["timeDeltas"].as_array().context("times")?;
    let end: f64 = deltas.iter().filter_map(Value::as_f64).sum();
    ensure!(
        end <= (after - before) * 1000.0 && deltas.len() as u64 == length,
        "its last sample is {end} ms after the first tick"
    );
    fs::remove_file(&file)?;

    // The kernel alone, and without the programs' files: the task is known, and why its functions are not.
    let kernel = profile(&["--json", "--kernel", "--from", &from, "--to", &to])?.json()?;
    ensure!(
        number(&kernel, "user_samples")? == 0 && kernel["tasks"][0]["comm"] == "spin",
        "{kernel:#}"
    );
    let mut bare = vec![
        "profile",
        log,
        "--vmlinux",
        vmlinux,
        "--json",
        "--from",
        &from,
        "--to",
        &to,
    ];
    let without = Debug::run(bare.clone())?.json()?;
    ensure!(without["without_symbols"][0]["path"] == "/bin/spin", "{without:#}");
    let why = without["without_symbols"][0]["why"].as_str().context("why")?;
    ensure!(why.contains("no disk") && why.contains("--sysroot"), "{why}");

    // Another program of that name is not believed.
    fs::copy(sysroot.join("bin/stress"), sysroot.join("bin/spin"))?;
    bare.extend(["--sysroot", root]);
    let other = Debug::run(bare)?.json()?;
    let why = other["without_symbols"][0]["why"].as_str().context("why")?;
    ensure!(why.contains("another build"), "{why}");
    Ok(())
}
