//! All turns of a log by number, small enough to be kept; their texts are read again when they are shown.

use std::path::{Path, PathBuf};

use anyhow::Result;
use lockstep_logcodec::{LogReader, Record, describe, positions};
use lockstep_proto::quantity::StopNumber;
use regex::Regex;

use crate::entries::Entries;
use crate::kinds::{Kind, Kinds};
use crate::parts::position_in;
use crate::position::Position;

/// Turns that are kept at most: 24 bytes each.
const MAX_ROWS: usize = 10_000_000;
/// Texts that are read together.
const WINDOW: usize = 256;

/// A turn, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its natural stop, or the one before it.
    pub stop: StopNumber,
    /// Guest time after it, in nanoseconds.
    pub guest_ns: u64,
    /// What entered.
    pub kinds: Kinds,
}

/// The turns of a log.
pub struct Index {
    directory: PathBuf,
    rows: Vec<Row>,
    /// Whether there are more turns than are kept.
    cut: bool,
    /// The last stop that the log covers; at the stops after the last turn nothing enters.
    last_stop: StopNumber,
    /// Number of the first text in the window, and the texts.
    window: (usize, Vec<String>),
}

impl Index {
    /// Reads the log in `directory` once.
    pub fn read(directory: &Path) -> Result<Self> {
        let mut entries = Entries::open(directory)?;
        let mut rows = Vec::new();
        let mut cut = false;
        while let Some(entry) = entries.next()? {
            if rows.len() == MAX_ROWS {
                cut = true;
                break;
            }
            rows.push(Row {
                stop: entry.stop,
                guest_ns: entry.guest_ns,
                kinds: Kinds::of(&entry.turn),
            });
        }
        Ok(Self {
            directory: directory.into(),
            rows,
            cut,
            last_stop: entries.last_stop(),
            window: (0, Vec::new()),
        })
    }

    /// The turns.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The last stop that one can go to.
    pub fn last_stop(&self) -> StopNumber {
        self.last_stop
    }

    /// Whether the log has more turns than are listed.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// The last turn at or before a stop; the first one, if there is none.
    pub fn at_stop(&self, stop: StopNumber) -> usize {
        self.rows.partition_point(|row| row.stop <= stop).saturating_sub(1)
    }

    /// A position as it was typed.
    pub fn position(&self, text: &str) -> Result<Position> {
        position_in(&self.directory, text)
    }

    /// The stop at a position.
    pub fn stop_of(&self, position: Position) -> Option<StopNumber> {
        match position {
            Position::Stop(stop) => Some(stop),
            Position::End => Some(self.last_stop),
            Position::Time(at) => {
                let after = self.rows.partition_point(|row| row.guest_ns < at);
                self.rows.get(after).map(|row| row.stop)
            }
        }
    }

    /// A turn's text.
    pub fn text(&mut self, number: usize) -> Result<&str> {
        let (first, texts) = &self.window;
        if !(*first..first + texts.len()).contains(&number) {
            // A page before it, too: lists scroll both ways.
            let begin = number.saturating_sub(WINDOW / 4);
            self.window = (begin, self.read_texts(begin)?);
        }
        let (first, texts) = &self.window;
        Ok(texts.get(number - first).map_or("", String::as_str))
    }

    fn read_texts(&self, begin: usize) -> Result<Vec<String>> {
        let Some(row) = self.rows.get(begin) else {
            return Ok(Vec::new());
        };
        let mut reader = LogReader::open(&self.directory)?;
        reader.seek(row.stop)?;
        // Several turns can have one stop; the log is entered before the first of them.
        let mut skip = begin - self.rows.partition_point(|other| other.stop < row.stop);
        let mut texts = Vec::new();
        while let Some(record) = reader.next_record()? {
            let Record::Batch(batch) = record else { continue };
            for (stop, turn) in positions(&batch) {
                if stop < row.stop {
                    continue;
                }
                if skip > 0 {
                    skip -= 1;
                    continue;
                }
                texts.push(describe::turn(turn));
                if texts.len() == WINDOW {
                    return Ok(texts);
                }
            }
        }
        Ok(texts)
    }

    /// The next turn after `from` (before it: `forward` is false) that is of `kind` and whose text matches; the search goes
    /// once round the log.
    pub fn find(
        &mut self,
        from: usize,
        forward: bool,
        kind: Option<Kind>,
        pattern: Option<&Regex>,
    ) -> Result<Option<usize>> {
        let count = self.rows.len();
        for step in 1..=count {
            let number = if forward {
                (from + step) % count
            } else {
                (from + count - step) % count
            };
            if kind.is_some_and(|kind| !self.rows[number].kinds.contains(kind)) {
                continue;
            }
            if let Some(pattern) = pattern
                && !pattern.is_match(self.text_towards(number, forward)?)
            {
                continue;
            }
            return Ok(Some(number));
        }
        Ok(None)
    }

    /// A turn's text, with the window laid for a walk in one direction.
    fn text_towards(&mut self, number: usize, forward: bool) -> Result<&str> {
        let (first, texts) = &self.window;
        if !(*first..first + texts.len()).contains(&number) {
            let begin = if forward {
                number
            } else {
                (number + 1).saturating_sub(WINDOW)
            };
            self.window = (begin, self.read_texts(begin)?);
        }
        self.text(number)
    }
}
