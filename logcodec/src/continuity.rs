//! How the records of a log have to follow each other. The writer and the reader keep one of these.
//!
//! - Each batch begins at the natural stop where the previous one ended; the first one where the log begins.
//! - Chunks of pages come right before the batch whose forced turns need them, and hold exactly those pages: the first
//!   chunks the first forced turn's pages, ascending over all its chunks, and so on. A chunk serves one turn.
//! - The end names the stop and the digest that the last batch ended with (after a failure of the recorder,
//!   only the stop), and nothing comes after it.

use bytes::Bytes;
use lockstep_proto::quantity::StopNumber;
use lockstep_proto::{Batch, End, PageChunk, end};

use crate::check::{self, Devices};
use crate::error::Violation;
use crate::limits::MAX_CHUNKS;
use crate::pages::{self, Span};
use crate::record::Record;

#[derive(Debug, Clone)]
pub(crate) struct Continuity {
    devices: Devices,
    stop: StopNumber,
    /// The digest chain at `stop`; not known after a seek, until the next batch.
    digest: Option<Bytes>,
    chunks: Vec<Span>,
    ended: bool,
}

impl Continuity {
    pub fn new(devices: Devices, stop: StopNumber, digest: Option<Bytes>) -> Self {
        Self {
            devices,
            stop,
            digest,
            chunks: Vec::new(),
            ended: false,
        }
    }

    /// The last natural stop that is covered.
    pub fn stop(&self) -> StopNumber {
        self.stop
    }

    pub fn digest(&self) -> Option<&Bytes> {
        self.digest.as_ref()
    }

    /// Whether the last record was no chunk: a segment may end here.
    pub fn at_boundary(&self) -> bool {
        self.chunks.is_empty()
    }

    pub fn record(&mut self, record: &Record) -> Result<(), Violation> {
        match record {
            Record::Pages(chunk) => self.pages(chunk),
            Record::Batch(batch) => self.batch(batch),
            Record::End(end) => self.end(end),
        }
    }

    pub fn pages(&mut self, chunk: &PageChunk) -> Result<(), Violation> {
        self.not_ended()?;
        let span = pages::span(chunk)?;
        if self.chunks.len() == MAX_CHUNKS {
            let limit = MAX_CHUNKS as u64;
            return Err(Violation::TooMuch {
                what: "chunks before a batch",
                value: limit + 1,
                limit,
            });
        }
        self.chunks.push(span);
        Ok(())
    }

    pub fn batch(&mut self, batch: &Batch) -> Result<(), Violation> {
        self.not_ended()?;
        if batch.first_stop != self.stop.get() {
            let (found, expected) = (batch.first_stop, self.stop.get());
            return Err(Violation::Mismatch {
                what: "first stop of a batch",
                found,
                expected,
            });
        }
        check::batch(batch, self.devices)?;
        self.deltas(batch)?;
        self.chunks.clear();
        self.stop = StopNumber::new(batch.last_stop);
        self.digest = Some(batch.digest.clone());
        Ok(())
    }

    /// The chunks before a batch are its forced turns' pages.
    fn deltas(&self, batch: &Batch) -> Result<(), Violation> {
        let mut chunks = self.chunks.iter();
        for forced in batch.turns.iter().filter_map(|turn| turn.forced.as_ref()) {
            let (mut have, mut last) = (0u64, None);
            while have < u64::from(forced.pages) {
                let Some(chunk) = chunks.next() else {
                    return Err(Violation::Rule(
                        "a forced turn's pages are not all there before its batch",
                    ));
                };
                if last.is_some_and(|last| last >= chunk.first) {
                    return Err(Violation::Rule(
                        "the chunks of a forced turn are not in ascending order",
                    ));
                }
                last = Some(chunk.last);
                have += u64::from(chunk.pages);
            }
            if have != u64::from(forced.pages) {
                let (found, expected) = (have, forced.pages.into());
                return Err(Violation::Mismatch {
                    what: "pages in the chunks of a forced turn",
                    found,
                    expected,
                });
            }
        }
        if chunks.next().is_some() {
            return Err(Violation::Rule("chunks before a batch belong to no forced turn of it"));
        }
        Ok(())
    }

    pub fn end(&mut self, end: &End) -> Result<(), Violation> {
        self.not_ended()?;
        check::end(end)?;
        if !self.at_boundary() {
            return Err(Violation::Rule("chunks before an end belong to no batch"));
        }
        if end.last_stop != self.stop.get() {
            let (found, expected) = (end.last_stop, self.stop.get());
            return Err(Violation::Mismatch {
                what: "last stop of an end",
                found,
                expected,
            });
        }
        // A recorder that failed may have stood between two stops.
        let failed = end.reason == i32::from(end::Reason::Failed);
        if !failed && self.digest.as_ref().is_some_and(|digest| *digest != end.digest) {
            return Err(Violation::Rule("an end's digest is not that of the last batch"));
        }
        self.ended = true;
        Ok(())
    }

    fn not_ended(&self) -> Result<(), Violation> {
        if self.ended {
            Err(Violation::Rule("a record after the end"))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
