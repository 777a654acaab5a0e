//! How far a log goes, and one that may be written just now: a replay ends where that ended at its beginning, as a busy
//! machine would never be caught up with.

use std::path::Path;

use lockstep_logcodec::{Bookmark, Ending, LogError, LogReader, Record};
use lockstep_proto::quantity::StopNumber;

use crate::feed::Source;

/// How far a log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The last natural stop that it covers.
    pub last_stop: StopNumber,
    /// It has an end: nobody writes it any more.
    pub is_closed: bool,
}

impl Extent {
    /// Of the log in `directory`, as it is now.
    pub fn of(directory: &Path) -> Result<Self, LogError> {
        let mut reader = LogReader::open(directory)?;
        // To where it ends by now: false.
        reader.seek(StopNumber::NO_LIMIT)?;
        let last_stop = reader.stop();
        Ok(match reader.next_record()? {
            Some(Record::End(end)) => Self {
                last_stop: StopNumber::new(end.last_stop),
                is_closed: true,
            },
            _ => Self {
                last_stop,
                is_closed: false,
            },
        })
    }
}

/// A log that is read up to and including the batch that goes beyond a stop.
pub struct UpTo {
    reader: LogReader,
    stop: StopNumber,
}

impl UpTo {
    /// All of `reader`'s log that there is now, or at most one batch more.
    pub fn now(reader: LogReader, directory: &Path) -> Self {
        // What is damaged is told where it is reached.
        let live = Extent::of(directory).ok().filter(|extent| !extent.is_closed);
        Self {
            reader,
            stop: live.map_or(StopNumber::NO_LIMIT, |extent| extent.last_stop),
        }
    }
}

impl Source for UpTo {
    fn next_record(&mut self) -> Result<Option<Record>, LogError> {
        if self.reader.stop() > self.stop {
            return Ok(None);
        }
        self.reader.next_record()
    }

    fn ending(&self) -> Ending {
        self.reader.ending()
    }

    fn bookmark(&self) -> Option<Bookmark> {
        Source::bookmark(&self.reader)
    }

    fn return_to(&mut self, bookmark: &Bookmark) -> Result<(), LogError> {
        Source::return_to(&mut self.reader, bookmark)
    }
}
