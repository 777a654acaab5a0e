//! What a recording's machine looks like at a position: registers, code, tasks and memory, and the same in an ELF core that
//! gdb opens.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::{require_kvm, require_program};
use lockstep_integration::paths::program;
use lockstep_integration::process::{bound, check};
use lockstep_integration::run::Run;
use lockstep_integration::{Booted, Guest, Kind, work_dir};
use object::{Object, ObjectSegment, ObjectSymbol};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(180);

fn record(log: &Path) -> Result<()> {
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(log).start()?;
    run.type_text("sleep 4; echo SEEN-$((40 + 2))\n")?;
    run.wait_for("SEEN-42", LIMIT)?;
    run.terminate()?.report()?;
    Ok(())
}

/// A position in the middle of the sleep: two seconds before its end is told.
fn asleep(log: &str) -> Result<String> {
    let output = debug(&["console", log, "--timestamps"])?;
    ensure!(output.status.success(), "{}", text(&output));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = printed.lines().find(|line| line.contains("SEEN-42"));
    let told = line.and_then(|line| {
        line.trim_start_matches(['[', ' '])
            .split([' ', ']'])
            .next()?
            .parse::<f64>()
            .ok()
    });
    let seconds = told.with_context(|| format!("no time of the sleep's end: {printed}"))?;
    Ok(format!("{:.9}s", seconds - 2.0))
}

fn debug(arguments: &[&str]) -> Result<Output> {
    Ok(bound(program("lockstep-debug")?)
        .args(arguments)
        .stdin(Stdio::null())
        .output()?)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What `show --json` tells.
fn show(log: &str, more: &[&str]) -> Result<Value> {
    let mut arguments = vec!["show", log, "--json"];
    arguments.extend(more);
    let output = debug(&arguments)?;
    ensure!(output.status.success(), "{}", text(&output));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn symbol(vmlinux: &Path, name: &str) -> Result<u64> {
    let bytes = fs::read(vmlinux)?;
    let file = object::File::parse(&*bytes)?;
    let found = file.symbols().find(|symbol| symbol.name() == Ok(name));
    Ok(found.with_context(|| format!("no symbol {name}"))?.address())
}

/// The kernel in this file, with another version in its banner.
fn another_kernel(vmlinux: &Path) -> Result<Vec<u8>> {
    let mut bytes = fs::read(vmlinux)?;
    let file = object::File::parse(&*bytes)?;
    let banner = symbol(vmlinux, "linux_banner")?;
    let mut places = file.segments().filter_map(|segment| {
        let within = banner.checked_sub(segment.address())?;
        (within < segment.size()).then(|| segment.file_range().0 + within)
    });
    let place = places.next().context("no segment has the banner")? as usize;
    let version = place + b"Linux version ".len();
    ensure!(
        bytes[place..].starts_with(b"Linux version 6"),
        "the banner is elsewhere"
    );
    bytes[version] = b'5';
    Ok(bytes)
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
    pairs.map(byte).collect()
}

/// What a frame of ours and of gdb's have in common.
fn function(call: &str) -> &str {
    call.split(['+', '.']).next().unwrap_or(call)
}

/// Those of the calls, the innermost first, that gdb can have followed. Where it says that a previous frame lies inside the
/// next, which it takes for a broken stack, an interrupt has gone over to a stack of its own: ours goes on there.
fn until_another_stack<'a>(backtrace: &str, calls: &'a [&'a str]) -> &'a [&'a str] {
    if !backtrace.contains("previous frame inner to this frame") {
        return calls;
    }
    let outermost = backtrace.lines().rfind(|line| line.starts_with('#'));
    let is_outermost = |call: &&str| outermost.is_some_and(|line| line.contains(&format!(" {} (", function(call))));
    match calls.iter().position(is_outermost) {
        Some(last) => &calls[..=last],
        None => calls,
    }
}

/// A kernel that was stripped has its symbols in another file, which has its build id.
#[test]
fn a_stripped_kernel_has_the_symbols_of_the_file_with_its_build_id() -> Result<()> {
    if !require_kvm() || !require_program("objcopy", "binutils") {
        return Ok(());
    }
    let dir = work_dir("stripped")?;
    let guest = Guest::find()?;
    let vmlinux = &guest.vmlinux;
    let (stripped, other) = (dir.join("vmlinux"), dir.join("other"));
    check(Command::new("objcopy").arg("--strip-all").args([vmlinux, &stripped]))?;
    let mut bytes = fs::read(vmlinux)?;
    let id = object::File::parse(&*bytes)?
        .build_id()?
        .context("our kernel has no build id")?
        .to_vec();
    let places: Vec<usize> = (0..bytes.len() - id.len())
        .filter(|at| bytes[*at..].starts_with(&id))
        .collect();
    for at in places {
        bytes[at] ^= 1;
    }
    fs::write(&other, bytes)?;
    let log = dir.join("log");
    let booted = Guest {
        vmlinux: stripped.clone(),
        ..guest.clone()
    };
    let run = Run::bare()?.boot(&booted, &booted.general, 64, "lockstep.run=shell");
    run.record(&log)
        .args(["--until", "LOCKSTEP-INIT"])
        .complete(LIMIT)?
        .report()?;

    let log = log.to_str().context("the directory's name is no text")?;
    let told = debug(&["info", log, "--json"])?;
    let told: Value = serde_json::from_slice(&told.stdout)?;
    let told_id = told["kernel_build_id"].as_str().context("no build id")?;
    ensure!(unhex(told_id)? == id, "{told:#}");
    let tasks = |vmlinux: Option<&Path>| {
        let mut words = vec!["show".as_ref(), log.as_ref(), "--at=end".as_ref(), "--tasks".as_ref()];
        words.extend(vmlinux.iter().flat_map(|path| ["--vmlinux".as_ref(), path.as_os_str()]));
        Ok::<_, anyhow::Error>(
            bound(program("lockstep-debug")?)
                .args(words)
                .stdin(Stdio::null())
                .output()?,
        )
    };
    let known = tasks(Some(vmlinux))?;
    ensure!(
        known.status.success() && text(&known).contains("swapper"),
        "{}",
        text(&known)
    );
    for (given, why) in [
        (None, "give its vmlinux with --vmlinux".to_owned()),
        (
            Some(&*stripped),
            format!("has no symbols: give the vmlinux that has them (build id {told_id})"),
        ),
        (
            Some(&*other),
            format!("is not the kernel that was recorded (build id {told_id})"),
        ),
    ] {
        let refused = tasks(given)?;
        let said = text(&refused);
        ensure!(!refused.status.success() && said.contains(&why), "{why}: {said}");
    }
    Ok(())
}

#[test]
fn stacks_are_compared_as_far_as_gdb_goes() {
    let calls = ["read_tsc+0x5", "common_interrupt+0x8a", "default_idle.constprop.0+0x9"];
    let whole = "read_tsc (cs=0x1) at tsc.c:1095\n#1  0x10 in common_interrupt (regs=0x2) at irq.c:242\n";
    assert_eq!(
        until_another_stack(whole, &calls),
        calls,
        "gdb does not say that it stops"
    );
    let stopped = format!("{whole}Backtrace stopped: previous frame inner to this frame (corrupt stack?)\n");
    assert_eq!(until_another_stack(&stopped, &calls), &calls[..2]);
    // Where gdb's last one is none of ours, all are wanted: the stacks are not the same.
    let other = stopped.replace("common_interrupt", "common_interrupt_of_another");
    assert_eq!(until_another_stack(&other, &calls), calls);
}

/// What drgn, a debugger of Linux kernels, lists of a kernel's dump: numbers and names of the tasks, but the idle one.
fn tasks_by_drgn(core: &Path, vmlinux: &Path) -> Result<Vec<(u64, String)>> {
    const SCRIPT: &str = "from drgn.helpers.linux.pid import for_each_task\n\
        for task in for_each_task(prog): print(task.pid.value_(), task.comm.string_().decode())\n";
    let script = core.with_extension("py");
    fs::write(&script, SCRIPT)?;
    let mut drgn = Command::new("drgn");
    drgn.args(["-q", "-c"]).arg(core).arg("-s").arg(vmlinux).arg(script);
    let listed = check(&mut drgn)?;
    let mut tasks: Vec<(u64, String)> = listed
        .lines()
        .filter_map(|line| {
            let (number, name) = line.split_once(' ')?;
            Some((number.parse().ok()?, name.to_owned()))
        })
        .collect();
    tasks.sort();
    Ok(tasks)
}

#[test]
fn a_position_is_shown_and_exported() -> Result<()> {
    if !require_kvm() || !require_program("gdb", "gdb") || !require_program("drgn", "python3-drgn") {
        return Ok(());
    }
    let dir = work_dir("looking")?;
    let log = dir.join("log");
    record(&log)?;
    let log = log.to_str().context("path")?;
    let vmlinux = Guest::find()?.vmlinux;
    let kernel = vmlinux.to_str().context("path")?;
    let (banner, jiffies) = (symbol(&vmlinux, "linux_banner")?, symbol(&vmlinux, "jiffies_64")?);
    let (banner_text, jiffies_text) = (format!("{banner:#x}"), format!("{jiffies:#x}"));
    let at = asleep(log)?;
    let shown = show(
        log,
        &[
            "--at",
            &at,
            "--vmlinux",
            kernel,
            "--tasks",
            "--devices",
            "--mem",
            &banner_text,
            "60",
            "--mem",
            &jiffies_text,
            "8",
            "--mem",
            "phys:0x1000000",
            "16",
            "--mem",
            "0xffff800000000000",
            "8",
        ],
    )?;
    let memory = |index: usize| unhex(shown["memory"][index]["bytes"].as_str().unwrap_or_default());
    ensure!(memory(0)?.starts_with(b"Linux version 6.1"), "{shown}");
    ensure!(memory(2)?.len() == 16 && memory(3)?.is_empty(), "{shown}");
    let ticks = u64::from_le_bytes(memory(1)?.try_into().map_err(|_| anyhow::anyhow!("{shown}"))?);
    let tasks = shown["tasks"].as_array().context("no tasks")?;
    ensure!(
        tasks[0]["comm"] == "swapper" && tasks[0]["kernel_thread"] == true,
        "{shown}"
    );
    let named = |pid: u64| tasks.iter().find(|task| task["pid"] == pid);
    ensure!(named(1).is_some_and(|task| task["comm"] == "init"), "{shown}");
    ensure!(named(2).is_some_and(|task| task["comm"] == "kthreadd"), "{shown}");
    ensure!(tasks.iter().any(|task| task["comm"] == "sh"), "{shown}");
    let current = shown["current"]["comm"].as_str().context("no current task")?;
    let stack = shown["stack_by_frame_pointers"].as_array().context("no stack")?;
    let calls: Vec<_> = stack.iter().filter_map(|frame| frame["symbol"].as_str()).collect();
    ensure!(calls.len() > 3, "{calls:?}");
    ensure!(shown["code"].as_array().is_some_and(|code| code.len() > 3), "{shown}");
    ensure!(
        shown["devices"].as_str().is_some_and(|text| text.contains("pic")),
        "{shown}"
    );

    let core = dir.join("core");
    let output = debug(&["export-memory", log, core.to_str().context("path")?, "--at", &at])?;
    ensure!(output.status.success(), "{}", text(&output));
    let read = check(
        Command::new("gdb")
            .args(["-q", "-batch"])
            .arg(&vmlinux)
            .arg(&core)
            .args([
                "-ex",
                "p jiffies_64",
                "-ex",
                "x/s linux_banner",
                "-ex",
                "p $rip",
                "-ex",
                "p init_task.comm",
                "-ex",
                "printf \"CURRENT %s\\n\", current_task->comm",
                "-ex",
                "backtrace",
            ]),
    )?;
    ensure!(
        read.contains(&format!("= {ticks}\n")),
        "jiffies_64 is not {ticks}: {read}"
    );
    ensure!(read.contains("\"Linux version 6.1"), "{read}");
    ensure!(read.contains("\"swapper\\000"), "{read}");
    let rip = shown["registers"]["rip"].as_str().context("no rip")?;
    ensure!(read.contains(rip), "{rip} is not gdb's: {read}");
    ensure!(
        read.contains(&format!("CURRENT {current}\n")),
        "{current} is not gdb's: {read}"
    );
    let (_, backtrace) = read.split_once("#0 ").context("no backtrace")?;
    for call in until_another_stack(backtrace, &calls) {
        let function = function(call);
        ensure!(backtrace.contains(function), "{function} is not in gdb's: {backtrace}");
    }
    let listed = tasks_by_drgn(&core, &vmlinux)?;
    let told: Vec<(u64, String)> = tasks
        .iter()
        .filter(|task| task["pid"] != 0)
        .map(|task| Some((task["pid"].as_u64()?, task["comm"].as_str()?.to_owned())))
        .collect::<Option<_>>()
        .with_context(|| format!("{shown}"))?;
    ensure!(listed == told, "drgn lists {listed:?}, and we {told:?}");

    let again = debug(&["export-memory", log, core.to_str().context("path")?, "--at", &at])?;
    ensure!(
        again.status.code() == Some(1) && text(&again).contains("exists already"),
        "{}",
        text(&again)
    );

    // Nothing but its banner tells this one from the recorded kernel: the recording began with a snapshot, and names none.
    let other = dir.join("other");
    fs::write(&other, another_kernel(&vmlinux)?)?;
    let other = other.to_str().context("path")?;
    for (arguments, why) in [
        (&["show", log, "--at", "1s"][..], "is not in this recording: it begins"),
        (&["show", log, "--at", "0"], "is not in this recording: it begins"),
        (&["show", log, "--at", "99999999"], "is not in this recording: it ends"),
        (&["show", log, "--at", "99h"], "is not in this recording: it ends"),
        (
            &["replay", log, "--to", "99999999"],
            "is not in this recording: it ends",
        ),
        (&["replay", log, "--to", "end", "--to", "0"], "ascending order"),
        (
            &["show", log, "--at", "end", "--vmlinux", "/bin/true"],
            "is no Linux kernel",
        ),
        (
            &["show", log, "--at", "end", "--vmlinux", other],
            "is not the kernel that runs here",
        ),
        (
            &["gdb", log, "--exec", "--vmlinux", "/bin/true", "--", "-batch"],
            "is no Linux kernel",
        ),
        (
            &["gdb", log, "--exec", "--vmlinux", other, "--", "-batch"],
            "is not the kernel that runs here",
        ),
        (&["show", log, "--at", "end", "--mem", "x", "4"], "is no number"),
    ] {
        let output = debug(arguments)?;
        ensure!(
            output.status.code() == Some(1) && text(&output).contains(why),
            "{arguments:?} must say `{why}`, and says: {}",
            text(&output)
        );
    }
    Ok(())
}
