//! Forks of a recording: a snapshot and the disks as they were at a position, from which another machine goes on; and files of a
//! guest's disk as they were then.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::{require_root_net, soak};
use lockstep_integration::load::redis_cli;
use lockstep_integration::pair::{Arbiter, LIMIT, Pair};
use lockstep_integration::paths::program;
use lockstep_integration::process::signal;
use lockstep_integration::random::Random;
use lockstep_integration::{Booted, Debug, Kind, Run, work_dir};
use lockstep_logcodec::LogReader;
use rustix::process::Signal;
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

const HEARTBEAT: Duration = Duration::from_millis(200);
const DEADLINE: Duration = Duration::from_secs(5);
const ROUNDS: u32 = 3;
/// From one look at what a process has made to the next.
const LOOK: Duration = Duration::from_millis(1);
/// What the guest calls a file whose name works on a terminal.
const NAME: &str = "a\u{1b}[2Jb";

/// A recording of a machine that is one of a pair, with a disk and a network card.
struct Recorded {
    dir: PathBuf,
    log: PathBuf,
    pair: Pair,
    /// Of the recording's files.
    digests: BTreeMap<PathBuf, u128>,
    /// The digest of machine and disks at the end, as a straight replay has it.
    end: String,
    /// The first and last stop, and where the recording begins and ends in guest time.
    stops: (u64, u64),
    times: (u64, u64),
}

fn recording() -> Result<&'static Recorded> {
    static RECORDING: OnceLock<Result<Recorded, String>> = OnceLock::new();
    let made = RECORDING.get_or_init(|| record().map_err(|error| format!("{error:#}")));
    made.as_ref().map_err(|error| anyhow::anyhow!(error.clone()))
}

fn record() -> Result<Recorded> {
    let dir = work_dir("fork")?;
    let log = dir.join("log");
    let pair = Pair::create(&dir, Arbiter::File, HEARTBEAT, DEADLINE)?;
    let machine = Booted::get(Kind::Redis)?;
    let disk = machine.copy_disk(&dir)?;
    // Nobody stands by: it is a pair's machine all the same.
    let start = |run: Run| run.restore(&machine.snapshot()).disk(&disk).record(&log);
    let mut node = pair.start_primary(0, start)?;
    node.run.wait_for("lockstep#", LIMIT)?;
    node.run
        .type_text("echo > \"/data/$(printf 'a\\033[2Jb')\"; sync; echo BEGUN-$((6 * 7))\n")?;
    node.run.wait_for("BEGUN-42", LIMIT)?;
    for round in 0..ROUNDS {
        redis_cli(&pair.network.hosts[0].namespace, &["SET", "round", &round.to_string()])?;
        node.run.type_text(&format!(
            "echo CONTENT-{round} >/data/round; date >>/data/log; sync; echo WRITTEN-$(({round} + 1000))\n"
        ))?;
        node.run.wait_for(&format!("WRITTEN-{}", round + 1000), LIMIT)?;
    }
    node.run.terminate()?.report()?;
    let info = debug(&["info", "--json"], &log, &[])?.json()?;
    let number = |name: &str| info[name].as_u64().with_context(|| format!("no {name}: {info}"));
    let stops = (number("first_stop")?, number("last_stop")?);
    let replayed = debug(
        &["replay", "--json", "--digest"],
        &log,
        &["--to", &stops.0.to_string(), "--to", "end"],
    )?;
    let [first, last] = &replayed.json_lines()?[..] else {
        anyhow::bail!("{}", replayed.text());
    };
    let ns = |line: &Value| line["guest_ns"].as_u64().context("no guest time");
    Ok(Recorded {
        digests: digests(&log)?,
        end: last["digest"].as_str().context("no digest")?.to_owned(),
        times: (ns(first)?, ns(last)?),
        stops,
        dir,
        log,
        pair,
    })
}

/// Runs a command that has to succeed.
fn debug(command: &[&str], log: &Path, more: &[&str]) -> Result<Debug> {
    let (name, flags) = command.split_first().context("no command")?;
    let log = log.to_str().context("path")?;
    let ran = Debug::run([*name, log].iter().chain(flags).chain(more))?;
    ran.expect(0, "")?;
    Ok(ran)
}

/// Of all files in a directory, by their names.
fn digests(directory: &Path) -> Result<BTreeMap<PathBuf, u128>> {
    let mut digests = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let (mut file, mut hasher, mut buffer) = (File::open(&path)?, Xxh3::new(), vec![0; 1 << 20]);
        loop {
            let length = file.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            hasher.update(&buffer[..length]);
        }
        digests.insert(path, hasher.digest128());
    }
    Ok(digests)
}

/// Forks at a position; what it tells.
fn fork(recorded: &Recorded, at: &str, to: &Path, more: &[&str]) -> Result<Value> {
    let to = to.to_str().context("path")?;
    debug(&["fork", "--json", "--at", at, "--to", to], &recorded.log, more)?.json()
}

/// A run that goes on from a fork, alone and without a network.
fn go_on(fork: &Path) -> Result<Run> {
    Ok(Run::bare()?
        .restore(&fork.join("machine.snapshot"))
        .disk(&fork.join("disk-0.img")))
}

/// A position at which the guest has asked something of its disk that is not done yet.
fn in_flight(recorded: &Recorded, random: &mut Random) -> Result<String> {
    let done = debug(&["events", "--json", "--kind", "disk"], &recorded.log, &[])?.json_lines()?;
    // At a forced stop what was asked at the natural stop of its number may be done.
    let is_natural = |event: &&Value| {
        let kinds = event["kinds"].as_array();
        kinds.is_some_and(|kinds| !kinds.contains(&"forced".into()))
    };
    let done: Vec<_> = done.iter().filter(is_natural).collect();
    ensure!(!done.is_empty(), "no request of a disk was done at a natural stop");
    let stop = done[random.below(done.len() as u64) as usize]["stop"].as_u64();
    Ok((stop.context("no stop")? - 1).to_string())
}

#[test]
fn a_fork_goes_on_and_the_rest_of_the_recording_is_identical_on_it() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let recorded = recording()?;
    let mut random = Random::seeded();
    let mut positions = vec![in_flight(recorded, &mut random)?];
    for number in 1..if soak() { 10 } else { 3 } {
        let between = |(first, last): (u64, u64), random: &mut Random| first + random.below(last - first);
        positions.push(if number % 2 == 0 {
            between(recorded.stops, &mut random).to_string()
        } else {
            // Also between the turns of a halted guest, and where a delta ends.
            format!("{}ns", between(recorded.times, &mut random))
        });
    }
    for (number, at) in positions.iter().enumerate() {
        let to = recorded.dir.join(format!("fork-{number}"));
        let forked = fork(recorded, at, &to, &["--check"])?;
        println!(
            "fork at {at}: stop {} turn {}, {} requests in flight, {} bytes; then {} stops, {} epochs",
            forked["stop"],
            forked["turn"],
            forked["in_flight"],
            forked["bytes"],
            forked["check"]["stops"],
            forked["check"]["epochs"]
        );
        ensure!(number > 0 || forked["in_flight"].as_u64() > Some(0), "{forked}");
        let check = &forked["check"];
        ensure!(check["final_memory"] == true, "{forked}");
        ensure!(
            check["digest"] == recorded.end,
            "{forked}, and at the end it is {}",
            recorded.end
        );
        let left = recorded.stops.1 - forked["stop"].as_u64().context("no stop")?;
        ensure!(check["stops"] == left, "{forked}: {left} stops are left");

        let mut run = go_on(&to)?.args(["--clock", "freeze"]).start()?;
        run.messages.wait_for("1 network cards, connected to nothing", LIMIT)?;
        // What was typed when it was forked may still be on its way.
        run.type_text(&format!(
            "\necho AGAIN-{number} >>/data/again; sync; echo FORKED-$(({number} + 500))\n"
        ))?;
        run.wait_for(&format!("FORKED-{}", number + 500), LIMIT)?;
        run.terminate()?.report()?;
    }
    ensure!(
        digests(&recorded.log)? == recorded.digests,
        "the recording is not what it was"
    );
    Ok(())
}

/// What the CMOS clock of a recording's machine showed at guest time zero.
fn rtc_base(log: &Path) -> Result<i64> {
    let reader = LogReader::open(log)?;
    Ok(reader.identity().machine.as_ref().context("no machine")?.rtc_base)
}

#[test]
fn a_clock_is_as_it_was_asked_for() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let recorded = recording()?;
    let to = recorded.dir.join("fork-clock");
    let forked = fork(recorded, &recorded.stops.0.to_string(), &to, &[])?;
    let from = forked["guest_ns"].as_u64().context("no guest time")?;
    for clock in ["freeze", "set"] {
        let log = recorded.dir.join(format!("log-{clock}"));
        let begin = std::time::SystemTime::now();
        let run = go_on(&to)?.args(["--clock", clock]).record(&log).start()?;
        run.wait_until_it_listens()?;
        run.terminate()?.report()?;
        // Where it began, by the CMOS clock.
        let (base, original) = (rtc_base(&log)?, rtc_base(&recorded.log)?);
        let shown = base + (from / 1_000_000_000) as i64;
        let now = begin.duration_since(std::time::UNIX_EPOCH)?.as_secs() as i64;
        match clock {
            "set" => ensure!((now - 1..now + 60).contains(&shown), "{shown} at {now}"),
            _ => ensure!(base == original, "{base} and not {original}"),
        }
    }
    // By how much it is off depends on when the machine was booted for the tests.
    let run = go_on(&to)?.args(["--clock", "slew", "--for", "0.1"]).complete(LIMIT)?;
    if run.status.success() {
        ensure!(
            run.messages.contains("the guest's clock follows this host's"),
            "{}",
            run.messages
        );
    } else {
        run.expect_failure(1, &["by --clock slew it would come back from 1000 s at most"])?;
    }
    let run = Run::bare()?.args(["--kernel", "x", "--clock", "set"]).complete(LIMIT)?;
    run.expect_failure(2, &["--clock"])
}

#[test]
fn a_fork_of_a_pairs_machine_is_not_that_machine() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let recorded = recording()?;
    let to = recorded.dir.join("fork-pair");
    let forked = fork(recorded, "end", &to, &[])?;
    ensure!(forked["forked_from"] == serde_json::json!(["pair"]), "{forked}");
    let record = recorded.dir.join("arbiter/pair.record");
    let before = fs::read(&record)?;
    let pair = &recorded.pair;
    let with = |run: Run| run.restore(&to.join("machine.snapshot")).disk(&to.join("disk-0.img"));
    let refused = pair.start_primary(0, with)?.run.wait(LIMIT)?;
    refused.expect_failure(1, &["is a fork of machine `pair` and not that machine"])?;
    ensure!(
        fs::read(&record)? == before,
        "the record of the pair's machine was changed"
    );
    // Nor what is saved of it.
    let saved = recorded.dir.join("saved.snapshot");
    let run = go_on(&to)?.args(["--for", "0.1", "--save"]).args([&saved]);
    run.complete(LIMIT)?.report()?;
    let with = |run: Run| run.restore(&saved).disk(&to.join("disk-0.img"));
    let refused = pair.start_primary(0, with)?.run.wait(LIMIT)?;
    refused.expect_failure(1, &["is a fork of machine `pair`"])?;
    // A backup whose part the record decides boots it as little.
    let with = |run: Run| run.restore(&saved).disk(&to.join("disk-0.img"));
    let refused = pair.start_auto(0, with)?.run.wait(LIMIT)?;
    refused.expect_failure(1, &["is a fork of machine `pair`"])?;
    ensure!(
        fs::read(&record)? == before,
        "the record of the pair's machine was changed"
    );
    ensure!(!to.join("disk-0.img.replica").exists(), "it has a backup's mark");

    // By another name it is one of a pair of its own.
    let host = &pair.network.hosts[0];
    let mut run = Run::with(host.namespace.command(program("lockstep-primary")?))
        .env("LOCKSTEP_RUN_DIR", &pair.run_dir(0))
        .env("LOCKSTEP_STATE_DIR", &pair.state_dir(0))
        .args(["--name", "forked", "--node", host.name])
        .args([
            "--peer-name",
            pair.network.hosts[1].name,
            "--peer",
            &pair.address(1).to_string(),
        ])
        .args(["--pki".into(), recorded.dir.join("pki").into_os_string()])
        .args(["--arbiter", pair.arbiter(), "--net", "tap=tap0"])
        .restore(&to.join("machine.snapshot"))
        .disk(&to.join("disk-0.img"))
        .start()?;
    run.type_text("\necho OWN-$((1 + 1))\n")?;
    run.wait_for("OWN-2", LIMIT)?;
    run.terminate()?.report()?;
    ensure!(recorded.dir.join("arbiter/forked.record").exists(), "it has no record");
    ensure!(
        fs::read(&record)? == before,
        "the record of the pair's machine was changed"
    );
    Ok(())
}

#[test]
fn a_fork_that_cannot_be_made_is_refused_and_leaves_nothing() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let recorded = recording()?;
    let log = recorded.log.to_str().context("path")?;
    let place = recorded.dir.join("refused");
    fs::create_dir_all(place.join("full/x"))?;
    let to = |name: &str| place.join(name).to_str().map(str::to_owned).context("path");
    let refused = |at: &str, to: &str, why: &str| {
        Debug::run(["fork", log, "--at", at, "--to", to])?.expect(1, why)?;
        Ok::<_, anyhow::Error>(())
    };
    let beyond = (recorded.stops.1 + 1).to_string();
    refused("end", &to("full")?, "is there already")?;
    refused("end", &format!("{log}/fork"), "would lie in the recording")?;
    refused(&beyond, &to("new")?, "is not in this recording")?;
    refused("0", &to("new")?, "lies before")?;
    refused("end", &to("missing/new")?, "cannot make")?;
    Debug::run(["fork", log, "--at", "soon", "--to", &to("new")?])?.expect(2, "soon")?;

    // A file system that is full.
    let small = place.join("small");
    fs::create_dir_all(&small)?;
    let script = "mount -t tmpfs -o size=2m none \"$1\" && \"$2\" fork \"$3\" --at \"$4\" --to \"$1/new\"; echo ENDED-$?; ls -A \"$1\"";
    let output = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .args([small.as_os_str(), program("lockstep-debug")?.as_os_str()])
        .args([log, &recorded.stops.0.to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        said.contains("No space left on device") && said.contains("cannot write"),
        "{said}"
    );
    ensure!(
        output.stdout == b"ENDED-1\n",
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );

    // Killed while it writes.
    let killed = place.join("killed");
    let mut child = Debug::command()?
        .args([
            "fork",
            log,
            "--at",
            &recorded.stops.0.to_string(),
            "--to",
            &to("killed")?,
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let begin = Instant::now();
    let is_partial = || -> Result<bool> {
        let names = fs::read_dir(&place)?.flatten().map(|entry| entry.file_name());
        Ok(names
            .into_iter()
            .any(|name| name.to_string_lossy().starts_with(".killed.")))
    };
    while !is_partial()? && child.try_wait()?.is_none() {
        ensure!(begin.elapsed() < LIMIT, "it writes nothing");
        std::thread::sleep(LOOK);
    }
    signal(&child, Signal::KILL)?;
    child.wait()?;
    // Where the kill came late it is whole.
    ensure!(
        !killed.exists() || killed.join("machine.snapshot").exists(),
        "there is half a fork"
    );
    println!("killed: {}", if killed.exists() { "late" } else { "in the middle" });
    // And what was left beside it is in nobody's way.
    if !killed.exists() {
        fork(recorded, &recorded.stops.0.to_string(), &killed, &[])?;
    }
    ensure!(!place.join("new").exists(), "a fork that was refused is there");
    ensure!(
        digests(&recorded.log)? == recorded.digests,
        "the recording is not what it was"
    );
    Ok(())
}

#[test]
fn files_are_as_they_were() -> Result<()> {
    if !require_root_net() {
        return Ok(());
    }
    let recorded = recording()?;
    let log = &recorded.log;
    let show = |at: &str, more: &[&str]| debug(&["show", "--at", at], log, more);
    // What round a line was typed in, and the stop before.
    let typed = debug(&["events", "--json", "--kind", "console"], log, &[])?.json_lines()?;
    let round = |number: u32| {
        let line = format!("CONTENT-{number}");
        let event = typed
            .iter()
            .find(|event| event["console"].as_str().is_some_and(|text| text.contains(&line)));
        let stop = event.and_then(|event| event["stop"].as_u64());
        Ok::<_, anyhow::Error>((stop.with_context(|| format!("{line} was not typed"))? - 1).to_string())
    };
    for (at, content) in [(round(1)?, 0), (round(2)?, 1), ("end".to_owned(), 2)] {
        let content = format!("CONTENT-{content}\n");
        let shown = show(&at, &["--files", "/round", "--to", "-"])?;
        ensure!(
            shown.text() == content,
            "at {at}: {:?} and not {content:?}",
            shown.text()
        );
        let copy = recorded.dir.join(format!("copy-{at}"));
        let to = copy.to_str().context("path")?;
        show(&at, &["--files", "round", "--to", to])?;
        ensure!(fs::read_to_string(&copy)? == content, "at {at}");
        let again = [
            "show",
            log.to_str().context("path")?,
            "--at",
            &at,
            "--files",
            "round",
            "--to",
            to,
        ];
        Debug::run(again)?.expect(1, "exists already")?;
    }
    // Before the first round, there was none of it.
    let before = round(0)?;
    let listed = show(&before, &["--files", "/"])?.text();
    ensure!(!listed.contains("round") && listed.contains("lost+found"), "{listed}");
    let listed = show("end", &["--files", "/"])?.text();
    println!("{listed}");
    ensure!(listed.contains("file                10  round"), "{listed}");
    ensure!(
        listed.contains("a\\u001b[2Jb") && !listed.contains('\u{1b}'),
        "{listed:?}"
    );
    let json = show("end", &["--files", "/", "--json"])?.json_lines()?;
    ensure!(
        json.iter()
            .any(|entry| entry["name"] == NAME && entry["kind"] == "file"),
        "{json:?}"
    );
    let log = log.to_str().context("path")?;
    for (files, more, code, why) in [
        ("/nothing", &[][..], 1, "there is nothing of that name"),
        ("/round", &[], 1, "is a file of 10 bytes"),
        ("/", &["--to", "-"], 1, "is a directory"),
        ("/", &["--disk", "1"], 1, "the machine has no disk 1"),
        ("/", &["--partition", "1"], 1, "there is no partition 1"),
        ("/", &["--at", "end"], 1, "one position"),
        ("/", &["--digest"], 2, "cannot be used with"),
    ] {
        let command = ["show", log, "--at", "end", "--files", files];
        Debug::run(command.iter().chain(more))?.expect(code, why)?;
    }
    ensure!(
        digests(&recorded.log)? == recorded.digests,
        "the recording is not what it was"
    );
    Ok(())
}
