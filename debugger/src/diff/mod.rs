//! `lockstep-debug diff`: the first difference of two logs of one machine, of a log and its replay, or that a pair's
//! divergence report tells.

mod logs;
mod replay;
mod report;
mod turns;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{ArgGroup, Args};
use lockstep_node::{say, say_on};
use lockstep_proto::quantity::{BatchNumber, StopNumber};
use serde_json::{Value, json};

use crate::position::Position;
use lockstep_node::out::one_line;

#[derive(Args)]
#[command(group(ArgGroup::new("what").args(["log", "report"]).required(true)))]
pub struct DiffOptions {
    /// The recording that counts as right. Alone, it is compared with its replay here.
    #[arg(value_name = "LOGDIR")]
    log: Option<PathBuf>,
    /// The recording to compare with it: of the same machine, from the same start.
    #[arg(value_name = "LOGDIR2", requires = "log")]
    other: Option<PathBuf>,
    /// Explain the last divergence report in a file: one that a node of a pair kept, or the messages of one.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The machine's vmlinux, for symbols.
    #[arg(long, value_name = "FILE")]
    vmlinux: Option<PathBuf>,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub fn run(options: &DiffOptions) -> Result<ExitCode> {
    let vmlinux = options.vmlinux.as_deref();
    let found = match (&options.log, &options.other, &options.report) {
        (Some(log), Some(other), _) => logs::compare(log, other, vmlinux)?,
        (Some(log), None, _) => replay::compare(log, vmlinux, options.json)?,
        (None, _, Some(report)) => report::explain(report, vmlinux)?,
        // The group of arguments above excludes it.
        (None, _, None) => anyhow::bail!("give a recording, or --report"),
    };
    if options.json {
        say!("{:#}", found.json());
    } else {
        found.print();
    }
    Ok(ExitCode::from(u8::from(matches!(found, Found::Difference(_)))))
}

/// What a comparison found.
enum Found {
    /// No difference: what was compared.
    Same(String),
    /// The first difference.
    Difference(Box<Difference>),
}

/// The first difference.
#[derive(Default)]
struct Difference {
    /// What differs, in a sentence.
    what: String,
    /// The natural stop, or the one before it for a forced turn.
    stop: StopNumber,
    /// Guest time there, where it is known.
    guest_ns: Option<u64>,
    /// The batch's number in what is right, and in the other.
    batch: (Option<BatchNumber>, Option<BatchNumber>),
    /// What stands there in what is right, and in the other.
    lines: Option<(String, String)>,
    /// Single values that differ.
    values: Vec<Differs>,
    /// What else is known, as text.
    notes: Vec<String>,
}

/// A value that differs.
struct Differs {
    name: String,
    expected: String,
    actual: String,
}

impl Differs {
    fn new(name: impl Into<String>, expected: impl Into<String>, actual: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            expected: expected.into(),
            actual: actual.into(),
        }
    }
}

impl Found {
    fn print(&self) {
        let difference = match self {
            Self::Same(compared) => {
                say!("diff: no difference: {compared}");
                return;
            }
            Self::Difference(difference) => difference,
        };
        say_on!("diff: {}\n  at stop {}", difference.what, difference.stop);
        if let Some(ns) = difference.guest_ns {
            say_on!(", guest time {}", Position::Time(ns));
        }
        match difference.batch {
            (Some(one), Some(other)) if one != other => say_on!(", batch {one} and batch {other} of the other"),
            (Some(one), _) => say_on!(", batch {one}"),
            (None, Some(other)) => say_on!(", batch {other} of the other"),
            (None, None) => {}
        }
        say!();
        if let Some((expected, actual)) = &difference.lines {
            say!("  expected  {}\n  actual    {}", one_line(expected), one_line(actual));
        }
        if !difference.values.is_empty() {
            say!("  {:<38}  {:<26}  actual", "value", "expected");
        }
        for Differs { name, expected, actual } in &difference.values {
            say!(
                "  {:<38}  {:<26}  {}",
                one_line(name),
                one_line(expected),
                one_line(actual)
            );
        }
        for note in &difference.notes {
            for line in note.lines() {
                say!("  {line}");
            }
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Same(compared) => json!({ "same": true, "compared": compared }),
            Self::Difference(difference) => json!({
                "same": false,
                "what": difference.what,
                "stop": difference.stop.get(),
                "guest_ns": difference.guest_ns,
                "batch": difference.batch.0.map(BatchNumber::get),
                "other_batch": difference.batch.1.map(BatchNumber::get),
                "expected": difference.lines.as_ref().map(|lines| &lines.0),
                "actual": difference.lines.as_ref().map(|lines| &lines.1),
                "values": difference.values.iter().map(|value| json!({
                    "name": value.name,
                    "expected": value.expected,
                    "actual": value.actual,
                })).collect::<Vec<_>>(),
                "notes": difference.notes,
            }),
        }
    }
}
