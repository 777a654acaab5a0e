//! Reads a log, segment after segment.
//!
//! Every record that is delivered was checked: its frame, its limits ([`crate::check`]), and that it follows what came
//! before. What ends the delivery is told by [`LogReader::ending`]; damage that is no torn tail is an error.
//!
//! A log may be read while it is written: after `None`, a later [`LogReader::next_record`] goes on with what has come since.

use std::path::{Path, PathBuf};

use lockstep_proto::quantity::StopNumber;
use lockstep_proto::{End, Identity};

use crate::error::{LogError, Result};
use crate::record::Record;
use crate::segment::{Opened, SegmentReader, Step, list_whole};
use crate::source::Source;

/// Why a log delivers no more.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// It was closed in order.
    Clean(End),
    /// It ends inside a record: the recorder was stopped while it wrote, or writes right now.
    Torn {
        /// The last segment's number.
        segment: u32,
        /// Where its torn tail begins, in bytes from its start.
        offset: u64,
        /// Bytes in the torn tail.
        bytes_lost: u64,
    },
    /// It ends after a whole record, without an end: the recorder was stopped, or has not written more yet.
    Unfinished,
}

/// Reads a log.
#[derive(Debug)]
pub struct LogReader {
    dir: PathBuf,
    identity: Identity,
    number: u32,
    segment: Box<SegmentReader<Source>>,
    end: Option<End>,
    ending: Option<Ending>,
}

impl LogReader {
    /// Opens the log in a directory, at its beginning.
    pub fn open(dir: &Path) -> Result<Self> {
        list_whole(dir)?;
        let segment = match open_segment(dir, 0)? {
            None => {
                return Err(LogError::MissingSegment {
                    dir: dir.to_owned(),
                    number: 0,
                });
            }
            Some((Opened::Short(bytes), path)) => return Err(LogError::NoHeader { path, bytes }),
            Some((Opened::Ready(segment), _)) => segment,
        };
        let header = segment.header();
        // Opened segments have one.
        let identity = header.identity.clone().unwrap_or_default();
        let corrupt = |what: &str| Err(LogError::corrupt(segment.path(), 0, what));
        if header.number != 0 {
            return corrupt("segment 0 has another number in its header");
        }
        if header.first_stop != identity.start_stop || header.chain != identity.start_chain {
            return corrupt("segment 0 does not begin where the log does");
        }
        Ok(Self {
            dir: dir.to_owned(),
            identity,
            number: 0,
            segment,
            end: None,
            ending: None,
        })
    }

    /// Who is recorded.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The next record; `None` when there is none (yet), and [`LogReader::ending`] says why. After an error, the log
    /// delivers nothing that can be trusted.
    pub fn next_record(&mut self) -> Result<Option<Record>> {
        self.next_looking(Source::exists)
    }

    /// [`LogReader::next_record`], with the look for the next segment given by the caller: a test lets the writer run just
    /// before it.
    fn next_looking(&mut self, mut look: impl FnMut(&Path, u32) -> Result<bool>) -> Result<Option<Record>> {
        self.ending = None;
        if self.segment.is_lost() {
            self.reopen()?;
        }
        loop {
            match self.segment.next()? {
                Step::Record(record, _) => {
                    if let Record::End(end) = &record {
                        self.end = Some(end.clone());
                    }
                    return Ok(Some(record));
                }
                Step::Torn { offset, bytes } => {
                    if self.end.is_some() {
                        return Err(LogError::corrupt(
                            self.segment.path(),
                            offset,
                            "something comes after the end",
                        ));
                    }
                    if look(&self.dir, self.number + 1)? {
                        // Then this one is whole, and the rest of the record has come or it is damage.
                        self.segment.set_whole();
                        continue;
                    }
                    self.ending = Some(Ending::Torn {
                        segment: self.number,
                        offset,
                        bytes_lost: bytes,
                    });
                    return Ok(None);
                }
                Step::End => {
                    let next = look(&self.dir, self.number + 1)?;
                    if let Some(end) = &self.end {
                        if next {
                            let what = "a segment comes after the end";
                            return Err(LogError::corrupt(self.segment.path(), self.segment.offset(), what));
                        }
                        self.ending = Some(Ending::Clean(end.clone()));
                        return Ok(None);
                    }
                    if !next {
                        self.ending = Some(Ending::Unfinished);
                        return Ok(None);
                    }
                    // More may have been written to this segment between the look at its end and the look at the next.
                    match self.segment.next()? {
                        Step::Record(record, _) => return Ok(Some(record)),
                        Step::Torn { .. } => continue,
                        Step::End => {}
                    }
                    if !self.advance()? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Why the last [`LogReader::next_record`] returned `None`. As long as it returns records: `Unfinished`.
    pub fn ending(&self) -> Ending {
        self.ending.clone().unwrap_or(Ending::Unfinished)
    }

    /// The number of the segment that is being read, from 0.
    pub fn segment(&self) -> u32 {
        self.number
    }

    /// Where the next record begins, in bytes from the start of its (uncompressed) segment.
    pub fn offset(&self) -> u64 {
        self.segment.offset()
    }

    /// The last natural stop that the records so far cover.
    pub fn stop(&self) -> StopNumber {
        self.segment.stop()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn segment_mut(&mut self) -> &mut SegmentReader<Source> {
        &mut self.segment
    }

    pub(crate) fn segment_ref(&self) -> &SegmentReader<Source> {
        &self.segment
    }

    /// The end, once it was read.
    pub(crate) fn read_end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    pub(crate) fn set_end(&mut self, end: Option<End>) {
        self.end = end;
    }

    /// Makes another segment the one that is read.
    pub(crate) fn enter(&mut self, number: u32, segment: Box<SegmentReader<Source>>) {
        (self.number, self.segment, self.end, self.ending) = (number, segment, None, None);
    }

    /// Opens a segment and checks that it is of this log. None where it has no header (yet): the ending then says so.
    pub(crate) fn open_checked(&mut self, number: u32) -> Result<Option<Box<SegmentReader<Source>>>> {
        let segment = match open_segment(&self.dir, number)? {
            None => {
                return Err(LogError::MissingSegment {
                    dir: self.dir.clone(),
                    number,
                });
            }
            Some((Opened::Short(bytes), path)) => {
                if self.has_segment(number + 1)? {
                    return Err(LogError::corrupt(
                        &path,
                        0,
                        "it ends inside its header, and is not the last segment",
                    ));
                }
                self.ending = Some(Ending::Torn {
                    segment: number,
                    offset: 0,
                    bytes_lost: bytes,
                });
                return Ok(None);
            }
            Some((Opened::Ready(segment), _)) => segment,
        };
        let header = segment.header();
        if header.number != number {
            return Err(LogError::corrupt(
                segment.path(),
                0,
                "its header has the number of another segment",
            ));
        }
        if header.identity.as_ref() != Some(&self.identity) {
            return Err(LogError::corrupt(segment.path(), 0, "it belongs to another recording"));
        }
        Ok(Some(segment))
    }

    /// Goes to the next segment. False where it has no header (yet).
    fn advance(&mut self) -> Result<bool> {
        if !self.segment.continuity().at_boundary() {
            let what = "it ends between chunks of pages and their batch, and is not the last segment";
            return Err(LogError::corrupt(self.segment.path(), self.segment.offset(), what));
        }
        let Some(segment) = self.open_checked(self.number + 1)? else {
            return Ok(false);
        };
        let header = segment.header();
        if header.first_stop != self.segment.stop().get() {
            return Err(LogError::corrupt(
                segment.path(),
                0,
                "it does not begin at the stop where the one before ends",
            ));
        }
        if self
            .segment
            .continuity()
            .digest()
            .is_some_and(|digest| *digest != header.chain)
        {
            let what = "it does not begin with the digest that the one before ends with";
            return Err(LogError::corrupt(segment.path(), 0, what));
        }
        self.number += 1;
        self.segment = segment;
        Ok(true)
    }

    /// The reader got lost in damage at what was the end: looks again.
    fn reopen(&mut self) -> Result<()> {
        let offset = self.segment.offset();
        match Source::open(&self.dir, self.number, offset)? {
            None => Err(LogError::MissingSegment {
                dir: self.dir.clone(),
                number: self.number,
            }),
            Some((source, _)) => {
                let whole = source.is_compressed();
                self.segment.replace_source(source, whole);
                Ok(())
            }
        }
    }

    fn has_segment(&self, number: u32) -> Result<bool> {
        Source::exists(&self.dir, number)
    }
}

/// Opens a segment; None where there is no such file.
fn open_segment(dir: &Path, number: u32) -> Result<Option<(Opened<Source>, PathBuf)>> {
    let Some((source, path)) = Source::open(dir, number, 0)? else {
        return Ok(None);
    };
    let whole = source.is_compressed();
    SegmentReader::open(source, &path, whole).map(|segment| Some((segment, path)))
}

#[cfg(test)]
mod tests;
