//! `lockstep-debug verify`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lockstep_logcodec::Ending;
use lockstep_node::kicker::Kicker;
use lockstep_node::{say, say_on};
use lockstep_replay::open::{Opened, open};
use lockstep_replay::{Divergence, ReplayError};
use lockstep_vmm::machine::Flow;
use lockstep_vmm::probe::at_start;

use crate::Recording;
use crate::symbols::Symbols;
use crate::totals::{Totals, describe_ending};

#[derive(Args)]
pub struct VerifyOptions {
    #[command(flatten)]
    recording: Recording,
    /// The recorded kernel's vmlinux, for symbols.
    #[arg(long, value_name = "FILE")]
    vmlinux: Option<PathBuf>,
    /// Stop the vCPU at random moments, on average this often a second: the result must not depend on it.
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=100_000), hide = true)]
    kicks: Option<u32>,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub fn run(options: &VerifyOptions) -> Result<ExitCode> {
    let verified = verify(
        options.recording.one()?,
        &Wanted {
            vmlinux: options.vmlinux.as_deref(),
            kicks: options.kicks,
            quiet: options.json,
        },
    )?;
    if options.json {
        say!("{}", verified.json());
    } else {
        verified.print();
    }
    Ok(ExitCode::from(u8::from(verified.divergence.is_some())))
}

/// How to verify.
pub struct Wanted<'a> {
    /// For symbols.
    pub vmlinux: Option<&'a Path>,
    /// Random kicks a second.
    pub kicks: Option<u32>,
    /// Without a progress bar.
    pub quiet: bool,
}

/// Replays the recording in `directory` and compares everything that the log has to compare with.
pub fn verify(directory: &Path, wanted: &Wanted<'_>) -> Result<Verified> {
    let totals = Totals::of(directory)?;
    let Opened {
        mut machine,
        mut replayer,
        identity,
    } = open(directory, &at_start()?)?;
    let symbols = Symbols::load(wanted.vmlinux, &identity)?;
    let kicker = match (wanted.kicks, machine.kick_handle()) {
        (Some(rate), Some(handle)) => Some(Kicker::start(handle, rate)?),
        _ => None,
    };
    let start = (machine.stop(), machine.now().ns());
    let bar = progress_bar(totals.last_stop.since(start.0), wanted.quiet);
    let begin = Instant::now();
    let mut shown = begin;
    let result = loop {
        match machine.step(&mut replayer) {
            Ok(Flow::Continue) => {
                if shown.elapsed() > Duration::from_millis(100) {
                    shown = Instant::now();
                    bar.set_position(machine.stop().since(start.0));
                }
            }
            Ok(Flow::End) => break replayer.finish(&machine),
            Err(error) => break Err(replayer.explain(&machine, error)),
        }
    };
    let wall = begin.elapsed();
    bar.finish_and_clear();
    let kicks = kicker.map(Kicker::stop);
    let divergence = match result {
        Ok(()) => None,
        Err(ReplayError::Diverged(divergence)) => Some(divergence),
        Err(error) => return Err(error.into()),
    };
    Ok(Verified {
        stops: machine.stop().since(start.0),
        guest: Duration::from_nanos(machine.now().ns() - start.1),
        wall,
        kicks,
        divergence,
        ending: replayer.ending(),
        totals,
        progress: replayer.progress(),
        counters: machine.counters(),
        symbols,
    })
}

fn progress_bar(stops: u64, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(stops);
    // The template is a constant; a wrong one would only cost the decoration.
    if let Ok(style) = ProgressStyle::with_template("verifying [{bar:40}] {pos}/{len} stops, {per_sec}, {eta} to go") {
        bar.set_style(style);
    }
    bar
}

/// What a verification found.
pub struct Verified {
    /// Natural stops replayed.
    pub stops: u64,
    /// The first divergence, if there is one.
    pub divergence: Option<Box<Divergence>>,
    /// How the log ends.
    pub ending: Ending,
    /// The kernel's symbols, if they are there.
    pub symbols: Option<Symbols>,
    guest: Duration,
    wall: Duration,
    kicks: Option<u64>,
    totals: Totals,
    progress: lockstep_replay::Progress,
    counters: lockstep_vmm::machine::Counters,
}

impl Verified {
    fn symbol(&self, address: u64) -> Option<String> {
        self.symbols.as_ref().and_then(|symbols| symbols.name(address))
    }

    fn print(&self) {
        let (progress, counters, totals) = (&self.progress, &self.counters, &self.totals);
        let guest = self.guest.as_secs_f64();
        let wall = self.wall.as_secs_f64();
        if let Some(divergence) = &self.divergence {
            say!("verify: DIVERGED");
            say_on!("{divergence}");
            if let Some(name) = self.symbol(divergence.registers.rip()) {
                say!("  rip is in {name}");
            }
        } else {
            say!("verify: identical");
        }
        say!("  log ends         {}", describe_ending(&self.ending));
        say!("  stops            {} natural, {} forced", self.stops, progress.deltas);
        say!(
            "  batches compared {} (registers, inputs and effects at every natural stop)",
            progress.batches
        );
        say!(
            "  memory compared  {} epochs over {} dirtied pages{}",
            progress.epochs,
            progress.epoch_pages,
            if progress.final_memory {
                ", and all of memory at the end"
            } else {
                ""
            }
        );
        say!(
            "  carried          {} deltas with {} pages, {:.1} ms of {:.1} ms guest time: not executed here, not compared",
            progress.deltas,
            progress.carried_pages,
            progress.carried_ns as f64 / 1e6,
            guest * 1e3
        );
        say!(
            "  interrupts       {}; instructions assisted {}; MSR faults {}",
            counters.interrupts,
            counters.assists,
            counters.msr_faults
        );
        if counters.modules + counters.modules_left > 0 {
            say!(
                "  kernel modules   {} looked through: {} instructions rewritten, {} left",
                counters.modules,
                counters.module_instructions,
                counters.modules_left
            );
        }
        say!(
            "  log              {} bytes: turns {}, delta pages {}, other {}",
            totals.all_bytes(),
            totals.batch_bytes,
            totals.page_bytes,
            totals.other_bytes()
        );
        say!(
            "  network in       {} frames, {} bytes",
            progress.frames,
            progress.frame_bytes
        );
        if let Some(kicks) = self.kicks {
            say!("  random kicks     {kicks} during this replay");
        }
        say!(
            "  guest time       {guest:.3} s; replayed in {wall:.3} s ({:.1} x)",
            guest / wall.max(1e-9)
        );
    }

    fn json(&self) -> serde_json::Value {
        let (progress, counters, totals) = (&self.progress, &self.counters, &self.totals);
        serde_json::json!({
            "identical": self.divergence.is_none(),
            "ending": describe_ending(&self.ending),
            "stops": self.stops,
            "batches": progress.batches,
            "turns": progress.turns,
            "epochs": progress.epochs,
            "epoch_pages": progress.epoch_pages,
            "final_memory": progress.final_memory,
            "deltas": progress.deltas,
            "delta_pages": progress.carried_pages,
            "carried_seconds": progress.carried_ns as f64 / 1e9,
            "interrupts": counters.interrupts,
            "assists": counters.assists,
            "msr_faults": counters.msr_faults,
            "modules": counters.modules,
            "module_instructions": counters.module_instructions,
            "modules_left": counters.modules_left,
            "log_bytes": totals.all_bytes(),
            "log_batch_bytes": totals.batch_bytes,
            "log_delta_bytes": totals.page_bytes,
            "frames_in": progress.frames,
            "frame_bytes_in": progress.frame_bytes,
            "console_bytes": progress.console_bytes,
            "kicks": self.kicks,
            "guest_seconds": self.guest.as_secs_f64(),
            "wall_seconds": self.wall.as_secs_f64(),
            "divergence": self.divergence.as_ref().map(|divergence| serde_json::json!({
                "what": divergence.mismatch.to_string(),
                "batch": divergence.batch.batch.get(),
                "first_stop": divergence.batch.first_stop.plus(1).get(),
                "last_stop": divergence.batch.last_stop.get(),
                "stop": divergence.stop.get(),
                "rip": format!("{:#x}", divergence.registers.rip()),
                "symbol": self.symbol(divergence.registers.rip()),
            })),
        })
    }
}
