//! A join: memory and disks are copied in rounds while the guest runs, then the rest and the state in a short pause.
//!
//! A thread of its own copies and packs. What the guest writes meanwhile is marked (pages by the collections that epochs
//! and deltas make, chunks of disks as writes finish), so each round sends what the one before it missed; the last are
//! copied by the vCPU thread itself, between two steps. A disk request that is outstanding then is made again by the
//! backup, so it does not matter how much of it a copied chunk has.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use lockstep_logcodec::{PagePacker, Violation};
use lockstep_proto::{DiskChunk, JoinState, PageChunk};
use lockstep_vmm::machine::Transfer;
use lockstep_vmm::memory::{DirtyWatch, Memory, PAGE_SIZE};
use tokio::sync::mpsc;

use super::have::Had;
use super::port::{JoinChannels, LogItem};
use super::wire::{self, BULK_CHUNK, BULK_PAGES};
use crate::host::chunks::{CHUNK, ChunkWatch, read_chunk};
use crate::host::inbox::Bell;

/// Pages in one chunk.
const CHUNK_PAGES: usize = 256;
/// Most rounds that only copy.
const MAX_ROUNDS: u32 = 8;
/// The same for chunks of disks.
const FEW_CHUNKS: usize = 16;
/// Fast rather than small.
const ZSTD_LEVEL: i32 = 1;
/// A round that finds no more pages than this is the last: the pause sends them in some milliseconds.
const FEW_PAGES: usize = 512;

/// The vCPU thread's part of the last round.
pub struct Final {
    /// The machine's state.
    pub transfer: Transfer,
    /// The contents of the transfer's frames.
    pub pages: Vec<u8>,
    /// Chunks of disks that were written since they were last copied: disk, number, content.
    pub chunks: Vec<(u32, u64, Vec<u8>)>,
    /// Position of the log.
    pub position: u64,
}

/// What a join copies from, and what tells it of writes meanwhile.
pub struct JoinSources {
    /// Guest memory, shared.
    pub memory: Memory,
    /// Told what collections find.
    pub watch: Arc<DirtyWatch>,
    /// The disks' images, to read.
    pub images: Arc<Vec<File>>,
    /// Told of finished writes.
    pub chunks: Arc<ChunkWatch>,
}

/// A join that is under way, as the vCPU thread sees it.
pub struct Joining {
    /// What it copies from.
    pub sources: Arc<JoinSources>,
    ready: Arc<AtomicBool>,
    state: Sender<Result<Final, String>>,
    log: Option<mpsc::Sender<LogItem>>,
}

impl Joining {
    /// Starts to copy; rings `bell` when only the rest is missing.
    pub fn start(sources: JoinSources, channels: JoinChannels, bell: Bell) -> io::Result<Self> {
        let sources = Arc::new(sources);
        let ready = Arc::new(AtomicBool::new(false));
        let (state, last) = bounded(1);
        let copier = Copier {
            sources: sources.clone(),
            had: Had::default(),
            bulk: channels.bulk,
            pages: 0,
            chunks: 0,
            same_pages: 0,
            same_chunks: 0,
        };
        let had = channels.had;
        let (flag, tell) = (ready.clone(), channels.state);
        std::thread::Builder::new().name("join".into()).spawn(move || {
            tell(copier.run(&had, &flag, &bell, &last).map_err(|Stopped(why)| why));
        })?;
        Ok(Self {
            sources,
            ready,
            state,
            log: Some(channels.log),
        })
    }

    /// Whether only the pause is missing.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Hands the state over, or why there is none; the log goes to the returned channel from here on.
    pub fn finish(&mut self, state: Result<Final, String>) -> Option<mpsc::Sender<LogItem>> {
        let log = self.log.take().filter(|_| state.is_ok());
        if self.state.send(state).is_ok() { log } else { None }
    }
}

struct Stopped(String);

impl From<Violation> for Stopped {
    fn from(_: Violation) -> Self {
        Self("pages cannot be packed".into())
    }
}

struct Copier {
    sources: Arc<JoinSources>,
    bulk: mpsc::Sender<Bytes>,
    /// What the backup has.
    had: Had,
    /// Sent so far.
    pages: u64,
    chunks: u64,
    /// Not sent, as the backup had them.
    same_pages: u64,
    same_chunks: u64,
}

impl Copier {
    fn run(
        mut self,
        had: &Receiver<Had>,
        ready: &AtomicBool,
        bell: &Bell,
        last: &Receiver<Result<Final, String>>,
    ) -> Result<JoinState, Stopped> {
        self.had = had.recv().map_err(|_| Stopped("the backup is gone".into()))?;
        // Disks first: they change less meanwhile.
        let all = self.sources.chunks.all();
        self.copy_chunks(&all)?;
        let all: Vec<u64> = (0..self.sources.memory.page_count()).collect();
        let skip_zero = self.had.has_blank_memory();
        self.copy_pages(&all, skip_zero)?;
        for _ in 0..MAX_ROUNDS {
            let (dirty, written) = (self.sources.watch.take(), self.sources.chunks.take());
            self.copy_chunks(&written)?;
            self.copy_pages(&dirty, false)?;
            if dirty.len() <= FEW_PAGES && written.len() <= FEW_CHUNKS {
                break;
            }
        }
        ready.store(true, Ordering::Release);
        bell.ring();
        let Final {
            transfer,
            pages,
            chunks,
            position,
        } = last
            .recv()
            .map_err(|_| Stopped("it was given up".into()))?
            .map_err(Stopped)?;
        let mut packer = PagePacker::new()?;
        for (frames, pages) in transfer
            .frames
            .chunks(CHUNK_PAGES)
            .zip(pages.chunks(CHUNK_PAGES * PAGE_SIZE))
        {
            let pages = frames.iter().copied().zip(pages.chunks(PAGE_SIZE));
            self.send_pages(&packer.pack(pages)?, frames.len())?;
        }
        for (disk, chunk, data) in chunks {
            self.send_chunk(disk, chunk, &data)?;
        }
        tracing::info!(
            sent_pages = self.pages,
            same_pages = self.same_pages,
            sent_chunks = self.chunks,
            same_chunks = self.same_chunks,
            "sent what the backup did not have"
        );
        Ok(JoinState {
            machine: Some(transfer.header),
            memory_digest: transfer.memory_digest.to_vec().into(),
            pages: self.pages,
            disk_chunks: self.chunks,
            position,
        })
    }

    /// Sends the pages with these indices as they are now; a page that changes meanwhile comes again.
    fn copy_pages(&mut self, indices: &[u64], skip_zero: bool) -> Result<(), Stopped> {
        let mut packer = PagePacker::new()?;
        let mut frames = Vec::with_capacity(CHUNK_PAGES);
        let mut pages = Vec::with_capacity(CHUNK_PAGES * PAGE_SIZE);
        let mut page = [0; PAGE_SIZE];
        for (number, index) in indices.iter().enumerate() {
            let frame = self.sources.memory.frame(*index);
            self.sources.memory.read_page(frame, &mut page);
            let is_there = self.had.has_page(*index, &page) || (skip_zero && page.iter().all(|&byte| byte == 0));
            if is_there {
                self.same_pages += 1;
            } else {
                self.had.send_page(*index);
                frames.push(frame);
                pages.extend_from_slice(&page);
            }
            if frames.len() == CHUNK_PAGES || (number + 1 == indices.len() && !frames.is_empty()) {
                let chunk = packer.pack(frames.iter().copied().zip(pages.chunks(PAGE_SIZE)))?;
                self.send_pages(&chunk, frames.len())?;
                frames.clear();
                pages.clear();
            }
        }
        Ok(())
    }

    /// Sends these chunks of disks as they are now.
    fn copy_chunks(&mut self, chunks: &[(u32, u64)]) -> Result<(), Stopped> {
        for &(disk, chunk) in chunks {
            let image = &self.sources.images[disk as usize];
            let data = read_chunk(image, chunk)
                .map_err(|error| Stopped(format!("this host's disk {disk} cannot be read: {error}")))?;
            if self.had.has_chunk(disk, chunk, &data) {
                self.same_chunks += 1;
            } else {
                self.had.send_chunk(disk, chunk);
                self.send_chunk(disk, chunk, &data)?;
            }
        }
        Ok(())
    }

    fn send_pages(&mut self, chunk: &PageChunk, pages: usize) -> Result<(), Stopped> {
        self.pages += pages as u64;
        self.send(wire::frame(BULK_PAGES, chunk))
    }

    fn send_chunk(&mut self, disk: u32, chunk: u64, data: &[u8]) -> Result<(), Stopped> {
        self.chunks += 1;
        let data = zstd::bulk::compress(data, ZSTD_LEVEL)
            .map_err(|error| Stopped(format!("a chunk cannot be packed: {error}")))?;
        let offset = chunk * CHUNK;
        let data = data.into();
        self.send(wire::frame(BULK_CHUNK, &DiskChunk { disk, offset, data }))
    }

    fn send(&self, frame: Bytes) -> Result<(), Stopped> {
        self.bulk
            .blocking_send(frame)
            .map_err(|_| Stopped("the backup is gone".into()))
    }
}
