//! A recording, or the parts of a ring, with where each begins and ends by stops, guest time and the calendar: what a place
//! as it was typed is.
//!
//! Nothing is guessed: a place that lies in several parts, or that the calendar showed twice, is an error that names them.

use lockstep_proto::quantity::StopNumber;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use jiff::civil::{DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use lockstep_logcodec::{LogReader, Record};

use crate::beginning::goes_on;
use crate::calendar::{Calendar, Moment};
use crate::entries::{Entries, start_time};
use crate::place::Place;
use crate::position::Position;
use crate::ring;

/// One recording.
struct Part {
    directory: PathBuf,
    /// The stop and the guest time, in nanoseconds, where it begins.
    start: (StopNumber, u64),
    /// The last ones that it covers by now.
    end: (StopNumber, u64),
    calendar: Calendar,
    /// The machine of the part before goes on in it, without a hole.
    continues: bool,
}

/// A recording, or a ring's parts, oldest first.
pub struct Parts {
    directory: PathBuf,
    parts: Vec<Part>,
    zone: TimeZone,
}

/// Where a range of places lies.
pub struct Range {
    /// The recordings, one after the other. Each but the last goes on in the next one, or ends before it begins.
    pub directories: Vec<PathBuf>,
    /// In the first one.
    pub from: Position,
    /// In the last one.
    pub to: Position,
}

impl Range {
    /// Whether a place, of the recording with this number, comes before it.
    pub fn is_before(&self, part: usize, stop: StopNumber, guest_ns: u64) -> bool {
        part == 0 && self.from.order_of(stop, guest_ns).is_lt()
    }

    /// Whether it comes after it.
    pub fn is_after(&self, part: usize, stop: StopNumber, guest_ns: u64) -> bool {
        part + 1 == self.directories.len() && self.to.order_of(stop, guest_ns).is_gt()
    }
}

impl Parts {
    /// Of the recording or ring in `directory`.
    pub fn of(directory: &Path) -> Result<Self> {
        let ring = ring::whole_parts(directory);
        let directories = if ring.is_empty() {
            vec![directory.to_owned()]
        } else {
            ring.into_iter().map(|part| part.directory).collect()
        };
        let mut parts: Vec<Part> = Vec::with_capacity(directories.len());
        for directory in directories {
            let part = Part::of(directory, parts.last())?;
            parts.push(part);
        }
        Ok(Self {
            directory: directory.to_owned(),
            parts,
            zone: TimeZone::system(),
        })
    }

    /// The part that a place lies in, and its position there. A place after the end is one that the part does not have.
    fn find(&self, place: Place) -> Result<(usize, Position)> {
        let last = self.parts.len() - 1;
        match place {
            Place::Position(Position::End) => Ok((last, Position::End)),
            Place::Position(position) if last == 0 => Ok((0, position)),
            Place::Position(position) => self.position(position),
            Place::BeforeEnd(ns) => self.moment(self.last().minus_ns(ns)),
            Place::Instant(instant) => self.moment(instant.into()),
            Place::Local(local) => match self.instants(local)[..] {
                [] => bail!(
                    "{local} is no time in {}: the clock is set forward over it",
                    self.zone_name()
                ),
                [moment] => self.moment(moment),
                ref moments => self.only(&local, moments),
            },
            Place::TimeOfDay(time) => self.only(&time, &self.on_its_days(time)),
        }
    }

    /// The part that has all of these, and their positions there.
    pub fn one(&self, places: &[Place]) -> Result<(PathBuf, Vec<Position>)> {
        let found: Vec<_> = places.iter().map(|&place| self.find(place)).collect::<Result<_>>()?;
        let index = found.first().map_or(self.parts.len() - 1, |(index, _)| *index);
        if let Some((other, position)) = found.iter().find(|(other, _)| *other != index) {
            bail!(
                "{} lies in {}, and {position} in {}: a replay is of one part; name the part, or positions in one",
                found[0].1,
                self.parts[index].directory.display(),
                self.parts[*other].directory.display()
            );
        }
        let directory = self.parts[index].directory.clone();
        Ok((directory, found.into_iter().map(|(_, position)| position).collect()))
    }

    /// All parts from one place to another; a range without its end ends where the last part does.
    pub fn range(&self, from: Option<Place>, to: Option<Place>) -> Result<Range> {
        let (first, from) = from.map_or(Ok((0, Position::Stop(StopNumber::START))), |from| self.find(from))?;
        let (last, to) = to.map_or(Ok((self.parts.len() - 1, Position::End)), |to| self.find(to))?;
        ensure!(
            first <= last,
            "{from} lies in {}, which comes after {}, where {to} is: the range ends before it begins",
            self.parts[first].directory.display(),
            self.parts[last].directory.display()
        );
        let parts = self.parts[first..=last].iter();
        Ok(Range {
            directories: parts.map(|part| part.directory.clone()).collect(),
            from,
            to,
        })
    }

    /// The time of the calendar at the beginning of all.
    fn first(&self) -> Moment {
        self.parts
            .iter()
            .map(Part::begins)
            .min()
            .unwrap_or_else(|| self.parts[0].begins())
    }

    /// The time of the calendar where the last part ends.
    fn last(&self) -> Moment {
        let part = &self.parts[self.parts.len() - 1];
        part.calendar.at(part.end.1)
    }

    fn extent(&self) -> String {
        format!("it goes from {} to {}", self.first(), self.last())
    }

    /// Of the parts with a stop or guest time, the last one of each machine: it has the least to replay.
    fn position(&self, position: Position) -> Result<(usize, Position)> {
        let mut found: Vec<usize> = Vec::new();
        for (index, part) in self.parts.iter().enumerate() {
            let begins = position.order_of(part.start.0, part.start.1);
            // Where a part goes on, the one before it has its first point too, and may have more turns at that stop.
            let has_begun = begins.is_lt() || begins.is_eq() && !part.continues;
            if !has_begun || position.order_of(part.end.0, part.end.1).is_lt() {
                continue;
            }
            let goes_on = found
                .last()
                .is_some_and(|&last| self.parts[last + 1..=index].iter().all(|part| part.continues));
            if goes_on {
                found.pop();
            }
            found.push(index);
        }
        match found[..] {
            [index] => Ok((index, position)),
            [] => bail!(
                "{position} is in no part of the ring {}: `lockstep-debug info` tells what each has",
                self.directory.display()
            ),
            _ => bail!(
                "{position} is there more than once, as the machine was started more than once: in {}; name the part, or say \
                 a time of the calendar",
                self.names(&found)
            ),
        }
    }

    fn names(&self, parts: &[usize]) -> String {
        let names = parts
            .iter()
            .map(|&index| self.parts[index].directory.display().to_string());
        names.collect::<Vec<_>>().join(" and in ")
    }

    /// The calendar's time where a part ends, or goes on in the next.
    fn ends(&self, index: usize) -> Moment {
        let part = &self.parts[index];
        let next = self.parts.get(index + 1).filter(|next| next.continues);
        part.calendar.at(next.map_or(part.end.1, |next| next.start.1))
    }

    /// Where the calendar showed `moment`: the parts, and the guest times there.
    fn hits(&self, moment: Moment) -> Vec<(usize, u64)> {
        let hit = |(index, part): (usize, &Part)| {
            let begins = part.begins();
            let has_begun = begins < moment || begins == moment && !part.continues;
            (has_begun && moment <= self.ends(index))
                .then(|| Some((index, part.calendar.guest_ns(moment)?)))
                .flatten()
        };
        self.parts.iter().enumerate().filter_map(hit).collect()
    }

    fn moment(&self, moment: Moment) -> Result<(usize, Position)> {
        match self.hits(moment)[..] {
            [(index, guest_ns)] => return Ok((index, Position::Time(guest_ns))),
            [] => {}
            ref hits => bail!(
                "{moment} was there more than once, as the calendar was set back: {}",
                self.told(hits)
            ),
        }
        let index = self.parts.len() - 1;
        if moment > self.last()
            && let Some(guest_ns) = self.parts[index].calendar.guest_ns(moment)
        {
            return Ok((index, Position::Time(guest_ns)));
        }
        let before = (0..=index).filter(|&index| self.ends(index) < moment).max();
        match before {
            Some(before) if before < index => bail!(
                "nothing was recorded at {moment}: {} ends at {}, and {} begins at {}",
                self.parts[before].directory.display(),
                self.ends(before),
                self.parts[before + 1].directory.display(),
                self.parts[before + 1].begins()
            ),
            _ => bail!("{moment} is not in {}: {}", self.directory.display(), self.extent()),
        }
    }

    fn told(&self, hits: &[(usize, u64)]) -> String {
        let hit = |(index, guest_ns): &(usize, u64)| {
            let part = self.parts[*index].directory.display();
            format!("in {part} at guest time {}", Position::Time(*guest_ns))
        };
        hits.iter().map(hit).collect::<Vec<_>>().join(" and ")
    }

    /// The only one of `moments`, which were typed as `typed`, that was recorded.
    fn only(&self, typed: &dyn std::fmt::Display, moments: &[Moment]) -> Result<(usize, Position)> {
        let recorded: Vec<_> = moments
            .iter()
            .filter(|moment| !self.hits(**moment).is_empty())
            .collect();
        match recorded[..] {
            [moment] => self.moment(*moment),
            [] => bail!(
                "{typed} ({}) is not in {}: {}",
                self.zone_name(),
                self.directory.display(),
                self.extent()
            ),
            [first, .., last] => bail!(
                "{typed} ({}) was there {} times, first at {first} and last at {last}: give the date and the offset from UTC",
                self.zone_name(),
                recorded.len()
            ),
        }
    }

    /// All times of the calendar that a clock on this host's wall shows as this: none where it is set forward, two where it
    /// is set back.
    fn instants(&self, local: DateTime) -> Vec<Moment> {
        let offsets = match self.zone.to_ambiguous_timestamp(local).offset() {
            AmbiguousOffset::Unambiguous { offset } => vec![offset],
            AmbiguousOffset::Gap { .. } => Vec::new(),
            AmbiguousOffset::Fold { before, after } => vec![before, after],
        };
        let instants = offsets.into_iter().filter_map(|offset| offset.to_timestamp(local).ok());
        instants.map(Moment::from).collect()
    }

    /// This time of the day, on all days of the recording.
    fn on_its_days(&self, time: Time) -> Vec<Moment> {
        let mut moments = Vec::new();
        let mut days: Vec<_> = Vec::new();
        for index in 0..self.parts.len() {
            let ends = [self.parts[index].begins(), self.ends(index)].map(|moment| moment.in_zone(&self.zone));
            let [Some(first), Some(last)] = ends else { continue };
            // A part of a year and more has the time anyhow, more than once.
            let all = first
                .date()
                .series(jiff::Span::new().days(1))
                .take_while(|day| *day <= last.date());
            days.extend(all.take(MOST_DAYS));
        }
        days.sort();
        days.dedup();
        for day in days {
            moments.extend(self.instants(day.to_datetime(time)));
        }
        moments
    }

    fn zone_name(&self) -> String {
        self.zone
            .iana_name()
            .map_or_else(|| "this host's time zone".into(), str::to_owned)
    }
}

/// A place as it was typed, as a position in the recording in `directory`.
pub fn position_in(directory: &Path, text: &str) -> Result<Position> {
    match text.parse()? {
        Place::Position(position) => Ok(position),
        place => Ok(Parts::of(directory)?.find(place)?.1),
    }
}

/// Days of a part on which a time of the day is looked for.
const MOST_DAYS: usize = 400;

impl Part {
    fn of(directory: PathBuf, before: Option<&Self>) -> Result<Self> {
        let reader = LogReader::open(&directory)?;
        let identity = reader.identity().clone();
        let start = (StopNumber::new(identity.start_stop), start_time(&directory));
        let end = end(reader, &directory, start);
        let before = before.filter(|before| goes_on(&identity, &before.directory));
        Ok(Self {
            calendar: Calendar::of(&identity, start.1, before.map(|before| &before.calendar)),
            continues: before.is_some(),
            directory,
            start,
            end,
        })
    }

    fn begins(&self) -> Moment {
        self.calendar.at(self.start.1)
    }
}

/// The last stop and guest time of a log that begins at `start`, as far as it is good: who reads it tells of damage.
fn end(mut reader: LogReader, directory: &Path, start: (StopNumber, u64)) -> (StopNumber, u64) {
    // A log that was closed tells at its end.
    if let Ok(false) = reader.seek(StopNumber::NO_LIMIT)
        && let Ok(Some(Record::End(end))) = reader.next_record()
        && StopNumber::new(end.last_stop) >= start.0
        && end.guest_ns >= start.1
    {
        return (StopNumber::new(end.last_stop), end.guest_ns);
    }
    let mut end = start;
    if let Ok(mut entries) = Entries::open(directory) {
        while let Ok(Some(entry)) = entries.next() {
            end.1 = entry.guest_ns;
        }
        end.0 = entries.last_stop();
    }
    end
}
