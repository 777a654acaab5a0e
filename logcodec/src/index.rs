//! The index of a segment: a cache that says where to begin to read for a stop.
//!
//! Its entries are natural stops and offsets, both ascending: at `offset`, the first record of the batch that begins at
//! natural stop `stop` begins (its first chunk of pages, or the batch itself). About one per [`SPACING`] bytes.
//!
//! It is never trusted. Whoever uses an entry reads the frame at its offset, which is valid in that place only, and checks
//! that the batch there begins at that stop. Where that fails, where the index is missing or damaged, or where it ends
//! early, it is built anew from the segment.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use lockstep_proto::quantity::StopNumber;

use crate::compress::temporary;
use crate::error::{LogError, Result};
use crate::frame::{Format, FrameReader, FrameWriter, Next};
use crate::limits::MAX_INDEX_ENTRIES;

/// Bytes of a segment for each entry.
pub const SPACING: u64 = 256 << 10;

/// Index files.
pub const INDEX_FORMAT: Format = Format {
    magic: *b"LOCKSIDX",
    version: 1,
    min_version: 1,
    max_payload: 64,
};

/// The kind of an entry's frame; its payload is the stop and the offset, u64 each.
pub const KIND_ENTRY: u32 = 1;

/// Where the batch that begins at a stop begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The natural stop.
    pub stop: StopNumber,
    /// Bytes from the start of the uncompressed segment.
    pub offset: u64,
}

/// Picks the entries while a segment is written or read.
#[derive(Debug, Default)]
pub(crate) struct Picker {
    last: u64,
}

impl Picker {
    /// Goes on after an entry at this offset.
    pub fn starting_at(offset: u64) -> Self {
        Self { last: offset }
    }

    /// A batch's first record begins here. Returns an entry if one is due.
    pub fn at(&mut self, stop: StopNumber, offset: u64) -> Option<Entry> {
        if offset.saturating_sub(self.last) < SPACING {
            return None;
        }
        self.last = offset;
        Some(Entry { stop, offset })
    }
}

/// Writes an index beside a segment that is being written. What fails here is dropped: it is a cache.
#[derive(Debug)]
pub(crate) struct IndexWriter {
    frames: Option<FrameWriter<File>>,
    picker: Picker,
    /// Entries for what is not yet in the segment's file.
    waiting: Vec<Entry>,
}

impl IndexWriter {
    pub fn create(path: &Path) -> Self {
        let frames = File::create(path)
            .ok()
            .and_then(|file| FrameWriter::create(file, INDEX_FORMAT).ok());
        Self {
            frames,
            picker: Picker::default(),
            waiting: Vec::new(),
        }
    }

    pub fn at(&mut self, stop: StopNumber, offset: u64) {
        self.waiting.extend(self.picker.at(stop, offset));
    }

    /// The segment's file has this many bytes: writes the entries within.
    pub fn written(&mut self, bytes: u64) {
        let ready = self.waiting.iter().take_while(|entry| entry.offset < bytes).count();
        for entry in self.waiting.drain(..ready) {
            let failed = self
                .frames
                .as_mut()
                .is_some_and(|frames| write_entry(frames, entry).is_err());
            if failed {
                self.frames = None;
            }
        }
    }
}

fn write_entry(frames: &mut FrameWriter<File>, entry: Entry) -> Result<(), crate::frame::FrameError> {
    let mut payload = [0; 16];
    payload[..8].copy_from_slice(&entry.stop.get().to_le_bytes());
    payload[8..].copy_from_slice(&entry.offset.to_le_bytes());
    frames.write(KIND_ENTRY, &payload).map(|_| ())
}

/// Reads what can be read of an index: its good entries up to the first that is not.
pub fn read(path: &Path) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let Some(mut frames) = File::open(path)
        .ok()
        .and_then(|file| FrameReader::open(file, INDEX_FORMAT).ok())
    else {
        return entries;
    };
    while let Ok(Next::Frame(frame)) = frames.next() {
        let ([stop, offset], []) = frame.payload.as_chunks::<8>() else {
            break;
        };
        let entry = Entry {
            stop: StopNumber::new(u64::from_le_bytes(*stop)),
            offset: u64::from_le_bytes(*offset),
        };
        let ascending = entries
            .last()
            .is_none_or(|last| last.stop <= entry.stop && last.offset < entry.offset);
        if frame.kind != KIND_ENTRY || !ascending || entries.len() == MAX_INDEX_ENTRIES {
            break;
        }
        entries.push(entry);
    }
    entries
}

/// Replaces an index.
pub(crate) fn replace(path: &Path, entries: &[Entry]) -> Result<()> {
    let temporary: PathBuf = temporary(path);
    let file = File::create(&temporary).map_err(LogError::io("create", &temporary))?;
    let mut frames = FrameWriter::create(file, INDEX_FORMAT).map_err(|e| LogError::frame(&temporary, e))?;
    for &entry in entries {
        write_entry(&mut frames, entry).map_err(|e| LogError::frame(&temporary, e))?;
    }
    fs::rename(&temporary, path).map_err(LogError::io("rename to", path))
}
