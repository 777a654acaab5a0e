//! `lockstep-debug verify`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lockstep_backup::open::{Opened, open};
use lockstep_backup::{Divergence, ReplayError};
use lockstep_logcodec::Ending;
use lockstep_primary::kicker::Kicker;
use lockstep_vmm::machine::Flow;
use lockstep_vmm::probe::at_start;

use crate::Recording;
use crate::info::{Totals, describe_ending};
use crate::symbols::Symbols;

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
    let directory = &options.recording.directory;
    let totals = Totals::of(directory)?;
    let Opened {
        mut machine,
        mut replayer,
        identity,
    } = open(directory, &at_start()?)?;
    let symbols = Symbols::load(options.vmlinux.as_deref(), &identity)?;
    let kicker = match (options.kicks, machine.kick_handle()) {
        (Some(rate), Some(handle)) => Some(Kicker::start(handle, rate)?),
        _ => None,
    };
    let start = (machine.stop(), machine.now());
    let bar = progress_bar(totals.last_stop - start.0, options.json);
    let begin = Instant::now();
    let mut shown = begin;
    let result = loop {
        match machine.step(&mut replayer) {
            Ok(Flow::Continue) => {
                if shown.elapsed() > Duration::from_millis(100) {
                    shown = Instant::now();
                    bar.set_position(machine.stop() - start.0);
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
    let ending = replayer.ending();
    let report = Report {
        identical: divergence.is_none(),
        stops: machine.stop() - start.0,
        guest: Duration::from_nanos(machine.now() - start.1),
        wall,
        kicks,
        divergence,
        ending,
        totals,
        progress: replayer.progress(),
        counters: machine.counters(),
    };
    if options.json {
        println!("{}", report.json(symbols.as_ref()));
    } else {
        report.print(symbols.as_ref());
    }
    Ok(ExitCode::from(u8::from(!report.identical)))
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

struct Report {
    identical: bool,
    stops: u64,
    guest: Duration,
    wall: Duration,
    kicks: Option<u64>,
    divergence: Option<Box<Divergence>>,
    ending: Ending,
    totals: Totals,
    progress: lockstep_backup::Progress,
    counters: lockstep_vmm::machine::Counters,
}

impl Report {
    fn print(&self, symbols: Option<&Symbols>) {
        let (progress, counters, totals) = (&self.progress, &self.counters, &self.totals);
        let guest = self.guest.as_secs_f64();
        let wall = self.wall.as_secs_f64();
        if let Some(divergence) = &self.divergence {
            println!("verify: DIVERGED");
            print!("{divergence}");
            if let Some(name) = symbols.and_then(|symbols| symbols.name(divergence.registers.rip())) {
                println!("  rip is in {name}");
            }
        } else {
            println!("verify: identical");
        }
        println!("  log ends         {}", describe_ending(&self.ending));
        println!("  stops            {} natural, {} forced", self.stops, progress.deltas);
        println!(
            "  batches compared {} (registers, inputs and effects at every natural stop)",
            progress.batches
        );
        println!(
            "  memory compared  {} epochs over {} dirtied pages{}",
            progress.epochs,
            progress.epoch_pages,
            if progress.final_memory {
                ", and all of memory at the end"
            } else {
                ""
            }
        );
        println!(
            "  carried          {} deltas with {} pages, {:.1} ms of {:.1} ms guest time: not executed here, not compared",
            progress.deltas,
            progress.carried_pages,
            progress.carried_ns as f64 / 1e6,
            guest * 1e3
        );
        println!(
            "  interrupts       {}; instructions assisted {}; MSR faults {}",
            counters.interrupts, counters.assists, counters.msr_faults
        );
        println!(
            "  log              {} bytes: turns {}, delta pages {}, other {}",
            totals.all_bytes(),
            totals.batch_bytes,
            totals.page_bytes,
            totals.other_bytes()
        );
        println!(
            "  network in       {} frames, {} bytes",
            progress.frames, progress.frame_bytes
        );
        if let Some(kicks) = self.kicks {
            println!("  random kicks     {kicks} during this replay");
        }
        println!(
            "  guest time       {guest:.3} s; replayed in {wall:.3} s ({:.1} x)",
            guest / wall.max(1e-9)
        );
    }

    fn json(&self, symbols: Option<&Symbols>) -> serde_json::Value {
        let (progress, counters, totals) = (&self.progress, &self.counters, &self.totals);
        serde_json::json!({
            "identical": self.identical,
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
                "batch": divergence.batch.batch,
                "first_stop": divergence.batch.first_stop + 1,
                "last_stop": divergence.batch.last_stop,
                "stop": divergence.stop,
                "rip": format!("{:#x}", divergence.registers.rip()),
                "symbol": symbols.and_then(|symbols| symbols.name(divergence.registers.rip())),
            })),
        })
    }
}
