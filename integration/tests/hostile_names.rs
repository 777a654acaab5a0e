//! What a guest or a recording names, and an operator's terminal: nothing of it works there.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::{require_kvm, require_program};
use lockstep_integration::paths::program;
use lockstep_integration::process::bound;
use lockstep_integration::screen::Screen;
use lockstep_integration::{Booted, Debug, Guest, Kind, Run, tiny, work_dir};

const LIMIT: Duration = Duration::from_secs(120);
/// A program's name, as the guest's shell writes it, and its process' name as it is shown: it would set the terminal's title, begin a line of its
/// own, and clear that.
const NAME: &str = r"\033]0;x\007\r\n\302\233J";
const SHOWN: &str = r"\u001b]0;x\u0007\u000d\u000a\u009bJ";
/// The same in a path.
const HOSTILE: &str = "k\x1b]0;x\x07\u{9b}J\u{202e}";
/// What of it a kernel's command line takes.
const WORD: &str = "k\u{9b}J\u{202e}";

/// Whether an output has nothing but text, lines and tabulators.
fn check(what: &[&str], output: &Output) -> Result<String> {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8(both).with_context(|| format!("{what:?}: no text"))?;
    let bad = |one: char| (one.is_control() && one != '\n' && one != '\t') || one == '\u{202e}';
    ensure!(!text.contains(bad), "{what:?}: {text:?}");
    Ok(text)
}

fn debug(words: &[&str]) -> Result<Output> {
    Ok(Debug::command()?.args(words).stdin(Stdio::null()).output()?)
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

#[test]
fn what_a_guest_names_does_nothing_on_a_terminal() -> Result<()> {
    if !require_kvm() || !require_program("tmux", "tmux") {
        return Ok(());
    }
    let log = work_dir("hostile-guest")?.join("log");
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(&log).start()?;
    // What is typed is in the log, too.
    run.type_text(&format!("n=\"/tmp/$(printf '{NAME}')\"; : '\u{9b}J'\n"))?;
    run.type_text("printf '#!/bin/sh\\nsleep 99\\n' >\"$n\"; chmod +x \"$n\"; \"$n\" &\n")?;
    run.type_text("printf '\\033]0;owned\\007 \\033[32mGRE''EN\\033[0m\\n'\n")?;
    run.wait_for("GREEN", LIMIT)?;
    run.type_text("sleep 1; echo REA''DY\n")?;
    run.wait_for("READY", LIMIT)?;
    run.terminate()?.report()?;
    let (log, guest) = (path(&log)?, Guest::find()?);
    let vmlinux = path(&guest.vmlinux)?;
    let show = ["show", log, "--at", "end", "--vmlinux", vmlinux, "--tasks", "--devices"];
    let tasks = check(&show, &debug(&show)?)?;
    ensure!(tasks.contains(SHOWN), "{tasks}");
    let lines = tasks.lines().filter(|line| line.contains("u0007")).count();
    ensure!(tasks.lines().all(|line| !line.starts_with('J')) && lines > 0, "{tasks}");
    for words in [
        &[&show[..], &["--json"]].concat()[..],
        &["info", log],
        &["info", log, "--json"],
        &["events", log],
        &["events", log, "--json"],
        &["events", log, "--text", "printf"],
        &["verify", log],
        &["diff", log, log],
    ] {
        check(words, &debug(words)?)?;
    }
    // A file or a pipe gets the guest's bytes.
    let console = debug(&["console", log])?;
    ensure!(
        console.stdout.windows(9).any(|bytes| bytes == b"\x1b]0;owned"),
        "{console:?}"
    );
    // A terminal does not, but for colours.
    let debugger = program("lockstep-debug")?;
    for (name, more, title) in [("escaped", "", true), ("raw", "--raw", false)] {
        let command = format!("{} console {log} {more}; echo ALL-SAID; read end", debugger.display());
        let screen = Screen::start(name, (120, 40), &command)?;
        let text = screen.wait(LIMIT, |text| text.contains("ALL-SAID"))?;
        ensure!(text.contains(" GREEN\n"), "{text}");
        ensure!(text.contains(r"\u001b]0;owned\u0007 GREEN") == title, "{text}");
    }
    Ok(())
}

#[test]
fn what_a_recording_names_does_nothing_on_a_terminal() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("hostile-recording")?;
    let home = dir.join(HOSTILE);
    std::fs::create_dir(&home)?;
    let (kernel, log) = (home.join("kernel\nends          in order"), home.join("log"));
    std::fs::write(&kernel, tiny::kernel(|a| a.cli().and_then(|()| a.hlt()))?)?;
    let run = Run::bare()?.args(["--memory-mib", "16", "--cmdline", WORD, "--kernel", path(&kernel)?]);
    run.record(&log).complete(LIMIT)?.report()?;
    let log = path(&log)?;
    let told = check(&["info"], &debug(&["info", log])?)?;
    for (words, shown) in [
        ("kernel        ", r"k\u001b]0;x\u0007\u009bJ\u202e"),
        ("cmdline       ", r"k\u009bJ\u202e"),
    ] {
        let line = told.lines().find(|line| line.starts_with(words)).context("no line")?;
        ensure!(line.contains(shown), "{told}");
    }
    ensure!(
        told.lines().filter(|line| line.starts_with("ends ")).count() == 1,
        "{told}"
    );
    let nowhere = format!("{log}/nowhere\nINFO all is well");
    for words in [
        &["info", log, "--json"][..],
        &["verify", log],
        &["show", log, "--at", "end"],
        &["show", log, "--at", "end", "--tasks"],
        &["export-pcap", log, "-"],
        &["info", &nowhere],
        &["diff", log, &nowhere],
    ] {
        let output = debug(words)?;
        let told = match words[0] {
            "export-pcap" => check(
                words,
                &Output {
                    stdout: Vec::new(),
                    ..output
                },
            )?,
            _ => check(words, &output)?,
        };
        ensure!(told.lines().all(|line| !line.starts_with("INFO")), "{words:?}: {told}");
    }
    // The programs' own messages.
    let refused = bound(program("lockstep-primary")?)
        .args(["run", "--kernel", &nowhere])
        .stdin(Stdio::null())
        .output()?;
    let told = check(&["run"], &refused)?;
    ensure!(told.lines().all(|line| !line.starts_with("INFO all")), "{told}");
    Ok(())
}
