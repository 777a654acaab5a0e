//! Places in a log to come back to. A stop does not name one: while the guest is halted, several batches end at the same
//! stop.

use lockstep_proto::End;

use crate::continuity::Continuity;
use crate::error::{LogError, Result};
use crate::reader::LogReader;
use crate::source::Source;

/// A place between two records of a log, right after a batch or the end. Good for readers of the same directory.
#[derive(Debug, Clone)]
pub struct Bookmark {
    segment: u32,
    offset: u64,
    continuity: Continuity,
    end: Option<End>,
}

impl LogReader {
    /// Where this reader stands; `None` between chunks of pages and their batch.
    pub fn bookmark(&self) -> Option<Bookmark> {
        let continuity = self.segment_ref().continuity();
        continuity.at_boundary().then(|| Bookmark {
            segment: self.segment(),
            offset: self.offset(),
            continuity: continuity.clone(),
            end: self.read_end().cloned(),
        })
    }

    /// Goes to a place where it, or another reader of the same log, has been.
    pub fn return_to(&mut self, bookmark: &Bookmark) -> Result<()> {
        let missing = |dir: &std::path::Path| LogError::MissingSegment {
            dir: dir.to_owned(),
            number: bookmark.segment,
        };
        let Some(segment) = self.open_checked(bookmark.segment)? else {
            return Err(missing(self.dir()));
        };
        self.enter(bookmark.segment, segment);
        let Some((source, _)) = Source::open(self.dir(), bookmark.segment, bookmark.offset)? else {
            return Err(missing(self.dir()));
        };
        let whole = source.is_compressed();
        self.segment_mut()
            .resume(source, whole, bookmark.offset, bookmark.continuity.clone());
        self.set_end(bookmark.end.clone());
        Ok(())
    }
}
