//! A join: a thread of its own copies memory and disks while the guest runs ([`crate::copying`]), and packs what the backup
//! does not have; the log goes on from the pause.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use lockstep_logcodec::{PagePacker, Violation};
use lockstep_proto::{DiskChunk, JoinState, PageChunk};
use lockstep_vmm::memory::PAGE_SIZE;
use tokio::sync::mpsc;

use super::have::Had;
use super::port::{JoinChannels, LogItem};
use super::wire::{self, BULK_CHUNK, BULK_PAGES};
use crate::copying::{Rest, Sources, copy};
use crate::host::chunks::{CHUNK, read_chunk};
use crate::host::inbox::Bell;
use crate::sandbox::{self, Kind};

/// Pages in one chunk.
const CHUNK_PAGES: usize = 256;
/// Fast rather than small.
const ZSTD_LEVEL: i32 = 1;

/// The vCPU thread's part of the last round.
pub struct Final {
    /// What the rounds left.
    pub rest: Rest,
    /// Position of the log.
    pub position: u64,
}

/// A join that is under way, as the vCPU thread sees it.
pub struct Joining {
    /// What it copies from.
    pub sources: Arc<Sources>,
    ready: Arc<AtomicBool>,
    state: Sender<Result<Final, String>>,
    log: Option<mpsc::Sender<LogItem>>,
}

impl Joining {
    /// Starts to copy; rings `bell` when only the rest is missing.
    pub fn start(sources: Sources, channels: JoinChannels, bell: Bell) -> io::Result<Self> {
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
        sandbox::spawn(Kind::Disk, "join", move || {
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
    sources: Arc<Sources>,
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
        let sources = self.sources.clone();
        copy(&sources, &mut self)?;
        ready.store(true, Ordering::Release);
        bell.ring();
        let Final { rest, position } = last
            .recv()
            .map_err(|_| Stopped("it was given up".into()))?
            .map_err(Stopped)?;
        let Rest {
            transfer,
            pages,
            chunks,
        } = rest;
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

impl crate::copying::Copier for Copier {
    type Error = Stopped;

    fn pages(&mut self, sources: &Sources, indices: &[u64], first: bool) -> Result<(), Stopped> {
        let skip_zero = first && self.had.has_blank_memory();
        let mut packer = PagePacker::new()?;
        let mut frames = Vec::with_capacity(CHUNK_PAGES);
        let mut pages = Vec::with_capacity(CHUNK_PAGES * PAGE_SIZE);
        let mut page = [0; PAGE_SIZE];
        for (number, index) in indices.iter().enumerate() {
            let frame = sources.memory.frame(*index);
            sources.memory.read_page(frame, &mut page);
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

    fn chunks(&mut self, sources: &Sources, chunks: &[(u32, u64)], _first: bool) -> Result<(), Stopped> {
        for &(disk, chunk) in chunks {
            let image = &sources.images[disk as usize];
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
}
