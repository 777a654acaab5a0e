//! A log as its turns, each with its stop and the guest time there.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lockstep_logcodec::{Ending, LogReader, Record, positions};
use lockstep_node::recording::start_snapshot;
use lockstep_proto::quantity::{BatchNumber, StopNumber};
use lockstep_proto::{TermBegun, Turn};
use lockstep_vmm::snapshot::Restore;

/// A turn and where it stands.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Number of its recording, from 0, where several are read.
    pub part: usize,
    /// Number of its batch in the log, from 0.
    pub batch: BatchNumber,
    /// The natural stop, or the one before it for a forced turn.
    pub stop: StopNumber,
    /// Guest time after the turn, in nanoseconds since the machine was made.
    pub guest_ns: u64,
    /// What entered.
    pub turn: Turn,
}

/// The turns of a log, or of several, of which each is read up to where the next one begins.
pub struct Entries {
    reader: LogReader,
    part: usize,
    guest_ns: u64,
    batch: BatchNumber,
    waiting: VecDeque<Entry>,
    terms: Vec<(usize, TermBegun)>,
    /// The logs that come after this one.
    more: VecDeque<PathBuf>,
    next: Option<LogReader>,
}

impl Entries {
    /// Of the recording in `directory`.
    pub fn open(directory: &Path) -> Result<Self> {
        Self::over(&[directory])
    }

    /// Of recordings one after the other, one at least: parts of a ring.
    pub fn over(directories: &[impl AsRef<Path>]) -> Result<Self> {
        let (first, more) = directories.split_first().context("no recording")?;
        let mut entries = Self {
            reader: LogReader::open(first.as_ref())?,
            part: 0,
            guest_ns: start_time(first.as_ref()),
            batch: BatchNumber::FIRST,
            waiting: VecDeque::new(),
            terms: Vec::new(),
            more: more.iter().map(|directory| directory.as_ref().to_owned()).collect(),
            next: None,
        };
        entries.look_ahead()?;
        Ok(entries)
    }

    fn look_ahead(&mut self) -> Result<()> {
        let next = self.more.front().map(|directory| LogReader::open(directory));
        self.next = next.transpose()?;
        Ok(())
    }

    /// Goes on with the next log. False: this is the last one.
    fn advance(&mut self) -> Result<bool> {
        let Some((reader, directory)) = self.next.take().zip(self.more.pop_front()) else {
            return Ok(false);
        };
        self.reader = reader;
        self.part += 1;
        self.guest_ns = start_time(&directory);
        self.batch = BatchNumber::FIRST;
        self.look_ahead()?;
        Ok(true)
    }

    /// Whether the next log begins where a batch ends with this stop and digest.
    fn goes_on_from(&self, stop: StopNumber, digest: &[u8]) -> bool {
        let begins = |next: &LogReader| {
            StopNumber::new(next.identity().start_stop) == stop && next.identity().start_chain == digest
        };
        self.next.as_ref().is_some_and(begins)
    }

    /// The next turn. `None` where there is none (yet): in a log that is still being written, ask again.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        self.terms.clear();
        while self.waiting.is_empty() {
            match self.reader.next_record()? {
                None => {
                    if !self.advance()? {
                        return Ok(None);
                    }
                }
                Some(Record::Pages(_) | Record::End(_)) => {}
                Some(Record::Batch(batch)) => {
                    self.terms
                        .extend(batch.terms.iter().map(|term| (self.part, term.clone())));
                    for (stop, turn) in positions(&batch) {
                        self.guest_ns = self.guest_ns.saturating_add(turn.clock.unwrap_or(0));
                        self.waiting.push_back(Entry {
                            part: self.part,
                            batch: self.batch,
                            stop,
                            guest_ns: self.guest_ns,
                            turn: turn.clone(),
                        });
                    }
                    self.batch = self.batch.next();
                    if self.goes_on_from(StopNumber::new(batch.last_stop), &batch.digest) {
                        self.advance()?;
                    }
                }
            }
        }
        Ok(self.waiting.pop_front())
    }

    /// The arbiter's terms that began in what the last [`Entries::next`] has read, each with the number of its recording.
    pub fn terms(&self) -> &[(usize, TermBegun)] {
        &self.terms
    }

    /// The last natural stop that the log covers, as far as it was read.
    pub fn last_stop(&self) -> StopNumber {
        self.reader.stop()
    }

    /// Why the last [`Entries::next`] had none.
    pub fn ending(&self) -> Ending {
        self.reader.ending()
    }
}

/// Guest time where the recording begins. It is in the start state; where that cannot be read, times count from the
/// recording's beginning, and the user is told.
pub fn start_time(directory: &Path) -> u64 {
    match Restore::open(&start_snapshot(directory)) {
        Ok(start) => start.guest_ns(),
        Err(error) => {
            tracing::warn!("guest time counts from the recording's beginning: {error}");
            0
        }
    }
}
