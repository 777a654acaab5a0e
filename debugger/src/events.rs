//! `lockstep-debug events`.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use lockstep_logcodec::{Ending, describe};
use lockstep_node::out::{Out, one_line, printable};
use lockstep_proto::Turn;
use regex::bytes::Regex;
use serde_json::{Value, json};

use crate::Recording;
use crate::entries::{Entries, Entry};
use crate::follow::Changes;
use crate::kinds::{Kind, Kinds};
use crate::parts::Range;
use crate::place::{Place, help};
use crate::totals::describe_ending;

#[derive(Args)]
pub struct EventsOptions {
    #[command(flatten)]
    recording: Recording,
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, help = help("Where the list begins"))]
    from: Option<Place>,
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, help = help("Where the list ends, included"))]
    to: Option<Place>,
    /// List only turns with something of this kind. Can be given several times.
    #[arg(long, value_name = "KIND")]
    kind: Vec<Kind>,
    /// List only turns whose line, typed bytes or received frames match this regular expression.
    #[arg(long, value_name = "PATTERN")]
    text: Option<Regex>,
    /// Wait for more at the end of a log that is still being written, until it is closed, --to is passed, or SIGINT.
    #[arg(long)]
    follow: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

pub fn run(options: &EventsOptions) -> Result<ExitCode> {
    let range = options.recording.range(options.from, options.to)?;
    // Before the first read: what is written after a read is then told.
    let last = &range.directories[range.directories.len() - 1];
    let changes = options.follow.then(|| Changes::watch(last)).transpose()?;
    let mut entries = Entries::over(&range.directories)?;
    let mut list = List::begin(options, &range)?;
    loop {
        while let Some(entry) = entries.next()? {
            if range.is_after(entry.part, entry.stop, entry.guest_ns) {
                return list.end();
            }
            list.entry(&entry)?;
            if changes
                .as_ref()
                .is_some_and(|changes| changes.is_signalled().unwrap_or(true))
            {
                return list.end();
            }
        }
        let ending = entries.ending();
        list.out.flush()?;
        match &changes {
            Some(changes) if !matches!(ending, Ending::Clean(_)) => {
                if !changes.wait()? {
                    return list.end();
                }
            }
            _ => {
                if !matches!(ending, Ending::Clean(_)) {
                    tracing::warn!("the log ends {}", describe_ending(&ending));
                }
                return list.end();
            }
        }
    }
}

/// What is written.
struct List<'a> {
    options: &'a EventsOptions,
    range: &'a Range,
    /// Of the part that the last line was of.
    part: usize,
    out: BufWriter<Out>,
}

impl<'a> List<'a> {
    fn begin(options: &'a EventsOptions, range: &'a Range) -> Result<Self> {
        let mut out = BufWriter::new(Out);
        if !options.json {
            writeln!(out, "{:>10}  {:>16}  {:<7}  what entered", "stop", "guest time", "kind")?;
        }
        Ok(Self {
            options,
            range,
            part: usize::MAX,
            out,
        })
    }

    /// The name of a ring's part; none where only one recording is listed.
    fn part(&self, entry: &Entry) -> Option<String> {
        let directories = &self.range.directories;
        let name = directories.get(entry.part)?.file_name()?;
        (directories.len() > 1).then(|| one_line(&name.to_string_lossy()).into())
    }

    fn entry(&mut self, entry: &Entry) -> Result<()> {
        let Entry {
            batch,
            stop,
            guest_ns,
            turn,
            ..
        } = entry;
        if self.range.is_before(entry.part, *stop, *guest_ns) {
            return Ok(());
        }
        let kinds = Kinds::of(turn);
        if !self.options.kind.is_empty() && !kinds.iter().any(|kind| self.options.kind.contains(&kind)) {
            return Ok(());
        }
        let line = describe::turn(turn);
        if self
            .options
            .text
            .as_ref()
            .is_some_and(|text| !matches(text, &line, turn))
        {
            return Ok(());
        }
        if self.options.json {
            let mut value = json!({
                "batch": batch.get(),
                "stop": stop.get(),
                "guest_ns": guest_ns,
                "kinds": kinds.iter().map(Kind::name).collect::<Vec<_>>(),
                "text": line,
            });
            if let Some(part) = self.part(entry) {
                value["part"] = part.into();
            }
            add_details(&mut value, turn);
            writeln!(self.out, "{}", printable(&value.to_string()))?;
        } else {
            if self.part != entry.part
                && let Some(part) = self.part(entry)
            {
                writeln!(self.out, "{part}")?;
            }
            self.part = entry.part;
            let kind = kinds.rarest().map_or_else(String::new, Kind::name);
            let (seconds, rest) = (guest_ns / 1_000_000_000, guest_ns % 1_000_000_000);
            writeln!(self.out, "{stop:>10}  {seconds:>6}.{rest:09}  {kind:<7}  {line}")?;
        }
        Ok(())
    }

    fn end(mut self) -> Result<ExitCode> {
        self.out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn matches(text: &Regex, line: &str, turn: &Turn) -> bool {
    text.is_match(line.as_bytes())
        || text.is_match(&turn.console)
        || turn.frames.iter().any(|frame| text.is_match(&frame.data))
}

/// What the turn's line only counts.
fn add_details(value: &mut Value, turn: &Turn) {
    if let Some(step) = turn.clock {
        value["clock_ns"] = step.into();
    }
    if let Some(random) = turn.random {
        value["random"] = format!("{random:#018x}").into();
    }
    if !turn.frames.is_empty() {
        let frame = |frame: &lockstep_proto::Frame| json!({ "nic": frame.nic, "bytes": frame.data.len() });
        value["frames"] = turn.frames.iter().map(frame).collect();
    }
    if !turn.console.is_empty() {
        value["console"] = String::from_utf8_lossy(&turn.console).into();
    }
    if !turn.keyboard.is_empty() {
        value["keyboard"] = turn.keyboard.iter().copied().collect();
    }
    if turn.power_button {
        value["power_button"] = true.into();
    }
    if !turn.disks.is_empty() {
        let done = |done: &lockstep_proto::DiskCompletion| json!({ "disk": done.disk, "request": done.request, "status": done.status });
        value["disks"] = turn.disks.iter().map(done).collect();
    }
    if !turn.entropy.is_empty() {
        value["entropy_bytes"] = turn.entropy.iter().map(bytes_of).sum::<usize>().into();
    }
    if let Some(forced) = &turn.forced {
        value["forced"] = json!({ "pages": forced.pages, "slice_ns": forced.slice_ns });
    }
    if let Some(epoch) = &turn.epoch {
        value["epoch"] = json!({ "pages": epoch.pages });
    }
}

fn bytes_of(answer: &impl AsRef<[u8]>) -> usize {
    answer.as_ref().len()
}
