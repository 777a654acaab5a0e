//! A recorded kernel crash, and Debian's gdb: from the panic backwards to the store that decided it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lockstep_integration::gate::{require_kvm, require_program};
use lockstep_integration::paths::program;
use lockstep_integration::process::bound;
use lockstep_integration::{Booted, Guest, Kind, work_dir};

const LIMIT: Duration = Duration::from_secs(180);
/// The guest is recorded again, with other times, where the store lies in a slice that a delta carried: on a busy machine
/// that is not rare, and there are no instructions in it.
const TRIES: u64 = 16;

/// Shared by the scripts: where the machine stands, and all of its registers.
const PYTHON: &str = r"
python
import gdb
def said(command):
    return gdb.execute(command, to_string=True)
def place():
    return said('monitor when') + said('info registers') + said('info registers system') + said('info registers float') + said('info registers vector')
def value(expression):
    return str(gdb.parse_and_eval(expression))
end
";

/// Backwards from the panic.
const FIND: &str = r#"
break panic
continue
printf "PANIC in %s flag %d\n", current_task->comm, panic_on_oops
backtrace 5
delete
watch panic_on_oops
reverse-continue
printf "STORE in %s flag %d\n", current_task->comm, panic_on_oops
monitor when
monitor why
x/i $pc
backtrace
delete
python
store = place()
gdb.execute('stepi')
print('AFTER-STEP flag', value('panic_on_oops'))
gdb.execute('reverse-stepi')
print('BACK-AT-STORE', place() == store, 'flag', value('panic_on_oops'))
places = [store]
for number in range(100):
    said('reverse-stepi')
    places.append(place())
print('DISTINCT', len(set(places)))
wrong = 0
for number in reversed(range(100)):
    said('stepi')
    wrong += place() != places[number]
print('FORWARD-WRONG', wrong)
end
"#;

/// Slices that are stepped from end to end give the states that a replay gives; breakpoints and a watch in both directions.
const WALK: &str = r"
python
gdb.execute('break panic')
gdb.execute('continue')
panic = place()
gdb.execute('delete')
gdb.execute('watch panic_on_oops')
gdb.execute('reverse-continue')
gdb.execute('delete')
def stop():
    return int(said('monitor when').split()[1])
def digest():
    said('maintenance flush register-cache')
    return said('monitor digest')
first = stop() - 3
replayed = []
for number in range(6):
    said('monitor seek %d' % (first + number))
    replayed.append((digest(), place()))
said('monitor seek %d' % first)
passed, steps, wrong, here = 0, 0, 0, first
while passed < 5 and steps < 20000:
    said('stepi')
    steps += 1
    if stop() != here:
        here += 1
        passed += 1
        wrong += (digest(), place()) != replayed[passed]
print('WALKED', passed, 'WRONG', wrong)
gdb.execute('break do_proc_dointvec_conv')
said('monitor seek %d' % first)
said('maintenance flush register-cache')
gdb.execute('continue')
hit = place()
said('continue')
gdb.execute('reverse-continue')
print('BREAKPOINT-AGAIN', place() == hit)
gdb.execute('delete')
gdb.execute('watch panic_on_oops')
gdb.execute('continue')
print('WATCH-FORWARD', value('panic_on_oops'))
gdb.execute('delete')
gdb.execute('break panic')
gdb.execute('continue')
print('PANIC-AGAIN', place() == panic)
end
";

/// The ends of the recording, what is refused, and monitor's commands.
const EDGES: &str = r"
reverse-stepi
reverse-continue
monitor when
break *0x401000
continue
delete
monitor why
hbreak panic
hbreak _printk
hbreak vfs_read
hbreak vfs_write
hbreak schedule
continue
delete
monitor why
rwatch panic_on_oops
stepi
monitor why
delete
info registers cr3 fs_base gs_base efer
set var panic_on_oops = 5
monitor why
monitor checkpoint
monitor nonsense
continue
monitor when
reverse-stepi
monitor when
";

fn record(dir: &Path, seed: u64) -> Result<()> {
    let log = dir.join("log");
    if log.exists() {
        fs::remove_dir_all(&log)?;
    }
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(&log).start()?;
    run.type_text(&format!("oopser {seed} 300\n"))?;
    let outcome = run.wait(LIMIT)?;
    outcome.report()?;
    ensure!(outcome.console.contains("Kernel panic"), "{}", outcome.console);
    Ok(())
}

/// What a gdb in batch mode prints for `script`.
fn gdb(dir: &Path, script: &str) -> Result<String> {
    let file = dir.join("script");
    fs::write(&file, format!("{PYTHON}{script}"))?;
    let output = bound(program("lockstep-debug")?)
        .arg("gdb")
        .arg(dir.join("log"))
        .arg("--exec")
        .arg("--vmlinux")
        .arg(Guest::find()?.vmlinux)
        .args(["--", "-batch"])
        // One by one: a script ends at its first error, and some are wanted.
        .args(script_arguments(&file, script))
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(!text.contains("panicked"), "{text}");
    Ok(text)
}

fn script_arguments(file: &Path, script: &str) -> Vec<String> {
    if script == EDGES {
        return script
            .lines()
            .filter(|line| !line.is_empty())
            .flat_map(|line| ["-ex".to_owned(), line.to_owned()])
            .collect();
    }
    vec!["-x".to_owned(), file.display().to_string()]
}

fn line<'a>(text: &'a str, start: &str) -> Result<&'a str> {
    let found = text.lines().find(|line| line.starts_with(start));
    found.with_context(|| format!("no line `{start}` in:\n{text}"))
}

#[test]
fn gdb_goes_back_from_a_panic_to_the_store() -> Result<()> {
    if !require_kvm() || !require_program("gdb", "gdb") {
        return Ok(());
    }
    let dir = work_dir("gdb")?;
    for seed in 1..=TRIES {
        record(&dir, seed)?;
        let text = gdb(&dir, FIND)?;
        ensure!(line(&text, "PANIC")? == "PANIC in oopser flag 1", "{text}");
        ensure!(text.contains("sysrq_handle_crash"), "{text}");
        if text.contains("a delta carried") {
            println!("seed {seed}: the store is in a slice that a delta carried, and gdb was told so");
            continue;
        }
        ensure!(line(&text, "STORE")? == "STORE in oopser flag 0", "{text}");
        ensure!(text.contains("proc_sys_write"), "{text}");
        ensure!(line(&text, "AFTER-STEP")? == "AFTER-STEP flag 1", "{text}");
        ensure!(line(&text, "BACK-AT-STORE")? == "BACK-AT-STORE True flag 0", "{text}");
        ensure!(line(&text, "DISTINCT")? == "DISTINCT 101", "{text}");
        ensure!(line(&text, "FORWARD-WRONG")? == "FORWARD-WRONG 0", "{text}");
        println!("{}", line(&text, "=>")?);
        walk(&dir)?;
        listening(&dir)?;
        return edges(&dir);
    }
    bail!("in {TRIES} recordings the store was carried by a delta each time: this machine is too busy")
}

fn walk(dir: &Path) -> Result<()> {
    let text = gdb(dir, WALK)?;
    let walked = line(&text, "WALKED")?;
    println!("{walked}");
    ensure!(walked.ends_with("WRONG 0") && !walked.starts_with("WALKED 0"), "{text}");
    ensure!(line(&text, "BREAKPOINT-AGAIN")? == "BREAKPOINT-AGAIN True", "{text}");
    ensure!(line(&text, "WATCH-FORWARD")? == "WATCH-FORWARD 1", "{text}");
    ensure!(line(&text, "PANIC-AGAIN")? == "PANIC-AGAIN True", "{text}");
    Ok(())
}

/// A gdb of the user's own, by the network.
fn listening(dir: &Path) -> Result<()> {
    let mut server = bound(program("lockstep-debug")?)
        .arg("gdb")
        .arg(dir.join("log"))
        .args(["--listen", "127.0.0.1:0", "--at", "end"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let messages = BufReader::new(server.stderr.take().context("no stderr")?);
    let mut address = None;
    for message in messages.lines() {
        if let Some((_, found)) = message?.split_once("target remote ") {
            address = Some(found.to_owned());
            break;
        }
    }
    let address = address.context("it does not say where it listens")?;
    let output = bound("gdb")
        .args(["-q", "-batch", "-ex", &format!("target remote {address}")])
        .args(["-ex", "monitor when", "-ex", "stepi", "-ex", "p $cr0 != 0"])
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(text.contains("of guest time") && text.contains("= 1"), "{text}");
    ensure!(text.contains("No more reverse-execution history"), "{text}");
    ensure!(server.wait()?.success(), "the server ends with its gdb");
    Ok(())
}

fn edges(dir: &Path) -> Result<()> {
    let text = gdb(dir, EDGES)?;
    for wanted in [
        "No more reverse-execution history",
        "is in user code, where this host's breakpoints never fire",
        "the CPU has 4, and all are in use",
        "loads cannot be watched here",
        "memory is not changed: what was recorded has happened",
        "checkpoints: ",
        "there is no such command",
        "cr3 ",
        "fs_base ",
    ] {
        ensure!(text.contains(wanted), "`{wanted}` is missing in:\n{text}");
    }
    Ok(())
}
