//! `events --follow`: a log is read while it is written.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::require_kvm;
use lockstep_integration::transcript::Transcript;
use lockstep_integration::{Booted, Debug, Kind, work_dir};
use lockstep_logcodec::{BatchBuilder, LogReader, LogWriter, Record, WriterOptions, positions};
use lockstep_proto::quantity::StopNumber;
use lockstep_proto::{End, Identity, MachineConfig, Turn, end};
use rustix::process::{Pid, Signal, kill_process};

const LIMIT: Duration = Duration::from_secs(120);
/// Small, so that there are some.
const SEGMENT_BYTES: u64 = 8 << 10;
const BATCHES: u64 = 400;

struct Follower {
    child: Child,
    out: Transcript,
}

impl Follower {
    fn start(log: &Path, more: &[&str]) -> Result<Self> {
        let mut command = Debug::command()?;
        command.args(["events", "--follow", "--json"]).arg(log).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let out = Transcript::of(child.stdout.take().context("no pipe")?)?;
        Ok(Self { child, out })
    }

    /// Waits for its end by itself. Returns all that it wrote.
    fn end(mut self) -> Result<String> {
        ensure!(self.out.wait_for_end(LIMIT), "it does not end: {}", self.out.text());
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}");
        Ok(self.out.text())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // Both do nothing when it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn digest(stop: u64) -> [u8; 16] {
    u128::from(stop).to_be_bytes()
}

/// A log with one typed byte or more at every stop, in several segments.
fn write_log(dir: &Path) -> Result<()> {
    let identity = Identity {
        machine: Some(MachineConfig::default()),
        start_chain: digest(0).to_vec().into(),
        ..Identity::default()
    };
    let options = WriterOptions {
        segment_bytes: SEGMENT_BYTES,
        ..WriterOptions::default()
    };
    let mut writer = LogWriter::create(dir, &identity, options)?;
    let mut builder = BatchBuilder::new(StopNumber::START);
    for stop in 1..=BATCHES {
        let turn = Turn {
            console: format!("typed {stop} {}", "x".repeat((stop % 97) as usize)).into(),
            ..Turn::default()
        };
        builder.push(StopNumber::new(stop), turn)?;
        writer.append_batch(&builder.close(StopNumber::new(stop), digest(stop))?)?;
    }
    writer.finish(End {
        reason: end::Reason::Quit.into(),
        last_stop: BATCHES,
        digest: digest(BATCHES).to_vec().into(),
        ..End::default()
    })?;
    Ok(())
}

/// The stop of the last turn that the log has now.
fn last_stop(dir: &Path) -> Result<Option<StopNumber>> {
    let mut reader = LogReader::open(dir)?;
    let mut last = None;
    while let Some(record) = reader.next_record()? {
        if let Record::Batch(batch) = record {
            last = positions(&batch).last().map(|(stop, _)| stop).or(last);
        }
    }
    Ok(last)
}

fn segments(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths: Vec<_> = fs::read_dir(dir)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "lsl"));
    paths.sort();
    Ok(paths)
}

/// The log of a recorder that writes in pieces of any size: every tail is torn for a while, one is garbage for a while, and
/// segments come one after the other.
#[test]
fn torn_tails_that_become_whole_and_new_segments_are_followed() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let dir = work_dir("following")?;
    let (whole, growing) = (dir.join("whole"), dir.join("growing"));
    write_log(&whole)?;
    fs::create_dir(&growing)?;
    let segments = segments(&whole)?;
    ensure!(segments.len() > 3, "{segments:?}");
    let mut follower = None;
    for (number, path) in segments.iter().enumerate() {
        let bytes = fs::read(path)?;
        let to = growing.join(path.file_name().context("name")?);
        // Appears with its header, as the writer's does.
        let temporary = growing.join("next.tmp");
        let (header, rest) = bytes.split_at(1000);
        fs::write(&temporary, header)?;
        fs::rename(&temporary, &to)?;
        let mut file = OpenOptions::new().append(true).open(&to)?;
        let follower = match &mut follower {
            Some(follower) => follower,
            none => none.insert(Follower::start(&growing, &[])?),
        };
        let seen = |follower: &Follower| -> Result<()> {
            let stop = last_stop(&growing)?.context("no turn")?;
            follower.out.wait_for(&format!("\"stop\":{stop},"), LIMIT)
        };
        let (one, two) = rest.split_at(rest.len() / 2 + number);
        file.write_all(one)?;
        if number == 1 {
            // A block whose content comes later than the file's new size, as after a page that was not yet written.
            let garbage = OpenOptions::new().write(true).open(&to)?;
            let at = garbage.metadata()?.len();
            garbage.write_all_at(&vec![0x5a; 5000.min(two.len())], at)?;
            seen(follower)?;
            garbage.write_all_at(two, at)?;
        } else {
            seen(follower)?;
            for piece in two.chunks(61 + number) {
                file.write_all(piece)?;
            }
        }
    }
    let text = follower.context("no follower")?.end()?;
    let stops = text
        .lines()
        .map(|line| {
            Ok(serde_json::from_str::<serde_json::Value>(line)?["stop"]
                .as_u64()
                .unwrap_or(0))
        })
        .collect::<Result<Vec<_>>>()?;
    ensure!(stops.iter().copied().eq(1..=BATCHES), "{stops:?}");
    Ok(())
}

#[test]
fn a_machine_is_followed_while_it_is_recorded() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    let log = work_dir("follow-machine")?.join("log");
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(&log).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    let follower = Follower::start(&log, &["--kind", "console"])?;
    let stopped = Follower::start(&log, &[])?;
    for number in 0..3 {
        run.type_text(&format!("echo LINE $(({number} + 10))\n"))?;
        // While the recorder runs.
        follower.out.wait_for(&format!("echo LINE $(({number} + 10))"), LIMIT)?;
        run.wait_for(&format!("\nLINE {}", number + 10), LIMIT)?;
    }
    stopped.out.wait_for("\"stop\":", LIMIT)?;
    let pid = Pid::from_raw(stopped.child.id() as i32).context("no process")?;
    kill_process(pid, Signal::INT)?;
    stopped.end()?;
    run.terminate()?.report()?;
    let text = follower.end()?;
    let straight = Debug::run([
        "events".as_ref(),
        log.as_os_str(),
        "--json".as_ref(),
        "--kind".as_ref(),
        "console".as_ref(),
    ])?;
    ensure!(straight.text() == text, "{text}");
    Ok(())
}

/// A command of what a busy machine is recorded into meanwhile. Returns what it told, and the stops that the log had before
/// the machine, and after the command.
fn of_live(name: &str, words: &[&str]) -> Result<(Debug, u64, u64)> {
    let log = work_dir(name)?.join("log");
    let mut run = Booted::get(Kind::Shell)?.go_on()?.record(&log).start()?;
    run.wait_for("lockstep#", LIMIT)?;
    run.type_text("i=0; while true; do i=$((i + 1)); echo BUSY-$i; done\n")?;
    run.wait_for("BUSY-300", LIMIT)?;
    let first = LogReader::open(&log)?.stop();
    let told = Debug::run([words, &[log.to_str().context("path")?]].concat())?;
    let last = last_stop(&log)?.context("an empty log")?;
    run.terminate()?;
    Ok((told, first.get(), last.get()))
}

/// What comes while it is replayed is not waited for: a busy machine would never be caught up with.
#[test]
fn what_is_being_recorded_is_replayed_up_to_where_it_ended_at_the_beginning() -> Result<()> {
    if !require_kvm() {
        return Ok(());
    }
    for words in [
        &["verify", "--json"][..],
        &["replay", "--json", "--to", "end"],
        &["show", "--json", "--at", "end"],
    ] {
        let (told, first, last) = of_live("replay-live", words)?;
        told.expect(0, "")?;
        let report = told.json()?;
        let stops = report["stops"].as_u64();
        let done = stops
            .or_else(|| Some(report["stop"].as_u64()? - first))
            .context("stops")?;
        let all = last - first;
        println!("{words:?}: {done} of {all} stops");
        ensure!(done > 1000 && done * 10 < all * 9, "{words:?}: {done} of {all} stops");
        if words[0] == "verify" {
            let is_open = |ending: &str| !ending.starts_with("in order");
            ensure!(
                report["identical"] == true && report["ending"].as_str().is_some_and(is_open),
                "{report}"
            );
        }
    }
    // What may come some day is not in it.
    let (told, ..) = of_live("replay-live", &["replay", "--to", "999999999999"])?;
    told.expect(1, "is not in this recording")?;
    Ok(())
}
