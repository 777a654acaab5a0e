//! Writes a log.
//!
//! What is appended is checked first ([`crate::check`], and that it follows what came before); what is refused leaves the
//! log as it was. An I/O error ends the writing: the file is left with whole frames only, and every later call says so.
//!
//! A segment that has reached its size is closed before the next batch (or its first chunk of pages): synced, then its
//! successor is created under a temporary name with its header in it, synced and renamed. So a reader never sees a segment
//! without its header, and only the last one can be torn.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use bytes::Bytes;
use lockstep_proto::quantity::StopNumber;
use lockstep_proto::{Batch, End, Identity, PageChunk, SegmentHeader};
use prost::Message;

use crate::check::{self, Devices};
use crate::compress::{compress_segment, temporary};
use crate::continuity::Continuity;
use crate::error::{LogError, Result, Violation};
use crate::frame::FrameWriter;
use crate::index::IndexWriter;
use crate::limits::{MAX_PAYLOAD, MAX_SEGMENT};
use crate::packed::pack;
use crate::record::{LOG_FORMAT, kind};
use crate::segment::{index_name, list, plain_name, sync_dir};
use crate::tail::Tail;

/// How a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriterOptions {
    /// A segment is closed when it has this many bytes or more. Default 64 MiB; at most 4 GiB (more is taken for that).
    pub segment_bytes: u64,
    /// Whether closed segments are compressed, beside the writing. Default: no.
    pub compress: bool,
    /// Bytes that are gathered before they are handed to the system without a [`LogWriter::flush`]. Default 256 KiB.
    pub buffer_bytes: usize,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            compress: false,
            buffer_bytes: 256 << 10,
        }
    }
}

/// How much there is of one kind of record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Number of records.
    pub records: u64,
    /// Their bytes in the segments before compression, frame headers included.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.records += 1;
        self.bytes += bytes;
    }
}

/// What was written so far, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Batches of turns.
    pub batches: Count,
    /// Chunks of pages, for forced turns.
    pub pages: Count,
    /// Segment headers (with the file headers) and the end.
    pub other: Count,
    /// Turns in the batches.
    pub turns: u64,
}

impl Counts {
    /// All bytes, before compression.
    pub fn bytes(&self) -> u64 {
        self.batches.bytes + self.pages.bytes + self.other.bytes
    }
}

/// What a finished log is.
#[derive(Debug)]
pub struct Summary {
    /// What was written.
    pub counts: Counts,
    /// Number of segments.
    pub segments: u32,
    /// Why a segment is not compressed that should be. The log is good all the same.
    pub compression: Option<LogError>,
}

/// Writes a log into a directory. Dropped without [`LogWriter::finish`], it flushes, and the log is one without an end.
#[derive(Debug)]
pub struct LogWriter {
    dir: PathBuf,
    identity: Identity,
    options: WriterOptions,
    number: u32,
    /// Where the segment's first record begins, in bytes; a segment has at least one.
    first_record: u64,
    frames: FrameWriter<Tail<File>>,
    index: IndexWriter,
    continuity: Continuity,
    counts: Counts,
    compressing: Option<JoinHandle<Result<u64>>>,
    compression: Option<LogError>,
    /// Why no more is written.
    stopped: Option<String>,
}

impl LogWriter {
    /// Starts a log in a directory, which is created if need be. Refuses one that holds a log.
    pub fn create(dir: &Path, identity: &Identity, options: WriterOptions) -> Result<Self> {
        check::identity(identity).map_err(LogError::Refused)?;
        let options = WriterOptions {
            segment_bytes: options.segment_bytes.min(4 << 30),
            ..options
        };
        fs::create_dir_all(dir).map_err(LogError::io("create", dir))?;
        if let Some(&number) = list(dir)?.first() {
            return Err(LogError::LogExists {
                dir: dir.to_owned(),
                found: format!("segment {number}"),
            });
        }
        let header = SegmentHeader {
            identity: Some(identity.clone()),
            number: 0,
            first_stop: identity.start_stop,
            chain: identity.start_chain.clone(),
        };
        let (frames, index) = create_segment(dir, &header, options.buffer_bytes)?;
        let continuity = Continuity::new(
            Devices::of(identity),
            StopNumber::new(identity.start_stop),
            Some(identity.start_chain.clone()),
        );
        let mut counts = Counts::default();
        counts.other.add(frames.position());
        Ok(Self {
            dir: dir.to_owned(),
            identity: identity.clone(),
            options,
            number: 0,
            first_record: frames.position(),
            frames,
            index,
            continuity,
            counts,
            compressing: None,
            compression: None,
            stopped: None,
        })
    }

    /// Appends a chunk of pages for a forced turn of the next batch.
    pub fn append_pages(&mut self, chunk: &PageChunk) -> Result<()> {
        self.usable()?;
        let group = self.group();
        self.continuity.pages(chunk).map_err(LogError::Refused)?;
        let bytes = self.append(group, kind::PAGES, chunk)?;
        self.counts.pages.add(bytes);
        Ok(())
    }

    /// Appends a batch. It begins at the stop that the previous one ended with ([`LogWriter::stop`]).
    pub fn append_batch(&mut self, batch: &Batch) -> Result<()> {
        self.usable()?;
        let packed = pack(batch);
        let length = packed.encoded_len();
        if length > MAX_PAYLOAD as usize {
            let (value, limit) = (length as u64, MAX_PAYLOAD.into());
            return Err(LogError::Refused(Violation::TooMuch {
                what: "encoded bytes of a batch",
                value,
                limit,
            }));
        }
        let group = self.group();
        self.continuity.batch(batch).map_err(LogError::Refused)?;
        let bytes = self.append(group, kind::BATCH, &packed)?;
        self.counts.batches.add(bytes);
        self.counts.turns += batch.turns.len() as u64;
        Ok(())
    }

    /// Hands all that was appended to the system: it survives this process.
    pub fn flush(&mut self) -> Result<()> {
        self.usable()?;
        let flushed = self
            .frames
            .get_mut()
            .flush()
            .map_err(LogError::io("write", &self.path()));
        self.written(flushed)?;
        self.index.written(self.frames.get_ref().written());
        Ok(())
    }

    /// Hands all that was appended to the disk: it survives this host's power.
    pub fn sync(&mut self) -> Result<()> {
        self.usable()?;
        let synced = self.frames.get_mut().sync().map_err(LogError::io("sync", &self.path()));
        self.written(synced)?;
        self.index.written(self.frames.get_ref().written());
        Ok(())
    }

    /// Closes the log in order: appends its end, syncs it, and waits for compression.
    #[allow(clippy::needless_pass_by_value)] // a log has one end
    pub fn finish(mut self, end: End) -> Result<Summary> {
        self.usable()?;
        self.continuity.end(&end).map_err(LogError::Refused)?;
        let bytes = self.append(None, kind::END, &end)?;
        self.counts.other.add(bytes);
        self.sync()?;
        self.join();
        if self.options.compress {
            self.compression = self
                .compression
                .take()
                .or(compress_segment(&self.dir, self.number).err());
        }
        Ok(Summary {
            counts: self.counts,
            segments: self.number + 1,
            compression: self.compression.take(),
        })
    }

    /// The last natural stop that was appended.
    pub fn stop(&self) -> StopNumber {
        self.continuity.stop()
    }

    /// What was appended so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self) -> PathBuf {
        self.dir.join(plain_name(self.number))
    }

    fn usable(&self) -> Result<()> {
        match &self.stopped {
            None => Ok(()),
            Some(why) => Err(LogError::Stopped {
                dir: self.dir.clone(),
                stop: self.continuity.stop(),
                why: why.clone(),
            }),
        }
    }

    /// A failure to write ends the writing.
    fn written<T>(&mut self, result: Result<T>) -> Result<T> {
        if let Err(e) = &result {
            self.stopped = Some(e.to_string());
        }
        result
    }

    /// Whether the next record is the first of its batch: then where the batch begins, and the digest chain there.
    fn group(&self) -> Option<(StopNumber, Bytes)> {
        let digest = self.continuity.digest().cloned().unwrap_or_default();
        self.continuity.at_boundary().then(|| (self.continuity.stop(), digest))
    }

    fn append<M: Message>(&mut self, group: Option<(StopNumber, Bytes)>, kind: u32, message: &M) -> Result<u64> {
        let result = self.try_append(group, kind, message);
        self.written(result)
    }

    fn try_append<M: Message>(&mut self, group: Option<(StopNumber, Bytes)>, kind: u32, message: &M) -> Result<u64> {
        if let Some((stop, chain)) = group {
            let full = self.frames.position() >= self.options.segment_bytes.max(self.first_record + 1);
            if full && self.number < MAX_SEGMENT {
                self.rotate(stop, chain)?;
            }
            self.index.at(stop, self.frames.position());
        }
        let bytes = self
            .frames
            .write_message(kind, message)
            .map_err(|e| LogError::frame(&self.path(), e))?;
        self.index.written(self.frames.get_ref().written());
        Ok(bytes)
    }

    fn rotate(&mut self, stop: StopNumber, chain: Bytes) -> Result<()> {
        self.frames
            .get_mut()
            .sync()
            .map_err(LogError::io("sync", &self.path()))?;
        self.index.written(self.frames.get_ref().written());
        let header = SegmentHeader {
            identity: Some(self.identity.clone()),
            number: self.number + 1,
            first_stop: stop.get(),
            chain,
        };
        (self.frames, self.index) = create_segment(&self.dir, &header, self.options.buffer_bytes)?;
        self.first_record = self.frames.position();
        self.counts.other.add(self.frames.position());
        if self.options.compress {
            self.join();
            let (dir, number) = (self.dir.clone(), self.number);
            let spawned = std::thread::Builder::new()
                .name("log-compress".into())
                .spawn(move || compress_segment(&dir, number));
            match spawned {
                Ok(handle) => self.compressing = Some(handle),
                Err(e) => self.compression = Some(LogError::io("start a thread for", &self.dir)(e)),
            }
        }
        self.number += 1;
        Ok(())
    }

    /// Waits for the compressor.
    fn join(&mut self) {
        if let Some(Ok(Err(e))) = self.compressing.take().map(JoinHandle::join) {
            self.compression = Some(e);
        }
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.join();
    }
}

/// Creates a segment with its header in it; it gets its name when that is on the disk.
fn create_segment(
    dir: &Path,
    header: &SegmentHeader,
    buffer_bytes: usize,
) -> Result<(FrameWriter<Tail<File>>, IndexWriter)> {
    let path = dir.join(plain_name(header.number));
    let temporary = temporary(&path);
    let index = IndexWriter::create(&dir.join(index_name(header.number)));
    let file = File::create(&temporary).map_err(LogError::io("create", &temporary))?;
    // Told apart from a log that nobody writes by `cut_torn_tail`. Not every file system has locks.
    let _ = file.try_lock();
    let mut frames = FrameWriter::create(Tail::new(file, buffer_bytes), LOG_FORMAT)
        .and_then(|mut frames| frames.write_message(kind::SEGMENT_HEADER, header).map(|_| frames))
        .map_err(|e| LogError::frame(&temporary, e))?;
    frames.get_mut().sync().map_err(LogError::io("sync", &temporary))?;
    fs::rename(&temporary, &path).map_err(LogError::io("rename to", &path))?;
    sync_dir(dir)?;
    Ok((frames, index))
}
