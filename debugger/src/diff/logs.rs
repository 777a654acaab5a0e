//! Two logs of one machine.
//!
//! Batches need not end at the same stops: turns are compared with turns, and digests where both logs have one.

use std::path::Path;

use anyhow::{Result, bail};
use lockstep_logcodec::limits::MAX_FRAME_NUMBER;
use lockstep_logcodec::{Ending, LogReader, describe};
use lockstep_proto::quantity::{PageNumber, StopNumber};
use lockstep_proto::{End, Identity};
use lockstep_replay::feed::{Feed, Mark, Next, Placed};

use super::{Difference, Differs, Found, turns};
use crate::entries::start_time;
use crate::symbols::Symbols;
use crate::totals::describe_ending;

/// What comes next in a log.
enum Item {
    Turn(Box<Placed>),
    /// A batch ends.
    Mark(Mark),
    /// The log ends; with its end, if it was closed in order.
    End(Option<Box<End>>),
}

/// One of the logs.
struct Side {
    feed: Feed,
    next: Item,
    /// The batch in work was followed to its mark.
    marked: bool,
    guest_ns: u64,
    turns: u64,
}

impl Side {
    fn open(reader: LogReader, directory: &Path) -> Result<Self> {
        let start = reader.identity().start_stop;
        let mut side = Self {
            feed: Feed::new(
                Box::new(reader),
                StopNumber::new(start),
                PageNumber::new(MAX_FRAME_NUMBER),
            ),
            next: Item::End(None),
            marked: true,
            guest_ns: start_time(directory),
            turns: 0,
        };
        side.advance()?;
        Ok(side)
    }

    fn advance(&mut self) -> Result<()> {
        self.next = loop {
            if let Some(placed) = self.feed.turns.pop_front() {
                self.guest_ns = self.guest_ns.saturating_add(placed.turn.clock.unwrap_or(0));
                self.turns += 1;
                break Item::Turn(Box::new(placed));
            }
            if !self.marked {
                self.marked = true;
                break Item::Mark(self.feed.mark.clone());
            }
            match self.feed.advance()? {
                Next::Batch => self.marked = false,
                Next::End(end) => break Item::End(Some(end)),
                Next::Stop => break Item::End(None),
            }
        };
        Ok(())
    }

    /// What stands here, in words.
    fn describe(&self) -> String {
        match &self.next {
            Item::Turn(placed) => format!("stop {}: {}", placed.stop, describe::turn(&placed.turn)),
            Item::Mark(mark) => format!("no turn up to stop {}", mark.last_stop),
            Item::End(Some(end)) => format!("the end, at stop {}", end.last_stop),
            Item::End(None) => format!("ends after stop {}, {}", self.feed.mark.last_stop, self.ending()),
        }
    }

    /// How the log ends, in words.
    fn ending(&self) -> String {
        match &self.next {
            Item::End(Some(end)) => describe_ending(&Ending::Clean((**end).clone())),
            _ => describe_ending(&self.feed.ending()),
        }
    }

    /// The stop of what stands here.
    fn stop(&self) -> StopNumber {
        match &self.next {
            Item::Turn(placed) => placed.stop,
            Item::Mark(mark) => mark.last_stop,
            Item::End(_) => self.feed.mark.last_stop,
        }
    }
}

/// Compares the log in `other` with the one in `log`, which counts as right.
pub fn compare(log: &Path, other: &Path, vmlinux: Option<&Path>) -> Result<Found> {
    let (right, wrong) = (LogReader::open(log)?, LogReader::open(other)?);
    same_machine(log, right.identity(), other, wrong.identity())?;
    let symbols = Symbols::load(vmlinux, right.identity())?;
    let mut right = Side::open(right, log)?;
    let mut wrong = Side::open(wrong, other)?;
    loop {
        let difference = match (&right.next, &wrong.next) {
            (Item::Turn(one), Item::Turn(two)) => {
                let values = turns::compare(one, two, symbols.as_ref());
                (!values.is_empty()).then(|| {
                    let what = if one.stop == two.stop {
                        "a turn differs"
                    } else {
                        "a turn is at one stop here and at another there"
                    };
                    (what, values)
                })
            }
            (Item::Mark(one), Item::Mark(two)) if one.last_stop == two.last_stop => {
                (one.digest != two.digest).then(|| {
                    let what = "registers or effects differ, though all turns up to here are equal";
                    (
                        what,
                        vec![Differs::new(
                            "digest chain",
                            format!("{:x}", one.digest),
                            format!("{:x}", two.digest),
                        )],
                    )
                })
            }
            (Item::Mark(one), Item::Mark(two)) => {
                let behind = if one.last_stop < two.last_stop {
                    &mut right
                } else {
                    &mut wrong
                };
                behind.advance()?;
                continue;
            }
            (Item::Mark(_), _) => {
                right.advance()?;
                continue;
            }
            (_, Item::Mark(_)) => {
                wrong.advance()?;
                continue;
            }
            (Item::End(one), Item::End(two)) => {
                let values = ends(one.as_deref(), two.as_deref(), &right, &wrong);
                if values.is_empty() {
                    let end = right.ending();
                    return Ok(Found::Same(format!(
                        "{} turns in {} stops are equal; both end {end}",
                        right.turns, right.feed.mark.last_stop,
                    )));
                }
                Some(("the logs end in different ways", values))
            }
            (Item::End(_), _) | (_, Item::End(_)) => Some(("one log goes on where the other has no more", Vec::new())),
        };
        if let Some((what, values)) = difference {
            let first = if right.stop() <= wrong.stop() { &right } else { &wrong };
            return Ok(Found::Difference(Box::new(Difference {
                what: what.into(),
                stop: first.stop(),
                guest_ns: Some(first.guest_ns),
                batch: (Some(right.feed.mark.batch), Some(wrong.feed.mark.batch)),
                lines: Some((right.describe(), wrong.describe())),
                values,
                notes: Vec::new(),
            })));
        }
        right.advance()?;
        wrong.advance()?;
    }
}

/// Refuses logs that do not begin at the same state: nothing in them could be compared.
fn same_machine(log: &Path, one: &Identity, other: &Path, two: &Identity) -> Result<()> {
    let differs = if one.start_digest != two.start_digest {
        "start states"
    } else if one.machine != two.machine {
        "configurations"
    } else if one.disk_digest_chunk == two.disk_digest_chunk && one.disk_digests != two.disk_digests {
        // Those that are made another way cannot be compared.
        "disks"
    } else if (one.start_stop, &one.start_chain) != (two.start_stop, &two.start_chain) {
        "positions at the start"
    } else {
        return Ok(());
    };
    bail!(
        "{} and {} are no logs of the same machine from the same start: they have different {differs}",
        log.display(),
        other.display()
    )
}

fn ends(one: Option<&End>, two: Option<&End>, right: &Side, wrong: &Side) -> Vec<Differs> {
    let mut values = Vec::new();
    let mut value = |name: &str, one: String, two: String| {
        if one != two {
            values.push(Differs::new(name, one, two));
        }
    };
    let [last, other_last] = [right, wrong].map(|side| side.feed.mark.last_stop.to_string());
    let (Some(one), Some(two)) = (one, two) else {
        value("last stop", last, other_last);
        // Where both have no end, it does not matter how much of a record was cut off.
        if one.is_some() != two.is_some() {
            value("ends", right.ending(), wrong.ending());
        }
        return values;
    };
    value(
        "reason",
        one.reason().as_str_name().into(),
        two.reason().as_str_name().into(),
    );
    value("detail", one.detail.clone(), two.detail.clone());
    value("last stop", last, other_last);
    value("digest chain", format!("{:x}", one.digest), format!("{:x}", two.digest));
    value("guest time", one.guest_ns.to_string(), two.guest_ns.to_string());
    value(
        "digest of all memory",
        format!("{:x}", one.memory_digest),
        format!("{:x}", two.memory_digest),
    );
    values
}
