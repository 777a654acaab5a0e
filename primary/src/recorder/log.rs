//! The thread that packs and writes the log, so that neither zstd nor a slow disk holds the vCPU up.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use lockstep_logcodec::{LogWriter, Violation, WriterOptions, record::pack_pages};
use lockstep_proto::{Batch, End, Identity, PageChunk};
use lockstep_vmm::memory::PAGE_SIZE;
use prost::Message;

/// Items that may wait for the disk; then the vCPU waits. Deltas are the largest, so this bounds memory too.
const QUEUE: usize = 64;
/// Pages in one chunk.
const CHUNK_PAGES: usize = 256;

/// How the log is written.
pub type LogOptions = WriterOptions;

/// What a log came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogSummary {
    /// Batches.
    pub batches: u64,
    /// Turns in them.
    pub turns: u64,
    /// Bytes of batches, less the vCPU states of deltas.
    pub batch_bytes: u64,
    /// Bytes of deltas: pages and vCPU states.
    pub page_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
}

enum Item {
    Batch(Batch),
    Pages(Vec<u64>, Vec<u8>),
    End(Box<End>),
}

/// The log's writer in a thread of its own.
pub struct LogThread {
    queue: Option<Sender<Item>>,
    thread: Option<JoinHandle<Result<LogSummary, String>>>,
    failure: Arc<Mutex<Option<String>>>,
}

impl LogThread {
    /// Creates the log in `directory`.
    pub fn start(directory: &Path, identity: &Identity, options: LogOptions) -> Result<Self, String> {
        let writer = LogWriter::create(directory, identity, options).map_err(|error| error.to_string())?;
        let (queue, items) = bounded(QUEUE);
        let failure = Arc::new(Mutex::new(None));
        let told = failure.clone();
        let thread = std::thread::Builder::new()
            .name("log".into())
            .spawn(move || {
                let result = write_all(writer, &items);
                if let (Err(error), Ok(mut slot)) = (&result, told.lock()) {
                    *slot = Some(error.clone());
                }
                result
            })
            .map_err(|error| error.to_string())?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            failure,
        })
    }

    /// Hands a batch over.
    pub fn batch(&self, batch: Batch) -> Result<(), String> {
        self.send(Item::Batch(batch))
    }

    /// Hands the pages of the next batch's forced stop over.
    pub fn pages(&self, frames: Vec<u64>, pages: Vec<u8>) -> Result<(), String> {
        self.send(Item::Pages(frames, pages))
    }

    fn send(&self, item: Item) -> Result<(), String> {
        let sent = self.queue.as_ref().is_some_and(|queue| queue.send(item).is_ok());
        if sent { Ok(()) } else { Err(self.reason()) }
    }

    fn reason(&self) -> String {
        let failure = self.failure.lock().ok().and_then(|slot| slot.clone());
        failure.unwrap_or_else(|| "the log thread has ended".into())
    }

    /// Writes the end and waits until all is on the disk.
    pub fn finish(mut self, end: End) -> Result<LogSummary, String> {
        let sent = self.send(Item::End(Box::new(end)));
        self.queue = None;
        let result = self.thread.take().map(JoinHandle::join);
        match result {
            Some(Ok(result)) => result.and_then(|summary| sent.map(|()| summary)),
            _ => Err("the log thread panicked".into()),
        }
    }
}

impl Drop for LogThread {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The pages of a delta as chunks.
pub fn pack_delta(frames: &[u64], pages: &[u8]) -> Result<Vec<PageChunk>, Violation> {
    frames
        .chunks(CHUNK_PAGES)
        .zip(pages.chunks(CHUNK_PAGES * PAGE_SIZE))
        .map(|(frames, pages)| pack_pages(frames.iter().copied().zip(pages.chunks(PAGE_SIZE))))
        .collect()
}

fn write_all(mut writer: LogWriter, items: &Receiver<Item>) -> Result<LogSummary, String> {
    let mut state_bytes = 0;
    for item in items {
        match item {
            Item::Batch(batch) => {
                let states = batch.turns.iter().filter_map(|turn| turn.forced.as_ref());
                state_bytes += states.map(|forced| forced.encoded_len() as u64).sum::<u64>();
                writer
                    .append_batch(&batch)
                    .and_then(|()| writer.flush())
                    .map_err(|error| error.to_string())?;
            }
            Item::Pages(frames, pages) => {
                for chunk in pack_delta(&frames, &pages).map_err(|error| error.to_string())? {
                    writer.append_pages(&chunk).map_err(|error| error.to_string())?;
                }
            }
            Item::End(end) => {
                let summary = writer.finish(*end).map_err(|error| error.to_string())?;
                return Ok(LogSummary {
                    batches: summary.counts.batches.records,
                    turns: summary.counts.turns,
                    batch_bytes: summary.counts.batches.bytes.saturating_sub(state_bytes),
                    page_bytes: summary.counts.pages.bytes + state_bytes,
                    total_bytes: summary.counts.bytes(),
                });
            }
        }
    }
    writer.sync().map_err(|error| error.to_string())?;
    Ok(LogSummary::default())
}
