//! A ring of recordings: what `info` tells of one, and why the other commands want one of its parts.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use lockstep_logcodec::LogReader;
use lockstep_node::out::one_line;
use lockstep_node::recording::ring::{Part, parts};
use lockstep_node::say;
use lockstep_proto::quantity::StopNumber;
use serde_json::{Value, json};

use crate::beginning::{Beginning, goes_on};
use crate::calendar::Calendar;
use crate::entries::start_time;
use crate::totals::{Totals, describe_ending};

/// Columns for how a part begins.
const BEGINS: usize = 24;
/// Columns for a time of the calendar, to the second and with its offset.
const CALENDAR: usize = 25;

/// Whether `directory` is a ring's.
pub fn is_ring(directory: &Path) -> bool {
    !whole_parts(directory).is_empty()
}

/// The whole parts in `directory`; none where it is no ring.
pub fn whole_parts(directory: &Path) -> Vec<Part> {
    // What is no directory is told of by who reads it as a log.
    let mut parts = parts(directory).unwrap_or_default();
    parts.retain(|part| part.begun.is_some());
    parts
}

/// Refuses a ring's directory where one recording is wanted.
pub fn refuse(directory: &Path) -> Result<()> {
    let parts = whole_parts(directory);
    let Some((first, last)) = parts.first().zip(parts.last()) else {
        return Ok(());
    };
    bail!(
        "{} is a ring of {} recordings: name one of them, from {} to {}, or say a position; `lockstep-debug info {0}` tells what each has",
        directory.display(),
        parts.len(),
        first.directory.display(),
        last.directory.display()
    );
}

/// Tells what each part of a ring has. `None`: it is no ring.
pub fn info(directory: &Path, as_json: bool) -> Result<Option<ExitCode>> {
    let parts = whole_parts(directory);
    if parts.is_empty() {
        return Ok(None);
    }
    let mut told: Vec<Told> = Vec::with_capacity(parts.len());
    for part in &parts {
        let part = Told::of(part, told.last())?;
        told.push(part);
    }
    let parts = told;
    if as_json {
        let parts: Vec<_> = parts.iter().map(Told::json).collect();
        say!("{:#}", json!({ "parts": parts }));
    } else {
        say!(
            "{:<16} {:>12} {:>12} {:>12} {:>12} {:>12}  {:<CALENDAR$}  {:<BEGINS$}  ends",
            "part",
            "bytes",
            "from stop",
            "to stop",
            "from s",
            "to s",
            "calendar",
            "begins"
        );
        parts.iter().for_each(Told::print);
    }
    let is_damaged = parts.iter().any(|part| part.is_damaged);
    Ok(Some(if is_damaged {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }))
}

/// What is told of a part.
struct Told {
    name: String,
    bytes: u64,
    directory: PathBuf,
    stops: (StopNumber, StopNumber),
    guest_ns: (u64, u64),
    calendar: Calendar,
    begins: Beginning,
    ends: String,
    is_damaged: bool,
}

impl Told {
    fn of(part: &Part, before: Option<&Self>) -> Result<Self> {
        let reader = LogReader::open(&part.directory)?;
        let start = start_time(&part.directory);
        let before = before.filter(|before| goes_on(reader.identity(), &before.directory));
        let calendar = Calendar::of(reader.identity(), start, before.map(|before| &before.calendar));
        let first = reader.identity().start_stop;
        let begins = Beginning::of(reader.identity());
        let (totals, damage) = Totals::up_to_damage(reader, &part.directory)?;
        Ok(Self {
            directory: part.directory.clone(),
            calendar,
            name: part
                .directory
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            bytes: part.bytes,
            stops: (StopNumber::new(first.saturating_add(1)), totals.last_stop),
            guest_ns: (start, start.saturating_add(totals.guest_ns)),
            begins,
            is_damaged: damage.is_some(),
            ends: match (damage, &totals.ending) {
                (Some(damage), _) => format!("in damage: {damage}"),
                (None, ending) => ending.as_ref().map_or_else(String::new, describe_ending),
            },
        })
    }

    fn print(&self) {
        let seconds = |ns: u64| ns as f64 / 1e9;
        say!(
            "{:<16} {:>12} {:>12} {:>12} {:>12.3} {:>12.3}  {:<CALENDAR$}  {:<BEGINS$}  {}",
            one_line(&self.name),
            self.bytes,
            self.stops.0,
            self.stops.1,
            seconds(self.guest_ns.0),
            seconds(self.guest_ns.1),
            self.calendar.at(self.guest_ns.0).to_second(),
            self.begins.short(),
            one_line(&self.ends)
        );
    }

    fn json(&self) -> Value {
        json!({
            "part": self.name,
            "bytes": self.bytes,
            "first_stop": self.stops.0.get(),
            "last_stop": self.stops.1.get(),
            "start_ns": self.guest_ns.0,
            "end_ns": self.guest_ns.1,
            "from": self.calendar.at(self.guest_ns.0).utc(),
            "to": self.calendar.at(self.guest_ns.1).utc(),
            "damaged": self.is_damaged,
            "begins": self.begins.short(),
            "ends": self.ends,
        })
    }
}
