//! Every command of `lockstep-debug` on logs that are not as they should be: what it says, and its exit status.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::require_kvm;
use lockstep_integration::paths::program;
use lockstep_integration::process::bound;
use lockstep_integration::tamper::{self, Value, segment};
use lockstep_integration::{Booted, Debug, Kind, Run, work_dir};
use lockstep_logcodec::LogReader;

const LIMIT: Duration = Duration::from_secs(120);
/// What a command may take in seconds, on a busy host too. One that waits for somebody would take for ever.
const LONGEST: &str = "240";

/// What a command says, and its exit status.
type Expected = (i32, &'static str);

/// One way in which a log is bad.
struct Case {
    name: &'static str,
    /// Makes it of a good recording's copy; `None`: there is no directory.
    make: fn(good: &Path, copy: &Path) -> Result<()>,
    info: Expected,
    events: Expected,
    /// Of all that replay: `verify`, `console`, `export-pcap`, `replay`, `show`, `export-memory`, `gdb` and `diff LOGDIR`; diff's
    /// status is 2 where it is 1 for failures.
    replay: Expected,
    /// Of `diff LOGDIR LOGDIR2`, where the first one is good.
    diff: Expected,
}

fn always(name: &'static str, text: &'static str, make: fn(&Path, &Path) -> Result<()>) -> Case {
    Case {
        name,
        make,
        info: (1, text),
        events: (1, text),
        replay: (1, text),
        diff: (2, text),
    }
}

fn copy(good: &Path, copy: &Path) -> Result<()> {
    tamper::copy(good, copy)
}

fn cut(good: &Path, copy: &Path, at: u64) -> Result<()> {
    tamper::copy(good, copy)?;
    let file = OpenOptions::new().write(true).open(segment(copy))?;
    Ok(file.set_len(at)?)
}

fn overwrite(good: &Path, copy: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    tamper::copy(good, copy)?;
    let file = OpenOptions::new().write(true).open(segment(copy))?;
    Ok(file.write_all_at(bytes, at)?)
}

/// A frame's header that is right in all but what it promises: a payload of 4 GiB.
fn huge_frame(offset: u64) -> Vec<u8> {
    let mut header = [3u32, 0xffff_fff0, 0].map(u32::to_le_bytes).concat();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&offset.to_le_bytes()), &header);
    header.extend(crc.to_le_bytes());
    header
}

fn cases() -> Vec<Case> {
    let good = (0, "");
    let mut cases = vec![
        always("missing", "holds no log", |_, _| Ok(())),
        always("empty", "holds no log", |_, copy| Ok(fs::create_dir(copy)?)),
        always("a-file", "cannot", |good, copy| {
            Ok(fs::copy(segment(good), copy).map(drop)?)
        }),
        always("no-header", "ends inside its header", |good, copy| cut(good, copy, 0)),
        always("foreign", "cannot use", |good, to| {
            copy(good, to)?;
            Ok(fs::write(
                segment(to),
                b"PK\x03\x04 something else, and long enough for a header",
            )?)
        }),
        always("future", "version", |good, to| {
            copy(good, to)?;
            tamper::set_version(to, 99)
        }),
        always("gap", "segment 0 is missing", |good, to| {
            copy(good, to)?;
            Ok(fs::rename(segment(to), to.join("segment-00000001.lsl"))?)
        }),
        always("corrupt", "is damaged at offset", |good, to| {
            overwrite(good, to, fs::metadata(segment(good))?.len() / 2, &[0xa5; 64])
        }),
        always("huge-frame", "is damaged at offset", |good, to| {
            let mut reader = LogReader::open(good)?;
            for _ in 0..5 {
                reader.next_record()?.context("a short log")?;
            }
            overwrite(good, to, reader.offset(), &huge_frame(reader.offset()))
        }),
    ];
    // What is whole in a torn log is used: that is no failure.
    cases.push(Case {
        name: "torn",
        make: |good, to| {
            // In the middle of a record: where one ends, the log would only be shorter.
            let whole = fs::metadata(segment(good))?.len() * 6 / 10;
            let mut reader = LogReader::open(good)?;
            while reader.offset() < whole {
                reader.next_record()?.context("a short log")?;
            }
            cut(good, to, reader.offset() + 5)
        },
        info: (0, "torn: segment 0"),
        events: (0, "torn: segment 0"),
        replay: (0, ""),
        diff: (1, "one log goes on where the other has no more"),
    });
    cases.push(Case {
        name: "no-start-state",
        make: |good, to| {
            copy(good, to)?;
            Ok(fs::remove_file(to.join("start.snapshot"))?)
        },
        info: (0, "start.snapshot is missing"),
        events: (0, "guest time counts from the recording's beginning"),
        replay: (1, "start.snapshot is missing"),
        diff: (0, "no difference"),
    });
    cases.push(Case {
        name: "other-host",
        make: |good, to| tamper::change_identity(good, to, |identity| identity.host_class = "another/1".into()),
        info: (0, "it was made on a host of class `another/1`"),
        events: good,
        replay: (1, "it was made on a host of class `another/1`"),
        diff: (0, "no difference"),
    });
    cases.push(Case {
        name: "other-profile",
        make: |good, to| {
            tamper::change_identity(good, to, |identity| {
                if let Some(machine) = &mut identity.machine {
                    machine.cpu_profile = "another-cpu-v1".into();
                }
            })
        },
        info: (0, "no CPU profile `another-cpu-v1`"),
        events: good,
        replay: (1, "no CPU profile `another-cpu-v1`"),
        diff: (2, "they have different configurations"),
    });
    cases.push(Case {
        name: "long-clock",
        make: |good, to| tamper::flip_bit(good, to, Value::LongClock, 0.2).map(drop),
        info: good,
        events: (0, "clock +72057594037927936 ns"),
        replay: (1, "its clock step is longer than a year"),
        diff: (1, "clock step, ns"),
    });
    cases
}

fn record() -> Result<PathBuf> {
    let log = work_dir("bad-logs")?.join("good");
    let run = Booted::get(Kind::Shell)?.go_on()?.record(&log).args(["--for", "3"]);
    run.complete(LIMIT)?.report()?;
    Ok(log)
}

/// Runs `lockstep-debug` with these arguments, to its end or for [`LONGEST`].
fn run(arguments: &[&str]) -> Result<Debug> {
    let mut command = bound("timeout");
    // Each is killed when what started it ends.
    command.args(["--signal=KILL", LONGEST, "setpriv", "--pdeathsig", "KILL", "--"]);
    command.arg(program("lockstep-debug")?).args(arguments);
    let output = command.stdin(Stdio::null()).output()?;
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!messages.contains("panicked"), "{arguments:?} panicked: {messages}");
    Ok(Debug {
        status: output.status,
        out: output.stdout,
        messages,
    })
}

#[test]
fn bad_logs_are_told_by_every_command() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let good = record()?;
    for case in cases() {
        let log = good.with_file_name(case.name);
        (case.make)(&good, &log).with_context(|| case.name)?;
        let [good, log] = [&good, &log].map(|path| path.to_string_lossy().into_owned());
        let (capture, core) = (format!("{log}.pcapng"), format!("{log}.core"));
        let check = |arguments: &[&str], (code, text): Expected| -> Result<()> {
            println!("{}: {} is to end with {code}, saying `{text}`", case.name, arguments[0]);
            let said = run(arguments)?;
            said.expect(code, text)
                .with_context(|| format!("{}: {arguments:?}", case.name))?;
            // An error says so in one line; nothing that a program of ours should hide.
            ensure!(
                said.messages.lines().count() < 40,
                "{}: {arguments:?}: {}",
                case.name,
                said.messages
            );
            Ok(())
        };
        check(&["info", &log], case.info)?;
        check(&["info", &log, "--json"], case.info)?;
        check(&["events", &log], case.events)?;
        for command in [
            &["verify", &log][..],
            &["console", &log],
            &["export-pcap", &log, &capture],
            &["replay", &log],
            &["show", &log, "--at", "end"],
            &["export-memory", &log, &core, "--at", "end"],
        ] {
            check(command, case.replay)?;
        }
        ensure!(
            Path::new(&core).exists() == (case.replay.0 == 0),
            "{}: half a core, or none",
            case.name
        );
        // Of a log that can be replayed it would wait for a gdb.
        if case.replay.0 != 0 {
            check(&["gdb", &log, "--listen", "127.0.0.1:0", "--at", "end"], case.replay)?;
        }
        // A divergence is a difference, all else is a failure to compare.
        let diverged = case.name == "long-clock";
        let code = if case.replay.0 == 1 && !diverged {
            2
        } else {
            case.replay.0
        };
        check(&["diff", &log], (code, case.replay.1))?;
        check(&["diff", &good, &log], case.diff)?;
    }
    Ok(())
}

#[test]
fn a_wrong_vmlinux_is_refused() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("wrong-vmlinux")?;
    let log = dir.join("log");
    // Booted, so that the log names a kernel.
    let (kernel, other) = (dir.join("kernel"), dir.join("other"));
    for (file, times) in [(&kernel, 1), (&other, 2)] {
        fs::write(
            file,
            lockstep_integration::tiny::kernel(|a| {
                for _ in 0..times {
                    a.nop()?;
                }
                a.cli()?;
                a.hlt()
            })?,
        )?;
    }
    let run = Run::bare()?
        .args(["--memory-mib", "16", "--kernel"])
        .args([&kernel])
        .record(&log);
    run.complete(LIMIT)?.report()?;
    let log = log.to_string_lossy().into_owned();
    let garbage = dir.join("garbage");
    fs::write(&garbage, "no ELF file")?;
    let wrong = "is not the kernel that was recorded";
    for (file, text) in [
        (&*other.to_string_lossy(), wrong),
        (&*garbage.to_string_lossy(), wrong),
        ("/nonexistent", "cannot read"),
        ("/dev/zero", "is no regular file"),
    ] {
        Debug::run(["verify", &log, "--vmlinux", file])?.expect(1, text)?;
        Debug::run(["diff", &log, "--vmlinux", file])?.expect(2, text)?;
        Debug::run(["diff", &log, &log, "--vmlinux", file])?.expect(2, text)?;
    }
    Debug::run(["verify", &log, "--vmlinux", &kernel.to_string_lossy()])?.expect(0, "identical")?;
    Ok(())
}
