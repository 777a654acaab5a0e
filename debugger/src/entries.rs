//! A log as its turns, each with its stop and the guest time there.

use std::collections::VecDeque;
use std::path::Path;

use anyhow::Result;
use lockstep_logcodec::{Ending, LogReader, Record, positions};
use lockstep_node::recording::start_snapshot;
use lockstep_proto::Turn;
use lockstep_proto::quantity::{BatchNumber, StopNumber};
use lockstep_vmm::snapshot::Restore;

/// A turn and where it stands.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Number of its batch in the log, from 0.
    pub batch: BatchNumber,
    /// The natural stop, or the one before it for a forced turn.
    pub stop: StopNumber,
    /// Guest time after the turn, in nanoseconds since the machine was made.
    pub guest_ns: u64,
    /// What entered.
    pub turn: Turn,
}

/// The turns of a log, in order.
pub struct Entries {
    reader: LogReader,
    guest_ns: u64,
    next: BatchNumber,
    waiting: VecDeque<Entry>,
}

impl Entries {
    /// Of the recording in `directory`.
    pub fn open(directory: &Path) -> Result<Self> {
        Ok(Self {
            reader: LogReader::open(directory)?,
            guest_ns: start_time(directory),
            next: BatchNumber::FIRST,
            waiting: VecDeque::new(),
        })
    }

    /// The next turn. `None` where there is none (yet): in a log that is still being written, ask again.
    pub fn next(&mut self) -> Result<Option<Entry>> {
        while self.waiting.is_empty() {
            match self.reader.next_record()? {
                None => return Ok(None),
                Some(Record::Pages(_) | Record::End(_)) => {}
                Some(Record::Batch(batch)) => {
                    for (stop, turn) in positions(&batch) {
                        self.guest_ns = self.guest_ns.saturating_add(turn.clock.unwrap_or(0));
                        self.waiting.push_back(Entry {
                            batch: self.next,
                            stop,
                            guest_ns: self.guest_ns,
                            turn: turn.clone(),
                        });
                    }
                    self.next = self.next.next();
                }
            }
        }
        Ok(self.waiting.pop_front())
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
