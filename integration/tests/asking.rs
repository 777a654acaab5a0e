//! A recording is asked who wrote, who called and which system calls there were: of a script whose calls are known.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lockstep_integration::gate::{require_kvm, require_program};
use lockstep_integration::{Booted, Debug, Guest, Kind, work_dir};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(180);
/// The guest is recorded again where a delta carried it through something that is asked for: on a busy machine that is not rare.
const TRIES: usize = 16;
/// Lines that the script prints, and after each it opens a file. What a guest does between two stops of its own can be carried as soon as
/// something is due, so it prints: each character is a stop.
const LINES: usize = 300;
/// What the shell does to open a file as its standard input, and to have its own back.
const ROUND: [(&str, &[&str], i64); 7] = [
    ("open", &["\"/tmp/lines\"", "O_RDONLY"], 3),
    ("fcntl", &["0", "F_DUPFD_CLOEXEC", "10"], 11),
    ("fcntl", &["11", "F_SETFD", "FD_CLOEXEC"], 0),
    ("dup2", &["3", "0"], 0),
    ("close", &["3"], 0),
    ("dup2", &["11", "0"], 0),
    ("close", &["11"], 0),
];
/// How often it sets and clears the flag.
const TOGGLES: usize = 20;
/// A path that would set a terminal's title, as the shell writes it and as it is shown.
const HOSTILE: (&str, &str) = (r"/tmp/\033]0;x\007\n", r#""/tmp/\33]0;x\7""#);

/// A recording in which a delta carried the guest through something that was asked for.
struct WasCarried;

/// What a recording is asked, and whether it could tell.
type Check = fn(&Asking<'_>) -> Result<Result<(), WasCarried>>;

fn record(log: &Path) -> Result<()> {
    if log.exists() {
        std::fs::remove_dir_all(log)?;
    }
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(log).start()?;
    let script = format!(
        "echo >/tmp/lines; i=0; while [ $i -lt {LINES} ]; do echo line-$i; : </tmp/lines; i=$((i+1)); done\n\
         cat /tmp/lines /nowhere \"$(printf '{}')\"\n\
         mkdir /tmp/made; rmdir /tmp/made\n\
         p=/proc/sys/kernel/panic_on_oops\n\
         i=0; while [ $i -lt {TOGGLES} ]; do echo set-$i; echo 1 >$p; echo 0 >$p; i=$((i+1)); done\n\
         sh -c 'exit 3'; echo EN''DED\n",
        HOSTILE.0
    );
    run.type_text(&format!("cat >/tmp/script <<'END'\n{script}END\necho REA''DY\n"))?;
    run.wait_for("READY", LIMIT)?;
    run.type_text("sh /tmp/script\n")?;
    run.wait_for("ENDED", LIMIT)?;
    run.terminate()?.report()?;
    Ok(())
}

struct Asking<'a> {
    log: &'a str,
    kernel: &'a str,
}

impl Asking<'_> {
    fn ask(&self, command: &str, words: &[&str]) -> Result<Debug> {
        Debug::run([&[command, self.log, "--vmlinux", self.kernel], words].concat())
    }

    fn lines(&self, command: &str, words: &[&str]) -> Result<Vec<Value>> {
        let told = self.ask(command, &[words, &["--json"]].concat())?;
        told.expect(0, "")?.json_lines()
    }
}

fn has_carried(lines: &[Value]) -> bool {
    lines.iter().any(|line| !line["carried"].is_null())
}

fn arguments(call: &Value) -> Vec<&str> {
    let list = call["arguments"].as_array().map_or(&[][..], Vec::as_slice);
    list.iter().filter_map(Value::as_str).collect()
}

/// A name, arguments and a result.
type Known = (String, Vec<String>, i64);

fn known((name, shown, result): (&str, &[&str], i64)) -> Known {
    (
        name.to_owned(),
        shown.iter().map(|&one| one.to_owned()).collect(),
        result,
    )
}

/// Whether it is the call that is known.
fn is_it(call: &Value, (name, shown, result): &Known) -> bool {
    // An openat is an open with a directory, and there may be more arguments and flags.
    let given = arguments(call);
    let given = given.strip_prefix(&["AT_FDCWD"]).unwrap_or(&given);
    let is_named = call["call"] == **name || call["call"] == format!("{name}at");
    let fit = shown.len() <= given.len()
        && shown
            .iter()
            .zip(given)
            .all(|(wanted, given)| given.starts_with(&**wanted));
    is_named && fit && (call["result"] == *result || call["result"].is_null())
}

/// Where in the list a call of the script stands, and whether all that is missing between these was carried. `None` where one is
/// missing without a reason.
fn places(all: &[Value], wanted: &[Known]) -> Option<Vec<Option<usize>>> {
    let mut found = Vec::new();
    let (mut from, mut is_missing) = (0, false);
    for one in wanted {
        let next = all[from..].iter().position(|line| is_it(line, one)).map(|at| from + at);
        // Up to the next one that is there, something was carried for each that is not.
        if is_missing && !has_carried(&all[from..next.unwrap_or(all.len())]) {
            return None;
        }
        is_missing = next.is_none();
        from = next.map_or(from, |at| at + 1);
        found.push(next);
    }
    (!is_missing || has_carried(&all[from..])).then_some(found)
}

#[test]
fn a_call_that_is_missing_was_carried() {
    let line = |name: &str| serde_json::json!({ "call": name, "arguments": [], "result": 0 });
    let carried = serde_json::json!({ "carried": {} });
    let wanted = ["a", "b", "c"].map(|name| (name.to_owned(), Vec::new(), 0));
    let all = [line("a"), line("x"), line("b"), line("c")];
    assert_eq!(places(&all, &wanted), Some(vec![Some(0), Some(2), Some(3)]));
    assert_eq!(places(&[line("a"), line("c")], &wanted), None);
    assert_eq!(places(&[line("a"), line("b")], &wanted), None);
    let all = [line("a"), carried.clone(), line("c")];
    assert_eq!(places(&all, &wanted), Some(vec![Some(0), None, Some(2)]));
    // Elsewhere is no reason.
    assert_eq!(places(&[carried, line("a"), line("c")], &wanted), None);
}

/// The calls that the script is known to make, in their order, less those that a delta carried.
fn system_calls(asking: &Asking<'_>) -> Result<Result<(), WasCarried>> {
    let all = asking.lines("strace", &[])?;
    let calls: Vec<&Value> = all.iter().filter(|line| line["call"].is_string()).collect();
    let call = |name, shown: &[&str], result| known((name, shown, result));
    let mut wanted: Vec<_> = (0..LINES)
        .map(|line| {
            let text = format!("\"line-{line}\\n\"");
            let bytes = text.len() - 3;
            call("write", &["1", &text, &bytes.to_string()], bytes as i64)
        })
        .collect();
    wanted.extend([
        call("open", &["\"/nowhere\"", "O_RDONLY"], -2),
        call("open", &[HOSTILE.1, "O_RDONLY"], -2),
        call("mkdir", &["\"/tmp/made\"", "0777"], 0),
        call("rmdir", &["\"/tmp/made\""], 0),
        call("exit_group", &["3"], 0),
    ]);
    let found = places(&all, &wanted).context("a call of the script is missing, and nothing was carried there")?;
    let seen = found.iter().flatten().count();
    println!(
        "{} system calls; of {} known ones {seen}, the others were carried",
        calls.len(),
        wanted.len()
    );

    // Each time, the shell does the same to open a file, as far as it was not carried.
    let (mut whole, mut begun) = (0, 0);
    for (at, line) in all.iter().enumerate() {
        if !is_it(line, &known(ROUND[0])) || line["task"]["comm"] == "cat" {
            continue;
        }
        let rest = all[at..].iter().take_while(|line| line["carried"].is_null());
        let rest: Vec<_> = rest
            .filter(|other| other["task"]["pid"] == line["task"]["pid"])
            .collect();
        begun += 1;
        whole += usize::from(rest.len() >= ROUND.len());
        for (wanted, given) in ROUND.into_iter().zip(rest) {
            ensure!(is_it(given, &known(wanted)), "{wanted:?} is {given}");
        }
    }
    println!("{begun} rounds of {LINES} were seen, {whole} of them whole");
    // A write gives all of its bytes, or is not known to have returned.
    for line in calls
        .iter()
        .filter(|line| line["call"] == "write" && line["result"].is_i64())
    {
        let wanted = line["arguments"][2]
            .as_str()
            .and_then(|length| length.parse::<i64>().ok());
        ensure!(line["result"].as_i64() == wanted, "{line}");
    }

    // The same as text, and as sums.
    let text = asking.ask("strace", &[])?;
    let text = text.expect(0, "")?.text();
    ensure!(!text.contains(|one: char| one.is_control() && one != '\n'), "{text}");
    let ended = text.lines().filter(|line| line.contains(") = ")).count();
    let done = calls.iter().filter(|call| call["unfinished"].is_null()).count();
    ensure!(ended == done, "{ended} lines of {done} calls");
    let sums = asking.lines("strace", &["-c"])?;
    let counted: u64 = sums.iter().filter_map(|row| row["calls"].as_u64()).sum();
    ensure!(counted == calls.len() as u64, "{counted} of {}", calls.len());
    // One process of several.
    let pid = &calls[calls.len() / 2]["task"]["tgid"];
    let of_it = calls.iter().filter(|call| call["task"]["tgid"] == *pid).count();
    let by_pid = asking.lines("strace", &["--pid", &pid.to_string()])?;
    let by_pid = by_pid.iter().filter(|line| line["call"].is_string());
    ensure!(by_pid.count() == of_it, "{of_it} calls of process {pid}");
    let named = asking.lines("strace", &["--task", "no-such-name"])?;
    ensure!(named.iter().all(|line| line["call"].is_null()), "{named:?}");
    let is_whole = found.iter().all(Option::is_some);
    if is_whole {
        ensure!(text.contains("exit_group(3) = ?\n"), "{text}");
        ensure!(text.contains("= -1 ENOENT (No such file or directory)"), "{text}");
    }
    Ok(if seen * 10 > wanted.len() && whole > 0 {
        Ok(())
    } else {
        Err(WasCarried)
    })
}

/// Calls of kernel functions, with arguments that are known from the system calls.
fn calls(asking: &Asking<'_>) -> Result<Result<(), WasCarried>> {
    let all = asking.lines("calls", &["do_sys_openat2"])?;
    let value = |call: &Value, name: &str| {
        let arguments = call["arguments"].as_array().cloned().unwrap_or_default();
        let found = arguments.into_iter().find(|argument| argument["name"] == name);
        found.map_or_else(String::new, |argument| {
            argument["value"].as_str().unwrap_or_default().to_owned()
        })
    };
    let of = |path: &str| {
        let ending = format!(" \"{path}\"");
        let calls = all.iter().filter(|call| value(call, "filename").ends_with(&ending));
        calls.cloned().collect::<Vec<Value>>()
    };
    let opened = of("/tmp/lines");
    if opened.len() != LINES + 1 {
        ensure!(has_carried(&all), "{} calls, and nothing was carried", opened.len());
    }
    for call in &opened {
        let returned = &call["result"]["value"];
        ensure!(
            *returned == "3" || (!call["unseen"].is_null() || call["sure"] == false) && has_carried(&all),
            "{call}"
        );
        ensure!(value(call, "dfd") == "-100" && call["task"]["comm"] != "init", "{call}");
    }
    for failed in of("/nowhere").iter().filter(|call| call["sure"] == true) {
        ensure!(
            failed["result"]["value"] == "-2" && failed["task"]["comm"] == "cat",
            "{failed}"
        );
    }
    let text = asking.ask("calls", &["do_sys_openat2"])?;
    let text = text.expect(0, "do_sys_openat2(dfd=-100, filename=0x")?.text();
    ensure!(!text.contains(|one: char| one.is_control() && one != '\n'), "{text}");
    if opened.iter().filter(|call| call["sure"] == true).count() < 2 {
        return Ok(Err(WasCarried));
    }
    let first = asking.lines("calls", &["do_sys_openat2", "--limit", "2"])?;
    ensure!(
        first.iter().filter(|call| call["function"].is_string()).count() == 2,
        "{first:?}"
    );

    // With the name of a variable.
    let all = asking.lines("calls", &["do_proc_dointvec_conv"])?;
    let set: Vec<_> = all
        .iter()
        .filter(|call| value(call, "valp").ends_with("<panic_on_oops>"))
        .collect();
    ensure!(set.len() == 2 * TOGGLES || has_carried(&all), "{all:?}");
    let set: Vec<_> = set.into_iter().filter(|call| call["sure"] == true).collect();
    if set.is_empty() {
        return Ok(Err(WasCarried));
    }
    println!("{} of {} calls of do_proc_dointvec_conv", set.len(), 2 * TOGGLES);
    for call in &set {
        ensure!(value(call, "write") == "1" && call["result"]["value"] == "0", "{call}");
        let caller = call["caller"]["symbol"].as_str().unwrap_or_default();
        ensure!(caller.starts_with("__do_proc_dointvec+"), "{call}");
    }
    println!("{}", set[0]);
    Ok(Ok(()))
}

/// Stores to a variable, which gdb finds too.
fn writes(asking: &Asking<'_>) -> Result<Result<(), WasCarried>> {
    let all = asking.lines("writes", &["panic_on_oops", "4"])?;
    let values: Vec<_> = all
        .iter()
        .map(|write| (write["old"].as_str(), write["new"].as_str()))
        .collect();
    let (zero, one) = (Some("00000000"), Some("01000000"));
    // What is set and cleared within one stretch that was carried has not changed by its end.
    for (number, pair) in values.iter().enumerate() {
        ensure!(
            *pair == if number % 2 == 0 { (zero, one) } else { (one, zero) },
            "{all:?}"
        );
    }
    ensure!(all.len() <= 2 * TOGGLES && all.len() % 2 == 0, "{all:?}");
    let stores: Vec<_> = all.iter().filter(|write| write["by"] != "delta").collect();
    let Some(first) = stores.first() else {
        return Ok(Err(WasCarried));
    };
    println!(
        "{} changes, {} of them stores that were executed",
        all.len(),
        stores.len()
    );
    for write in &stores {
        ensure!(
            write["by"] == "kernel" && write["ring"] == 0 && write["task"]["comm"] == "sh",
            "{write}"
        );
        let symbol = write["symbol"].as_str().unwrap_or_default();
        ensure!(symbol.starts_with("do_proc_dointvec_conv+"), "{write}");
    }
    let line = asking.ask("writes", &["panic_on_oops", "4", "--limit", "1"])?;
    line.expect(0, "ended after 1 changes")?;
    let seek = format!("monitor seek {}", first["stop"]);
    let gdb = ["gdb", asking.log, "--exec", "--vmlinux", asking.kernel, "--", "-batch"];
    let script = [
        &seek,
        "maintenance flush register-cache",
        "watch panic_on_oops",
        "continue",
        "printf \"STORED by %s\\n\", current_task->comm",
        "monitor when",
        "reverse-stepi",
        "printf \"AT %#lx\\n\", $pc",
    ];
    let found = Debug::run(gdb.into_iter().chain(script.into_iter().flat_map(|line| ["-ex", line])))?;
    let step = first["step"].as_u64().context("step")?;
    let when = format!("stop {} turn {} steps {}, ", first["stop"], first["turn"], step + 1);
    for text in [
        &when,
        "STORED by sh",
        &format!("AT {}", first["rip"].as_str().unwrap_or_default()),
    ] {
        found.expect(0, text)?;
    }
    println!("{first}");
    Ok(Ok(()))
}

fn refusals(asking: &Asking<'_>) -> Result<()> {
    for (command, words, why) in [
        ("calls", &["no_such_function"][..], "has no function `no_such_function`"),
        ("calls", &["0x1000"], "is in user code"),
        ("writes", &["no_such_variable", "4"], "neither an address"),
        ("writes", &["panic_on_oops", "4097"], "give 1 to 4096"),
        ("writes", &["phys:0xfffffffff000", "8"], "not all in the guest's memory"),
        ("writes", &["0xffff800000000000", "8", "--limit", "1"], "are not mapped"),
        ("strace", &["--from", "end", "--to", "1"], "lies before"),
        ("strace", &["--from", "1"], "is not in this recording"),
    ] {
        asking.ask(command, words)?.expect(1, why)?;
    }
    // The recording began with a snapshot, which names no kernel.
    Debug::run(["strace", asking.log])?.expect(1, "give its vmlinux with --vmlinux")?;
    Ok(())
}

#[test]
fn a_recording_tells_who_wrote_and_who_called() -> Result<()> {
    if !require_kvm() || !require_program("gdb", "gdb") {
        return Ok(());
    }
    let log = work_dir("asking")?.join("log");
    let vmlinux = Guest::find()?.vmlinux;
    let asking = Asking {
        log: log.to_str().context("path")?,
        kernel: vmlinux.to_str().context("path")?,
    };
    // Each has to be seen once; not all in one recording.
    let mut left: Vec<(&str, Check)> = vec![("writes", writes), ("calls", calls), ("strace", system_calls)];
    for number in 1..=TRIES {
        record(&log)?;
        let mut carried = Vec::new();
        for (name, check) in left {
            if check(&asking)?.is_err() {
                println!(
                    "recording {number}: a delta carried the guest through what `{name}` is asked for, and it said so"
                );
                carried.push((name, check));
            }
        }
        left = carried;
        if left.is_empty() {
            return refusals(&asking);
        }
    }
    bail!("in {TRIES} recordings something was carried by a delta each time: this machine is too busy")
}
