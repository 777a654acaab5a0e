//! `lockstep-debug fork`: the machine and its disks as they were at a position, as a snapshot from which another machine goes on.
//!
//! Invariants:
//! - The recording is only read, and the fork lies outside it.
//! - The fork's directory appears whole or not at all.
//! - A fork of a pair's machine says so, and `run` lets it be none of that name.

mod target;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use lockstep_node::out::one_line;
use lockstep_node::say;
use lockstep_proto::end::Reason;
use lockstep_proto::quantity::StopNumber;
use lockstep_replay::Replayer;
use lockstep_replay::extent::Extent;
use lockstep_replay::open::{Opened, go_on, open};
use lockstep_replay::replayer::{Progress, SavedReplay};
use lockstep_vmm::machine::Machine;
use lockstep_vmm::probe::{Start, at_start};
use serde_json::{Value, json};

use crate::Recording;
use crate::place::{Place, help};
use crate::position::Position;
use crate::replay::{bar, hex, straight_to};
use crate::timeline::digest;
use target::{Target, Written};

#[derive(Args)]
pub struct ForkOptions {
    #[command(flatten)]
    recording: Recording,
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, help = help("Where the machine is forked"))]
    at: Place,
    /// The directory to make, or an empty one. It gets the snapshot (`machine.snapshot`) and the disks (`disk-N.img`).
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Replay the rest of the recording on the fork, too, and compare all that the log has to compare with. The fork stays as it is.
    #[arg(long)]
    check: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub fn run(options: &ForkOptions) -> Result<ExitCode> {
    let target = Target::new(&options.to, &options.recording.directory)?;
    let (directory, at) = options.recording.up_to(Some(options.at))?;
    let host = at_start()?;
    // The machine goes before the one that is checked comes: there is one at a time.
    let (forked, saved) = fork(&directory, at, &target, &host, options.json)?;
    let checked = if options.check {
        Some(check(&directory, &saved, &forked.written, &host, options.json)?)
    } else {
        None
    };
    if options.json {
        say!("{}", forked.json(checked.as_ref()));
    } else {
        forked.print(checked.as_ref());
    }
    Ok(ExitCode::SUCCESS)
}

/// What a fork has, and where it was made.
struct Forked {
    written: Written,
    stop: StopNumber,
    turn: u32,
    guest_ns: u64,
    forked_from: Vec<String>,
    nics: usize,
    read_only: Vec<bool>,
    /// Requests of disks that it makes again.
    in_flight: usize,
}

fn fork(directory: &Path, at: Position, target: &Target, host: &Start, quiet: bool) -> Result<(Forked, SavedReplay)> {
    let last = Extent::of(directory)?.last_stop;
    let Opened {
        mut machine,
        mut replayer,
        identity,
    } = open(directory, host)?;
    let bar = bar(last.since(machine.stop()), quiet);
    straight_to(at, &mut machine, &mut replayer, &bar)?;
    bar.finish_and_clear();
    check_goes_on(&replayer)?;
    if let Some(tenure) = &identity.tenure {
        machine.mark_fork_of(&tenure.machine);
    }
    let saved = replayer.saved()?;
    let written = target.write(&machine, replayer.disks(), &host.class)?;
    let config = machine.config();
    let forked = Forked {
        written,
        stop: machine.stop(),
        turn: replayer.further_turns(),
        guest_ns: machine.now().ns(),
        forked_from: machine.forked_from().to_vec(),
        nics: config.nics.len(),
        in_flight: machine.devices().outstanding_disk_requests().count(),
        read_only: config.disks.iter().map(|disk| disk.read_only).collect(),
    };
    Ok((forked, saved))
}

/// A machine that has ended goes nowhere.
fn check_goes_on(replayer: &Replayer) -> Result<()> {
    let how = match replayer.guest_ended() {
        None => return Ok(()),
        Some(Reason::PoweredOff) => "powered off",
        Some(Reason::Reset) => "reset",
        Some(_) => "halted for good",
    };
    bail!("the guest has {how} there, and a fork would be at its end, too: choose an earlier position")
}

/// What the rest of the log was compared with.
struct Checked {
    stops: u64,
    guest_ns: u64,
    progress: Progress,
    digest: [u8; 16],
}

/// Replays the rest of the log on the fork.
fn check(directory: &Path, saved: &SavedReplay, written: &Written, host: &Start, quiet: bool) -> Result<Checked> {
    let Opened {
        mut machine,
        mut replayer,
        ..
    } = go_on(directory, saved, &written.snapshot, &written.disks, host).context("cannot go on from the fork")?;
    let (stop, guest_ns, before) = (machine.stop(), machine.now(), replayer.progress());
    let bar = bar(Extent::of(directory)?.last_stop.since(stop), quiet);
    rest(&mut machine, &mut replayer, &bar).context("the rest of the recording does not replay on the fork")?;
    bar.finish_and_clear();
    let now = replayer.progress();
    Ok(Checked {
        stops: machine.stop().since(stop),
        guest_ns: machine.now().ns_since(guest_ns),
        progress: Progress {
            batches: now.batches - before.batches,
            epochs: now.epochs - before.epochs,
            deltas: now.deltas - before.deltas,
            ..now
        },
        digest: digest(&machine, &mut replayer)?,
    })
}

fn rest(machine: &mut Machine, replayer: &mut Replayer, bar: &indicatif::ProgressBar) -> Result<()> {
    straight_to(Position::End, machine, replayer, bar)?;
    Ok(replayer.finish(machine)?)
}

impl Forked {
    /// The command that goes on from it.
    fn command(&self) -> String {
        let disks = self.written.disks.iter().zip(&self.read_only).map(|(disk, read_only)| {
            let read_only = if *read_only { ",ro" } else { "" };
            format!(" --disk {}{read_only}", disk.display())
        });
        let (snapshot, disks) = (self.written.snapshot.display(), disks.collect::<String>());
        format!("lockstep-primary run --snapshot {snapshot}{disks} --clock freeze")
    }

    fn print(&self, checked: Option<&Checked>) {
        say!(
            "{}: the machine at stop {}, {} of guest time; disks: {}; {} MiB",
            self.written.directory.display(),
            self.stop,
            Position::Time(self.guest_ns),
            self.written.disks.len(),
            self.written.bytes.div_ceil(1 << 20)
        );
        for name in &self.forked_from {
            say!(
                "it is a fork of machine `{}`, and runs under any other name",
                one_line(name)
            );
        }
        if let Some(checked) = checked {
            say!(
                "the rest of the recording is identical on it: {} stops, {} of guest time, {} batches, {} epochs, {} deltas{}",
                checked.stops,
                Position::Time(checked.guest_ns),
                checked.progress.batches,
                checked.progress.epochs,
                checked.progress.deltas,
                if checked.progress.final_memory {
                    ", and all of memory at the end"
                } else {
                    ""
                }
            );
            say!("digest at the end {}", hex(&checked.digest));
        }
        say!("go on from it with: {}", self.command());
        if self.nics > 0 {
            say!(
                "its {} network cards are connected to nothing unless --net is given for each: it has the addresses of the \
                 machine that was recorded",
                self.nics
            );
        }
    }

    fn json(&self, checked: Option<&Checked>) -> Value {
        json!({
            "directory": self.written.directory.display().to_string(),
            "snapshot": self.written.snapshot.display().to_string(),
            "disks": self.written.disks.iter().map(|disk| disk.display().to_string()).collect::<Vec<_>>(),
            "bytes": self.written.bytes,
            "stop": self.stop.get(),
            "turn": self.turn,
            "guest_ns": self.guest_ns,
            "forked_from": self.forked_from,
            "nics": self.nics,
            "in_flight": self.in_flight,
            "command": self.command(),
            "check": checked.map(|checked| json!({
                "stops": checked.stops,
                "guest_ns": checked.guest_ns,
                "batches": checked.progress.batches,
                "epochs": checked.progress.epochs,
                "deltas": checked.progress.deltas,
                "final_memory": checked.progress.final_memory,
                "digest": hex(&checked.digest),
            })),
        })
    }
}
