//! `lockstep-debug events`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use lockstep_logcodec::{LogReader, Record, describe, positions};
use lockstep_proto::Turn;

use crate::Recording;
use crate::position::Position;

#[derive(Args)]
pub struct EventsOptions {
    #[command(flatten)]
    recording: Recording,
    /// Where the list begins: a natural stop (`1234`) or a guest time (`12.5s`).
    #[arg(long, value_name = "STOP|TIME", default_value = "0", hide_default_value = true)]
    from: Position,
    /// Where the list ends, included: a natural stop, a guest time, or `end`.
    #[arg(long, value_name = "STOP|TIME|END", default_value = "end", hide_default_value = true)]
    to: Position,
    /// List only turns with something of this kind. Can be given several times.
    #[arg(long, value_name = "KIND")]
    kind: Vec<Kind>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Clock,
    Random,
    Frame,
    Console,
    Disk,
    Entropy,
    Forced,
    Epoch,
}

fn kinds(turn: &Turn) -> Vec<Kind> {
    [
        (turn.clock.is_some(), Kind::Clock),
        (turn.random.is_some(), Kind::Random),
        (!turn.frames.is_empty(), Kind::Frame),
        (!turn.console.is_empty(), Kind::Console),
        (!turn.disks.is_empty(), Kind::Disk),
        (!turn.entropy.is_empty(), Kind::Entropy),
        (turn.forced.is_some(), Kind::Forced),
        (turn.epoch.is_some(), Kind::Epoch),
    ]
    .into_iter()
    .filter_map(|(present, kind)| present.then_some(kind))
    .collect()
}

pub fn run(options: &EventsOptions) -> Result<ExitCode> {
    let mut reader = LogReader::open(&options.recording.directory)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut guest_ns = 0;
    'log: while let Some(record) = reader.next_record()? {
        let Record::Batch(batch) = record else { continue };
        for (stop, turn) in positions(&batch) {
            guest_ns += turn.clock.unwrap_or(0);
            let kinds = kinds(turn);
            let wanted = options.kind.is_empty() || kinds.iter().any(|kind| options.kind.contains(kind));
            if options.to.order_of(stop, guest_ns).is_gt() {
                break 'log;
            }
            if !wanted || options.from.order_of(stop, guest_ns).is_lt() {
                continue;
            }
            if options.json {
                let names: Vec<_> = kinds.iter().map(|kind| format!("{kind:?}").to_lowercase()).collect();
                let value = serde_json::json!({
                    "stop": stop,
                    "guest_ns": guest_ns,
                    "kinds": names,
                    "text": describe::turn(turn),
                });
                writeln!(out, "{value}")?;
            } else {
                writeln!(
                    out,
                    "{stop:>10}  {:>14.6}  {}",
                    guest_ns as f64 / 1e9,
                    describe::turn(turn)
                )?;
            }
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
