//! `lockstep-debug replay`: the machine replayed to a position, in one go and without checkpoints.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lockstep_node::say;
use lockstep_replay::Replayer;
use lockstep_replay::extent::Extent;
use lockstep_replay::open::{Opened, open};
use lockstep_vmm::machine::Machine;
use lockstep_vmm::probe::at_start;
use serde_json::json;

use crate::Recording;
use crate::place::{Place, help};
use crate::position::Position;
use crate::timeline::{Goal, Reached, digest, point, straight};

#[derive(Args)]
pub struct ReplayOptions {
    #[command(flatten)]
    recording: Recording,
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, help = help("Where to; given several times, in ascending order, the replay goes on from one to the next"))]
    to: Vec<Place>,
    /// Tell a digest of registers, devices, memory and disks at each position: equal states have equal digests.
    #[arg(long)]
    digest: bool,
    /// One JSON object for each position.
    #[arg(long)]
    json: bool,
}

pub fn run(options: &ReplayOptions) -> Result<ExitCode> {
    let (directory, mut positions) = options.recording.at(&options.to)?;
    if positions.is_empty() {
        positions.push(Position::End);
    }
    let last = Extent::of(&directory)?.last_stop;
    let Opened {
        mut machine,
        mut replayer,
        ..
    } = open(&directory, &at_start()?)?;
    let bar = bar(last.since(machine.stop()), options.json);
    for position in positions {
        let (from, begin) = ((machine.stop(), machine.now().ns()), Instant::now());
        straight_to(position, &mut machine, &mut replayer, &bar)?;
        let wall = begin.elapsed().as_secs_f64();
        let guest = (machine.now().ns() - from.1) as f64 / 1e9;
        if replayer.is_at_end() {
            replayer.finish(&machine)?;
        }
        let digest = if options.digest {
            Some(hex(&digest(&machine, &mut replayer)?))
        } else {
            None
        };
        if options.json {
            say!(
                "{}",
                json!({
                    "stop": machine.stop().get(),
                    "turn": replayer.further_turns(),
                    "guest_ns": machine.now().ns(),
                    "at_end": replayer.is_at_end(),
                    "stops_replayed": machine.stop().since(from.0),
                    "guest_seconds": guest,
                    "wall_seconds": wall,
                    "digest": digest,
                })
            );
        } else {
            bar.suspend(|| {
                say!(
                    "stop {}, {} of guest time: {} stops and {guest:.3} s replayed in {wall:.3} s ({:.1} x)",
                    machine.stop(),
                    Position::Time(machine.now().ns()),
                    machine.stop().since(from.0),
                    guest / wall.max(1e-9)
                );
                if let Some(digest) = &digest {
                    say!("digest {digest}");
                }
            });
        }
    }
    bar.finish_and_clear();
    Ok(ExitCode::SUCCESS)
}

/// Replays straight on to a position, which has to be in the recording and not behind.
pub fn straight_to(
    position: Position,
    machine: &mut Machine,
    replayer: &mut Replayer,
    bar: &ProgressBar,
) -> Result<()> {
    let goal = Goal::from(position);
    let behind = match goal {
        Goal::Point(to) => to < point(machine, replayer),
        Goal::Time(to) => to < machine.now().ns(),
        Goal::End => false,
    };
    if behind {
        bail!(
            "{position} lies before stop {} and {} of guest time, where the replay is: a recording begins at its start, \
             and positions are given in ascending order",
            machine.stop(),
            Position::Time(machine.now().ns())
        );
    }
    let (from, before) = (machine.stop(), bar.position());
    let mut shown = Instant::now();
    let reached = straight(goal, machine, replayer, &mut |machine| {
        if shown.elapsed() > Duration::from_millis(100) {
            shown = Instant::now();
            bar.set_position(before + machine.stop().since(from));
        }
    })?;
    bar.set_position(before + machine.stop().since(from));
    if reached == Reached::End {
        bar.finish_and_clear();
        bail!(
            "{position} is not in this recording: it ends at stop {} and {} of guest time",
            machine.stop(),
            Position::Time(machine.now().ns())
        );
    }
    Ok(())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A bar of stops, where somebody sees it.
pub fn bar(stops: u64, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(stops);
    // The template is a constant; a wrong one would only cost the decoration.
    if let Ok(style) = ProgressStyle::with_template("replaying [{bar:40}] {pos}/{len} stops, {per_sec}, {eta} to go") {
        bar.set_style(style);
    }
    bar
}
