//! The files of a log directory, and how one segment is read.
//!
//! `segment-00000000.lsl`, `segment-00000001.lsl` and so on are the log; `.lsl.zst` in place of `.lsl` is a closed segment
//! that was compressed as a whole; `.idx` beside either is a cache ([`crate::index`]); `.tmp` is left over from a writer
//! that was stopped, and ignored.
//!
//! Only the last segment may have a torn tail: its successor is created after it was synced.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fs, io};

use lockstep_proto::SegmentHeader;
use lockstep_proto::quantity::StopNumber;

use crate::check::{self, Devices};
use crate::continuity::Continuity;
use crate::error::{LogError, Result};
use crate::frame::{FrameError, FrameReader, Next};
use crate::record::{LOG_FORMAT, Record, decode_segment_header, kind};

/// File name of a segment.
pub fn plain_name(number: u32) -> String {
    format!("segment-{number:08}.lsl")
}

/// File name of a compressed segment.
pub fn compressed_name(number: u32) -> String {
    format!("segment-{number:08}.lsl.zst")
}

/// File name of a segment's index.
pub fn index_name(number: u32) -> String {
    format!("segment-{number:08}.idx")
}

/// The number of a segment by its file name, plain or compressed.
fn number_of(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("segment-")?;
    let digits = rest.strip_suffix(".lsl").or_else(|| rest.strip_suffix(".lsl.zst"))?;
    if digits.len() != 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// The numbers of a directory's segments, ascending, each once. Empty where the directory holds no log.
pub fn list(dir: &Path) -> Result<Vec<u32>> {
    let mut numbers = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(numbers),
        other => other.map_err(LogError::io("list", dir))?,
    };
    for entry in entries {
        let name = entry.map_err(LogError::io("list", dir))?.file_name();
        numbers.extend(name.to_str().and_then(number_of));
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// [`list`], and an error where there is none or one is missing.
pub(crate) fn list_whole(dir: &Path) -> Result<Vec<u32>> {
    let numbers = list(dir)?;
    if numbers.is_empty() {
        return Err(LogError::NoLog { dir: dir.to_owned() });
    }
    match numbers
        .iter()
        .zip(0u32..)
        .find(|&(&number, expected)| number != expected)
    {
        Some((_, number)) => Err(LogError::MissingSegment {
            dir: dir.to_owned(),
            number,
        }),
        None => Ok(numbers),
    }
}

/// Makes created, renamed and removed files of a directory last.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    fs::File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(LogError::io("sync", dir))
}

/// Reads one segment from any source of bytes: a file, a decompressor, memory.
#[derive(Debug)]
pub struct SegmentReader<R> {
    /// For messages.
    path: PathBuf,
    frames: FrameReader<R>,
    header: SegmentHeader,
    continuity: Continuity,
}

/// A segment that was opened.
#[derive(Debug)]
pub enum Opened<R> {
    /// It has a header.
    Ready(Box<SegmentReader<R>>),
    /// It ends before its header does; it has this many bytes.
    Short(u64),
}

/// What comes next in a segment.
#[derive(Debug)]
pub enum Step {
    /// A record, and the offset where its frame begins.
    Record(Record, u64),
    /// The segment ends where a record ends.
    End,
    /// The segment has a torn tail.
    Torn {
        /// Where the tail begins: the segment is good up to here.
        offset: u64,
        /// Bytes from there to the end of the file.
        bytes: u64,
    },
}

impl<R: Read> SegmentReader<R> {
    /// Opens a segment: reads and checks its header. `path` is for messages. `whole` says that the segment was closed, so
    /// that it has no torn tail.
    pub fn open(source: R, path: &Path, whole: bool) -> Result<Opened<R>> {
        let mut frames = match FrameReader::open(source, LOG_FORMAT) {
            Err(FrameError::HeaderShort { bytes }) if !whole => return Ok(Opened::Short(bytes)),
            other => other.map_err(|e| source_error(path, 0, e))?,
        };
        frames.set_whole(whole);
        let header = match frames.next().map_err(|e| source_error(path, 0, e))? {
            Next::End if whole => return Err(LogError::corrupt(path, 0, "it has no segment header")),
            Next::End => return Ok(Opened::Short(frames.offset())),
            Next::Torn { offset, bytes } => return Ok(Opened::Short(offset + bytes)),
            Next::Frame(frame) if frame.kind != kind::SEGMENT_HEADER => {
                return Err(LogError::corrupt(
                    path,
                    frame.offset,
                    "the first frame is no segment header",
                ));
            }
            Next::Frame(frame) => decode_segment_header(frame.payload)
                .and_then(|header| check::segment_header(&header).map(|()| header))
                .map_err(|e| LogError::corrupt(path, frame.offset, e.to_string()))?,
        };
        let first = StopNumber::new(header.first_stop);
        let continuity = Continuity::new(devices(&header), first, Some(header.chain.clone()));
        Ok(Opened::Ready(Box::new(Self {
            path: path.to_owned(),
            frames,
            header,
            continuity,
        })))
    }

    /// The next record, checked. None of [`Step`]'s other cases is final: a file may grow.
    #[allow(clippy::should_implement_trait)] // it may fail, and go on after an end
    pub fn next(&mut self) -> Result<Step> {
        let offset = self.frames.offset();
        match self.frames.next().map_err(|e| source_error(&self.path, offset, e))? {
            Next::End => Ok(Step::End),
            Next::Torn { offset, bytes } => Ok(Step::Torn { offset, bytes }),
            Next::Frame(frame) => {
                let record = Record::decode(frame.kind, frame.payload)
                    .and_then(|record| self.continuity.record(&record).map(|()| record))
                    .map_err(|e| LogError::corrupt(&self.path, frame.offset, e.to_string()))?;
                Ok(Step::Record(record, frame.offset))
            }
        }
    }

    /// The segment's header.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Where the next record's frame begins, in bytes from the start of the (uncompressed) segment.
    pub fn offset(&self) -> u64 {
        self.frames.offset()
    }

    /// The last natural stop that the records so far cover.
    pub fn stop(&self) -> StopNumber {
        self.continuity.stop()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn continuity(&self) -> &Continuity {
        &self.continuity
    }

    pub(crate) fn set_whole(&mut self) {
        self.frames.set_whole(true);
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.frames.is_lost()
    }

    /// Goes on with a fresh source that stands where the next frame begins.
    pub(crate) fn replace_source(&mut self, source: R, whole: bool) {
        self.frames = FrameReader::resume(source, LOG_FORMAT, self.frames.version(), self.frames.offset());
        self.frames.set_whole(whole);
    }

    /// Goes to `offset`, where the first record of a batch at natural stop `stop` begins; `source` stands there.
    pub(crate) fn jump(&mut self, source: R, whole: bool, offset: u64, stop: StopNumber) {
        let devices = devices(&self.header);
        let digest = (stop.get() == self.header.first_stop).then(|| self.header.chain.clone());
        self.resume(source, whole, offset, Continuity::new(devices, stop, digest));
    }

    /// Goes to `offset`, where `continuity` was kept; `source` stands there.
    pub(crate) fn resume(&mut self, source: R, whole: bool, offset: u64, continuity: Continuity) {
        self.frames = FrameReader::resume(source, LOG_FORMAT, self.frames.version(), offset);
        self.frames.set_whole(whole);
        self.continuity = continuity;
    }
}

fn devices(header: &SegmentHeader) -> Devices {
    header.identity.as_ref().map_or(Devices::NONE, Devices::of)
}

/// An error of a source that is not the system's comes from its decompressor: the file is damaged.
fn source_error(path: &Path, offset: u64, error: FrameError) -> LogError {
    match error {
        FrameError::Io(e) if e.raw_os_error().is_none() => {
            LogError::corrupt(path, offset, format!("it does not decompress ({e})"))
        }
        other => LogError::frame(path, other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        assert_eq!(number_of(&plain_name(7)), Some(7));
        assert_eq!(number_of(&compressed_name(99_999_999)), Some(99_999_999));
        for other in [
            &index_name(7)[..],
            "segment-00000007.lsl.tmp",
            "segment-7.lsl",
            "segment-+0000007.lsl",
            "x",
        ] {
            assert_eq!(number_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_missing_segment_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(list_whole(dir.path()), Err(LogError::NoLog { .. })));
        assert!(matches!(
            list_whole(&dir.path().join("none")),
            Err(LogError::NoLog { .. })
        ));
        for name in [plain_name(0), compressed_name(1), plain_name(1), compressed_name(3)] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(list(dir.path()).unwrap(), [0, 1, 3]);
        assert!(matches!(
            list_whole(dir.path()),
            Err(LogError::MissingSegment { number: 2, .. })
        ));
    }
}
