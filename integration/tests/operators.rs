//! What operators do with the programs every day: pipes, redirections, background jobs, limits, namespaces, block devices.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use iced_x86::code_asm::{al, dx, rbx};
use lockstep_integration::disk::LoopDevice;
use lockstep_integration::gate::{require_kvm, require_program, require_root, require_root_net};
use lockstep_integration::net::{Namespace, TAP};
use lockstep_integration::paths::program;
use lockstep_integration::process::bound;
use lockstep_integration::screen::Screen;
use lockstep_integration::{Debug, Run, tiny, work_dir};
use rustix::process::Signal;

const LIMIT: Duration = Duration::from_secs(120);
const SERIAL: u32 = 0x3f8;

/// A kernel that prints `text` and halts.
fn says(dir: &Path, text: &str) -> Result<PathBuf> {
    let path = dir.join("kernel");
    let file = tiny::kernel(|a| {
        a.mov(dx, SERIAL)?;
        for byte in text.bytes() {
            a.mov(al, u32::from(byte))?;
            a.out(dx, al)?;
        }
        a.cli()?;
        a.hlt()
    })?;
    fs::write(&path, file)?;
    Ok(path)
}

/// A kernel that prints for ever, and draws random numbers, which make the log grow.
fn chatters(dir: &Path) -> Result<PathBuf> {
    let path = dir.join("kernel");
    let file = tiny::kernel(|a| {
        let mut again = a.create_label();
        a.mov(dx, SERIAL)?;
        a.mov(al, u32::from(b'x'))?;
        a.set_label(&mut again)?;
        a.rdrand(rbx)?;
        a.out(dx, al)?;
        a.jmp(again)
    })?;
    fs::write(&path, file)?;
    Ok(path)
}

fn boot(run: Run, kernel: &Path) -> Run {
    run.args(["--memory-mib", "16", "--kernel"]).args([kernel])
}

/// A short recording.
fn recording(dir: &Path) -> Result<String> {
    let log = dir.join("log");
    let kernel = says(dir, "hello")?;
    boot(Run::bare()?, &kernel).record(&log).complete(LIMIT)?.report()?;
    Ok(log.to_string_lossy().into_owned())
}

/// A pipe whose reader has gone.
fn closed() -> Result<Stdio> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    Ok(writer.into())
}

#[test]
fn a_reader_that_has_gone_is_no_failure() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("closed-pipes")?;
    let log = recording(&dir)?;
    let kernel = dir.join("kernel").to_string_lossy().into_owned();
    let config = dir.join("machine.toml").to_string_lossy().into_owned();
    fs::write(&config, "name = \"vm\"\n")?;
    let pki = dir.join("pki").to_string_lossy().into_owned();
    let run = ["run", "--memory-mib", "16", "--kernel", &kernel];
    // The program, its arguments, and its exit status: that of a reader that stays.
    let cases: &[(&str, &[&str], i32)] = &[
        ("lockstep-debug", &["info", &log], 0),
        ("lockstep-debug", &["info", &log, "--json"], 0),
        ("lockstep-debug", &["verify", &log], 0),
        ("lockstep-debug", &["show", &log, "--at", "1"], 0),
        ("lockstep-debug", &["replay", &log], 0),
        ("lockstep-debug", &["events", &log], 0),
        ("lockstep-debug", &["console", &log], 0),
        ("lockstep-debug", &["diff", &log, &log], 0),
        ("lockstep-debug", &["export-pcap", &log, "-"], 0),
        ("lockstep-debug", &["export-memory", &log, "-", "--at", "1"], 0),
        ("lockstep-debug", &["completions", "bash"], 0),
        ("lockstep-debug", &["info", "/nonexistent"], 1),
        ("lockstep-primary", &["probe"], 0),
        ("lockstep-primary", &["probe", "--json"], 0),
        ("lockstep-primary", &["check-config", &config, "--syntax"], 1),
        ("lockstep-primary", &["pki", "init", "--dir", &pki], 0),
        ("lockstep-primary", &["status", "nothing"], 1),
        ("lockstep-primary", &run, 0),
        ("lockstep-backup", &["completions", "zsh"], 0),
        ("lockstep-backup", &["--help"], 0),
    ];
    for &(name, arguments, code) in cases {
        // With messages to read, to see that none is of a panic; and with none that could be read.
        let messages = bound(program(name)?)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(closed()?)
            .output()?;
        let said = String::from_utf8_lossy(&messages.stderr).into_owned();
        ensure!(!said.contains("panicked"), "{name} {arguments:?}: {said}");
        ensure!(
            messages.status.code() == Some(code),
            "{name} {arguments:?}: {}: {said}",
            messages.status
        );
        let _ = fs::remove_dir_all(&pki);
        let silent = bound(program(name)?)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(closed()?)
            .stderr(closed()?)
            .status()?;
        ensure!(
            silent.code() == Some(code),
            "{name} {arguments:?} without messages: {silent}"
        );
    }
    // A full disk is no reader that has gone.
    let full = bound(program("lockstep-debug")?)
        .args(["info", &log])
        .stdout(File::create("/dev/full")?)
        .output()?;
    let said = String::from_utf8_lossy(&full.stderr);
    ensure!(
        full.status.code() == Some(1) && said.contains("standard output"),
        "{}: {said}",
        full.status
    );
    Ok(())
}

/// Runs it with standard output in a file.
fn into_file(file: &Path, arguments: &[&str]) -> Result<(Output, Vec<u8>)> {
    let output = Debug::command()?.args(arguments).stdout(File::create(file)?).output()?;
    ensure!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok((output, fs::read(file)?))
}

#[test]
fn what_is_written_to_standard_output_is_whole() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("standard-output")?;
    let log = recording(&dir)?;
    for (name, command, more) in [
        ("pcap", "export-pcap", &[][..]),
        ("core", "export-memory", &["--at", "1"][..]),
    ] {
        let file = dir.join(name).to_string_lossy().into_owned();
        Debug::run([&[command, &log, &file][..], more].concat())?.expect(0, &file)?;
        let wanted = fs::read(&file)?;
        for place in ["-", "/dev/stdout", "/proc/self/fd/1"] {
            let (output, written) = into_file(&dir.join("out"), &[&[command, &log, place][..], more].concat())?;
            ensure!(
                written == wanted,
                "{command} {place}: {} bytes and not {}",
                written.len(),
                wanted.len()
            );
            ensure!(!output.stderr.is_empty(), "{command} {place} says nothing");
        }
    }
    ensure!(!Path::new("-").exists(), "there is a file named -");
    // A snapshot would take the place of the device.
    let kernel = dir.join("kernel");
    for place in ["-", "/dev/stdout", "/dev/null"] {
        let refused = boot(Run::bare()?, &kernel).args(["--save", place]).complete(LIMIT)?;
        ensure!(refused.status.code() == Some(2), "--save {place}: {}", refused.status);
    }
    Ok(())
}

/// A shell that sets something up, and becomes the program.
fn after(setting: &str) -> Result<Run> {
    let mut shell = bound("sh");
    let program = program("lockstep-primary")?;
    shell
        .args(["-c", &format!("{setting}; exec \"$0\" \"$@\"")])
        .arg(program);
    Ok(Run::with(shell))
}

/// Of a process: the mask of signals that it ignores.
fn ignored(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    Ok(u64::from_str_radix(mask.context("no SigIgn")?.trim(), 16)?)
}

#[test]
fn an_ignored_signal_stays_ignored() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("ignored-signals")?;
    let kernel = chatters(&dir)?;
    for (name, ignore, spared) in [("HUP", Signal::HUP, Signal::INT), ("INT", Signal::INT, Signal::HUP)] {
        let running = boot(after(&format!("trap '' {name}"))?, &kernel).start()?;
        running.wait_for("xxx", LIMIT)?;
        running.wait_until_it_listens()?;
        let mask = ignored(running.pid())?;
        ensure!(mask >> (ignore.as_raw() - 1) & 1 == 1, "{name} is heeded: {mask:x}");
        ensure!(mask >> (spared.as_raw() - 1) & 1 == 0, "{mask:x}");
        running.signal(ignore)?;
        running.terminate()?.report()?;
    }
    Ok(())
}

#[test]
fn nothing_dies_of_a_signal_that_a_limit_sends() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("limits")?;
    let kernel = chatters(&dir)?;
    // As with a full disk, the recording stops and the machine goes on.
    let run = boot(after("ulimit -f 64")?, &kernel).record(&dir.join("log"));
    let outcome = run.args(["--for", "4"]).complete(LIMIT)?;
    ensure!(outcome.status.signal().is_none(), "{}", outcome.status);
    let report = outcome.report()?;
    let why = report["recording_stopped"].as_str().unwrap_or_default();
    ensure!(why.contains("File too large"), "{report}");
    // SIGXCPU comes once a second from the limit on.
    let running = boot(after("ulimit -S -t 1")?, &kernel).args(["--for", "4"]).start()?;
    let ended = running.wait(LIMIT)?;
    ensure!(ended.status.success(), "{}: {}", ended.status, ended.messages);
    Ok(())
}

#[test]
fn a_terminal_in_whose_background_it_runs_does_not_stop_it() -> Result<()> {
    if !require_kvm() || !require_program("tmux", "tmux") {
        return Ok(());
    }
    let dir = work_dir("background")?;
    let kernel = says(&dir, "printed")?;
    let program = program("lockstep-primary")?;
    let screen = Screen::start("background", (100, 20), "bash --norc --noprofile -i")?;
    let run = format!(
        "{} run --memory-mib 16 --kernel {}",
        program.display(),
        kernel.display()
    );
    // Where a terminal stops those that write to it from its background, too.
    for setting in ["-tostop", "tostop"] {
        let file = dir.join(setting);
        screen.type_text(&format!(
            "stty {setting}; {run} 2>{0}.messages & wait; jobs >{0}; stty -a >{0}.stty; echo done >{0}.done",
            file.display(),
        ))?;
        screen.press("Enter")?;
        screen.wait_for_file(&dir.join(format!("{setting}.done")), LIMIT)?;
        let jobs = fs::read_to_string(&file)?;
        ensure!(!jobs.contains("Stopped"), "{setting}: {jobs}");
        let modes = fs::read_to_string(format!("{}.stty", file.display()))?;
        ensure!(
            modes.contains(" icanon"),
            "the shell's terminal is in raw mode: {modes}"
        );
    }
    Ok(())
}

#[test]
fn a_tap_of_another_network_namespace_is_found() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let dir = work_dir("namespace")?;
    let kernel = says(&dir, "printed")?;
    let namespace = Namespace::create()?;
    // Without a /sys of its own, as a service manager's NetworkNamespacePath= has it.
    let mut command = bound("nsenter");
    command.arg(format!("--net=/run/netns/{}", namespace.name()));
    command.arg(program("lockstep-primary")?);
    let run = boot(Run::with(command), &kernel).args(["--net".into(), format!("tap={TAP}")]);
    run.complete(LIMIT)?.report()?;
    Ok(())
}

#[test]
fn a_block_device_is_a_disk() -> Result<()> {
    if !require_root() || !require_program("losetup", "mount") {
        return Ok(());
    }
    let dir = work_dir("block-device")?;
    let (image, state) = (dir.join("image"), dir.join("state"));
    fs::write(&image, vec![7; 1 << 20])?;
    let device = LoopDevice::over(&image)?;
    let kernel = says(&dir, "printed")?;
    let log = dir.join("log");
    let run = || -> Result<Run> {
        Ok(boot(Run::bare()?, &kernel)
            .env("LOCKSTEP_STATE_DIR", &state)
            .disk(device.path()))
    };
    run()?.record(&log).complete(LIMIT)?.report()?;
    let info = Debug::run(["info".as_ref(), "--json".as_ref(), log.as_os_str()])?.json()?;
    ensure!(info["disks"][0]["bytes"] == 1 << 20, "{info}");
    Debug::run(["verify".as_ref(), log.as_os_str()])?.expect(0, "identical")?;
    let copies: Vec<_> = fs::read_dir(&log)?
        .flatten()
        .filter(|file| fs::read(file.path()).is_ok_and(|content| content == vec![7; 1 << 20]))
        .collect();
    ensure!(
        copies.len() == 1,
        "the recording has {} copies of the disk",
        copies.len()
    );
    // A ring's parts copy the disk while the machine runs.
    let ring = dir.join("ring");
    let limit = ["--record-max-bytes", "8000000"];
    run()?.record(&ring).args(limit).complete(LIMIT)?.report()?;
    // Its mark as a replica lies where a reboot of the host leaves it.
    let mark = lockstep_node::host::size::marked_as(device.path())?;
    ensure!(!mark.starts_with("/dev"), "{}", mark.display());
    let mark = state.join("disks").join(mark.file_name().context("no name")?);
    fs::write(mark.with_added_extension("replica"), "a\n")?;
    let refused = run()?.complete(LIMIT)?;
    ensure!(refused.status.code() == Some(1), "{}", refused.status);
    ensure!(refused.messages.contains("is a backup's"), "{}", refused.messages);
    Ok(())
}
