//! What `lockstep-debug` tells of a recording that is as it should be.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::require_kvm;
use lockstep_integration::tamper::{self, Value};
use lockstep_integration::{Booted, Debug, Kind, work_dir};

const LIMIT: Duration = Duration::from_secs(120);

/// A recording of a shell that was typed at, and what its recorder saw on the console.
struct Recorded {
    log: PathBuf,
    console: String,
    seconds: f64,
}

fn recording() -> Result<&'static Recorded> {
    static RECORDING: OnceLock<Result<Recorded, String>> = OnceLock::new();
    let made = RECORDING.get_or_init(|| record().map_err(|error| format!("{error:#}")));
    made.as_ref().map_err(|error| anyhow::anyhow!(error.clone()))
}

fn record() -> Result<Recorded> {
    let log = work_dir("recordings")?.join("log");
    let mut run = Booted::get(Kind::Shell)?
        .go_on()?
        .record(&log)
        .args(["--epoch-detail"])
        .start()?;
    run.wait_for("lockstep#", LIMIT)?;
    for number in 0..6 {
        run.type_text(&format!("echo LINE $(({number} + 10))\n"))?;
        run.wait_for(&format!("\nLINE {}", number + 10), LIMIT)?;
    }
    let outcome = run.terminate()?;
    let seconds = outcome.report()?["guest_seconds"].as_f64().context("guest_seconds")?;
    Ok(Recorded {
        log,
        console: outcome.console,
        seconds,
    })
}

fn run(command: &str, log: &Path, more: &[&str]) -> Result<Debug> {
    let start = [command, log.to_str().context("path")?];
    Debug::run(start.iter().chain(more))
}

#[test]
fn events_are_chosen_by_place_kind_and_text() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let log = &recording()?.log;
    let all = run("events", log, &["--json"])?.json_lines()?;
    let number = |event: &serde_json::Value, name: &str| event[name].as_u64().unwrap_or(u64::MAX);
    ensure!(all.len() > 100, "{} events", all.len());
    let (first, last) = (&all[all.len() / 3], &all[all.len() / 2]);
    for (from, to, name) in [
        (
            number(first, "stop").to_string(),
            number(last, "stop").to_string(),
            "stop",
        ),
        (
            format!("{}ns", number(first, "guest_ns")),
            format!("{}ns", number(last, "guest_ns")),
            "guest_ns",
        ),
    ] {
        let some = run("events", log, &["--json", "--from", &from, "--to", &to])?.json_lines()?;
        let range = number(first, name)..=number(last, name);
        let expected: Vec<_> = all
            .iter()
            .filter(|event| range.contains(&number(event, name)))
            .collect();
        ensure!(
            some.iter().eq(expected.iter().copied()) && !some.is_empty() && some.len() < all.len(),
            "{from} to {to}: {} events, and {} are in the range",
            some.len(),
            expected.len()
        );
    }
    let typed = run("events", log, &["--json", "--kind", "console"])?.json_lines()?;
    let text: String = typed.iter().filter_map(|event| event["console"].as_str()).collect();
    ensure!(text.contains("echo LINE $((3 + 10))\n"), "{text}");
    // The pattern is a regular expression, and typed bytes are looked through, not only the line that is shown.
    let found = run("events", log, &["--json", "--text", r"LINE \$\(\([24] \+"])?.json_lines()?;
    let found: Vec<_> = found.iter().filter_map(|event| event["console"].as_str()).collect();
    ensure!(
        found.len() == 2 && found[0].contains("((2 +") && found[1].contains("((4 +"),
        "{found:?}"
    );
    let columns = run("events", log, &["--kind", "console"])?;
    columns.expect(0, "guest time")?;
    ensure!(columns.text().lines().count() == typed.len() + 1, "{}", columns.text());
    Ok(())
}

/// What the guest printed, with line ends as a recorder's transcript has them.
fn printed(log: &Path, more: &[&str]) -> Result<String> {
    let console = run("console", log, more)?;
    console.expect(0, "")?;
    Ok(console.text().replace("\r\n", "\n"))
}

#[test]
fn the_console_is_printed_again() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let Recorded { log, console, .. } = recording()?;
    let whole = printed(log, &[])?;
    ensure!(whole == *console, "{whole:?} and not {console:?}");

    let stamped = printed(log, &["--timestamps"])?;
    let mut times = Vec::new();
    let mut lines = String::new();
    for line in stamped.split_inclusive('\n') {
        let (stamp, text) = line.split_once("] ").context("no time stamp")?;
        times.push(stamp.trim_start_matches('[').trim().parse::<f64>()?);
        lines += text;
    }
    ensure!(lines == *console, "{lines}");
    ensure!(times.is_sorted(), "{times:?}");

    // Up to a time, and up to the stop that stands there.
    let marks: Vec<_> = stamped
        .lines()
        .zip(&times)
        .filter(|(line, _)| line.contains("] LINE 12"))
        .collect();
    let time = marks.first().context("LINE 12 is not on the console")?.1;
    let to_time = printed(log, &["--to", &format!("{time:.9}s")])?;
    let events = run("events", log, &["--json", "--to", &format!("{time:.9}s")])?.json_lines()?;
    let stop = events.last().context("no events")?["stop"].to_string();
    let to_stop = printed(log, &["--to", &stop])?;
    for text in [&to_time, &to_stop] {
        // Each byte is a stop: one may lie between the two that end a line.
        let text = text.trim_end_matches('\r');
        ensure!(
            console.starts_with(text) && text.contains("LINE 11") && !text.contains("LINE 13"),
            "{text}"
        );
    }
    run("console", log, &["--to", "9999h"])?.expect(0, "the log ends at stop")?;
    Ok(())
}

#[test]
fn info_tells_all_of_a_recording() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let Recorded { log, seconds, .. } = recording()?;
    let info = run("info", log, &["--json"])?.json()?;
    ensure!(info["replayable"] == true && info["why_not"].is_null(), "{info:#}");
    ensure!(info["ending"] == "clean" && info["pair"].is_null(), "{info:#}");
    ensure!(
        (info["guest_seconds"].as_f64().context("guest_seconds")? - seconds).abs() < 0.001,
        "{info:#}"
    );
    for name in [
        "turns",
        "clock",
        "console_bytes",
        "epochs",
        "last_stop",
        "bytes",
        "start_ns",
        "memory_bytes",
    ] {
        ensure!(info[name].as_u64() > Some(0), "{name}: {info:#}");
    }
    let text = run("info", log, &[])?;
    for name in [
        "recorded by",
        "host class",
        "replay here   possible",
        "guest time",
        "turns",
        "size",
        "ends          in order",
    ] {
        text.expect(0, name)?;
    }
    Ok(())
}

#[test]
fn diff_points_at_the_turn_that_was_changed() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let log = &recording()?.log;
    let path = log.to_str().context("path")?;
    run("diff", log, &[path])?.expect(0, "are equal; both end in order")?;
    run("diff", log, &[])?.expect(0, "no difference")?;
    for (value, name) in [
        (Value::Clock, "clock step, ns"),
        (Value::Console, "typed bytes, from byte 0 (1 differ)"),
    ] {
        let changed = log.with_file_name(format!("diff-{value:?}").to_lowercase());
        let batch = tamper::flip_bit(log, &changed, value, 0.4)?;
        let other = changed.to_str().context("path")?;
        let diff = run("diff", log, &[other, "--json"])?;
        diff.expect(1, "")?;
        let found = diff.json()?;
        ensure!(
            found["batch"] == batch && found["other_batch"] == batch,
            "{batch}: {found:#}"
        );
        let values = found["values"].as_array().context("values")?;
        ensure!(values.len() == 1 && values[0]["name"] == name, "{found:#}");
        ensure!(found["expected"] != found["actual"], "{found:#}");
        // The events agree on where the turn is.
        let stop = found["stop"].to_string();
        let [one, two] = [log, &changed].map(|log| run("events", log, &["--json", "--from", &stop, "--to", &stop]));
        ensure!(one?.out != two?.out, "stop {stop} has the same turns in both");
        run("diff", log, &[other])?.expect(1, name)?;

        let diff = run("diff", &changed, &["--json"])?;
        diff.expect(1, "")?;
        let found = diff.json()?;
        ensure!(found["batch"] == batch, "batch {batch} was changed: {found:#}");
        // The batch's digest differs, or an epoch in it: in a page, or in the vCPU or a device alone.
        let values = found["values"].as_array().context("values")?;
        let named = |starts: &[&str]| {
            let mut names = values.iter().filter_map(|value| value["name"].as_str());
            names.any(|it| starts.iter().any(|start| it.starts_with(start)))
        };
        let expected: &[&str] = if found["notes"].to_string().contains("the vCPU or a device differs") {
            ensure!(!named(&["page 0x", "memory"]), "{found:#}");
            &["vCPU: ", "device: "]
        } else {
            &["page 0x", "digest chain"]
        };
        ensure!(named(expected), "{found:#}");
        run("diff", &changed, &[])?.expect(1, "Registers of the replay there:")?;
    }
    Ok(())
}

#[test]
fn diff_refuses_what_is_not_the_same_machine() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let log = &recording()?.log;
    let other = log.with_file_name("diff-other");
    tamper::change_identity(log, &other, |identity| identity.start_digest = vec![1; 16].into())?;
    run("diff", log, &[other.to_str().context("path")?])?.expect(2, "no logs of the same machine")?;
    Ok(())
}

#[test]
fn a_wrong_flag_ends_with_status_2() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    for command in ["verify", "info", "events", "console", "export-pcap", "diff"] {
        Debug::run([command, "x", "--no-such-flag"])?.expect(2, "--no-such-flag")?;
    }
    for (arguments, text) in [
        (&["events", "x", "--from", "12.5"][..], "a position is a stop"),
        (&["events", "x", "--to", "99999999999h"], "64 bits"),
        (&["events", "x", "--text", "("], "regex"),
        (&["console", "x", "--to=-1"], "a position is a stop"),
        (&["export-pcap", "x"], "FILE"),
        (&["diff"], "LOGDIR"),
        (&["diff", "x", "--report", "y"], "cannot be used with"),
    ] {
        Debug::run(arguments)?.expect(2, text)?;
    }
    Ok(())
}

/// Shells and man say themselves whether they can read what packages hold.
#[test]
fn completions_and_manual_pages_are_sound() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("packaging")?;
    for (name, page) in [
        ("lockstep-primary", "lockstep-primary-run.1"),
        ("lockstep-backup", "lockstep-backup-run.1"),
        ("lockstep-debug", "lockstep-debug-export-pcap.1"),
    ] {
        let program = lockstep_integration::paths::program(name)?;
        let completions = Command::new(&program).args(["completions", "bash"]).output()?;
        let file = dir.join(format!("{name}.bash"));
        std::fs::write(&file, &completions.stdout)?;
        let checked = Command::new("bash").arg("-n").arg(&file).output()?;
        ensure!(
            completions.status.success() && checked.status.success() && completions.stdout.len() > 1000,
            "{name}: {}",
            String::from_utf8_lossy(&checked.stderr)
        );
        let pages = dir.join(name);
        let made = Command::new(&program).arg("man").arg(&pages).output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&pages)? {
            let path = entry?.path();
            names.push(path.file_name().context("name")?.to_string_lossy().into_owned());
            let warned = Command::new("man")
                .args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"])
                .arg(&path)
                .output()
                .context("man is missing (Debian package man-db)")?;
            ensure!(
                warned.status.success() && warned.stderr.is_empty(),
                "{}: {}",
                path.display(),
                String::from_utf8_lossy(&warned.stderr)
            );
        }
        ensure!(names.iter().any(|name| name == page), "{page} is not among {names:?}");
        ensure!(
            !names
                .iter()
                .any(|name| name.ends_with("-man.1") || name.ends_with("-completions.1")),
            "{names:?}"
        );
    }
    Ok(())
}
