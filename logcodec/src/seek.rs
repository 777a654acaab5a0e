//! Goes to a stop in a log.
//!
//! The segment is found by the headers, the place in it by its index ([`crate::index`]), the rest by reading. An entry of
//! the index counts only if the batch at its offset begins at its stop; if not, the index is stale and dropped. Entries
//! that were missing on the way are added to the index's file.

use lockstep_proto::quantity::StopNumber;

use crate::error::{LogError, Result};
use crate::index::{self, Entry, Picker};
use crate::reader::LogReader;
use crate::record::Record;
use crate::segment::{SegmentReader, Step, index_name, list_whole};
use crate::source::Source;

/// Where a batch's first record begins.
#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    stop: StopNumber,
}

/// How the search in a segment went.
enum Search {
    /// The batch that was looked for begins here.
    At(Place),
    /// The segment ends before it; this is where its last whole batch ends.
    Beyond(Place),
}

impl LogReader {
    /// Goes to the first batch whose `last_stop` is `stop` or later, which is the one that holds natural stop `stop`; the
    /// next record is its first chunk of pages, or the batch itself. False where the log does not reach that stop (yet):
    /// then it stands at its end.
    pub fn seek(&mut self, stop: StopNumber) -> Result<bool> {
        let mut last = *list_whole(self.dir())?.last().unwrap_or(&0);
        // The last segment that begins before the stop: the first `low` segments do, as far as is known.
        let mut low = 0;
        while low < last {
            let middle = low + (last - low).div_ceil(2);
            match self.open_checked(middle)? {
                Some(segment) if StopNumber::new(segment.header().first_stop) < stop => low = middle,
                _ => last = middle - 1,
            }
        }
        loop {
            let Some(segment) = self.open_checked(low)? else {
                // It was there when this log was opened, or the search above saw its header.
                return Err(LogError::MissingSegment {
                    dir: self.dir().to_owned(),
                    number: low,
                });
            };
            self.enter(low, segment);
            match self.seek_in_segment(stop)? {
                Search::At(place) => {
                    self.jump(place)?;
                    return Ok(true);
                }
                Search::Beyond(place) => {
                    self.jump(place)?;
                    if !Source::exists(self.dir(), low + 1)? || self.open_checked(low + 1)?.is_none() {
                        return Ok(false);
                    }
                    low += 1;
                }
            }
        }
    }

    fn seek_in_segment(&mut self, stop: StopNumber) -> Result<Search> {
        let path = self.dir().join(index_name(self.segment()));
        let known = index::read(&path);
        let segment = self.segment_mut();
        let start = Place {
            offset: segment.offset(),
            stop: segment.stop(),
        };
        let (before, after) = known.split_at(known.partition_point(|entry| entry.stop < stop));
        let mut entries = before.to_vec();
        if let Some(&Entry { stop: at, offset }) = before.last() {
            let place = Place { offset, stop: at };
            let mut search = None;
            if self.jump(place).is_ok() {
                search = self.search(place, stop, &mut entries, false)?;
            }
            if let Some(search) = search {
                if entries.len() > before.len() {
                    let last = entries.last().map_or(0, |entry| entry.offset);
                    entries.extend(after.iter().filter(|entry| entry.offset > last));
                    keep(&path, &entries);
                }
                return Ok(search);
            }
            entries.clear();
            self.jump(start)?;
        }
        let search = self.search(start, stop, &mut entries, true)?;
        if entries != before {
            keep(&path, &entries);
        }
        // A search from the start is never stale.
        Ok(search.unwrap_or(Search::Beyond(start)))
    }

    /// Reads from `place` on for the batch that holds `stop`, and adds to `entries`. None where the place is not `trusted`
    /// and turns out not to be the beginning of a batch at its stop.
    fn search(
        &mut self,
        place: Place,
        stop: StopNumber,
        entries: &mut Vec<Entry>,
        mut trusted: bool,
    ) -> Result<Option<Search>> {
        let mut picker = Picker::starting_at(entries.last().map_or(0, |entry| entry.offset));
        let mut group = place;
        let segment = self.segment_mut();
        loop {
            match segment.next() {
                Err(LogError::Corrupt { .. }) | Ok(Step::Torn { .. } | Step::End) if !trusted => return Ok(None),
                Err(e) => return Err(e),
                Ok(Step::Torn { .. } | Step::End | Step::Record(Record::End(_), _)) => {
                    return Ok(Some(Search::Beyond(group)));
                }
                Ok(Step::Record(Record::Pages(_), _)) => {}
                Ok(Step::Record(Record::Batch(batch), _)) => {
                    trusted = true;
                    let last_stop = StopNumber::new(batch.last_stop);
                    if last_stop >= stop {
                        return Ok(Some(Search::At(group)));
                    }
                    group = Place {
                        offset: segment.offset(),
                        stop: last_stop,
                    };
                    entries.extend(picker.at(group.stop, group.offset));
                }
            }
        }
    }

    fn jump(&mut self, place: Place) -> Result<()> {
        let number = self.segment();
        let Some((source, _)) = Source::open(self.dir(), number, place.offset)? else {
            return Err(LogError::MissingSegment {
                dir: self.dir().to_owned(),
                number,
            });
        };
        let segment: &mut SegmentReader<Source> = self.segment_mut();
        let whole = source.is_compressed();
        segment.jump(source, whole, place.offset, place.stop);
        Ok(())
    }
}

/// Puts what was found into the index's file. It is a cache, and the directory may be read-only.
fn keep(path: &std::path::Path, entries: &[Entry]) {
    let _ = index::replace(path, entries);
}
