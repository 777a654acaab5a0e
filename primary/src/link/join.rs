//! A join: memory is copied in rounds while the guest runs, then the rest and the state in a short pause.
//!
//! A thread of its own copies and packs. What the guest writes meanwhile is marked by the collections that epochs and
//! deltas make, so each round sends what the one before it missed; the last pages are copied by the vCPU thread itself,
//! between two steps.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use lockstep_logcodec::record::kind;
use lockstep_logcodec::{PagePacker, Violation};
use lockstep_proto::JoinState;
use lockstep_vmm::machine::Transfer;
use lockstep_vmm::memory::{DirtyWatch, Memory, PAGE_SIZE};
use tokio::sync::mpsc;

use super::port::{JoinChannels, LogItem};
use super::wire;
use crate::host::inbox::Bell;

/// Pages in one chunk.
const CHUNK_PAGES: usize = 256;
/// Most rounds that only copy.
const MAX_ROUNDS: u32 = 8;
/// A round that finds no more pages than this is the last: the pause sends them in some milliseconds.
const FEW_PAGES: usize = 512;

/// The vCPU thread's part of the last round.
pub struct Final {
    /// The machine's state.
    pub transfer: Transfer,
    /// The contents of the transfer's frames.
    pub pages: Vec<u8>,
    /// Position of the log.
    pub position: u64,
}

/// A join that is under way, as the vCPU thread sees it.
pub struct Joining {
    /// Told what collections find.
    pub watch: Arc<DirtyWatch>,
    ready: Arc<AtomicBool>,
    state: Sender<Final>,
    log: Option<mpsc::Sender<LogItem>>,
}

impl Joining {
    /// Starts to copy `memory`; rings `bell` when only the rest is missing.
    pub fn start(memory: &mut Memory, channels: JoinChannels, bell: Bell) -> io::Result<Self> {
        let watch = memory.start_watch();
        let ready = Arc::new(AtomicBool::new(false));
        let (state, last) = bounded(1);
        let copier = Copier {
            memory: memory.share(),
            watch: watch.clone(),
            bulk: channels.bulk,
            sent: 0,
        };
        let (flag, tell) = (ready.clone(), channels.state);
        std::thread::Builder::new().name("join".into()).spawn(move || {
            // An error means that the backup is gone, which the link has seen by itself.
            if let Err(Stopped(why)) = copier.run(&flag, &bell, &last, tell) {
                tracing::debug!(why, "join ended early");
            }
        })?;
        Ok(Self {
            watch,
            ready,
            state,
            log: Some(channels.log),
        })
    }

    /// Whether only the pause is missing.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Hands the state over; the log goes to the returned channel from here on.
    pub fn finish(&mut self, state: Final) -> Option<mpsc::Sender<LogItem>> {
        let log = self.log.take();
        if self.state.send(state).is_ok() { log } else { None }
    }
}

struct Stopped(&'static str);

impl From<Violation> for Stopped {
    fn from(_: Violation) -> Self {
        Self("pages cannot be packed")
    }
}

struct Copier {
    memory: Memory,
    watch: Arc<DirtyWatch>,
    bulk: mpsc::Sender<Bytes>,
    sent: u64,
}

impl Copier {
    fn run(
        mut self,
        ready: &AtomicBool,
        bell: &Bell,
        last: &Receiver<Final>,
        tell: Box<dyn FnOnce(JoinState) + Send>,
    ) -> Result<(), Stopped> {
        let all: Vec<u64> = (0..self.memory.page_count()).collect();
        self.copy(&all, true)?;
        for _ in 0..MAX_ROUNDS {
            let dirty = self.watch.take();
            self.copy(&dirty, false)?;
            if dirty.len() <= FEW_PAGES {
                break;
            }
        }
        ready.store(true, Ordering::Release);
        bell.ring();
        let Final {
            transfer,
            pages,
            position,
        } = last.recv().map_err(|_| Stopped("the machine has ended"))?;
        let mut packer = PagePacker::new()?;
        for (frames, pages) in transfer
            .frames
            .chunks(CHUNK_PAGES)
            .zip(pages.chunks(CHUNK_PAGES * PAGE_SIZE))
        {
            let pages = frames.iter().copied().zip(pages.chunks(PAGE_SIZE));
            self.send(&packer.pack(pages)?, frames.len())?;
        }
        tell(JoinState {
            machine: Some(transfer.header),
            memory_digest: transfer.memory_digest.to_vec().into(),
            pages: self.sent,
            position,
        });
        Ok(())
    }

    /// Sends the pages with these indices as they are now; a page that changes meanwhile comes again.
    fn copy(&mut self, indices: &[u64], skip_zero: bool) -> Result<(), Stopped> {
        let mut packer = PagePacker::new()?;
        let mut frames = Vec::with_capacity(CHUNK_PAGES);
        let mut pages = Vec::with_capacity(CHUNK_PAGES * PAGE_SIZE);
        let mut page = [0; PAGE_SIZE];
        for (number, index) in indices.iter().enumerate() {
            let frame = self.memory.frame(*index);
            self.memory.read_page(frame, &mut page);
            if !skip_zero || page.iter().any(|&byte| byte != 0) {
                frames.push(frame);
                pages.extend_from_slice(&page);
            }
            if frames.len() == CHUNK_PAGES || (number + 1 == indices.len() && !frames.is_empty()) {
                let chunk = packer.pack(frames.iter().copied().zip(pages.chunks(PAGE_SIZE)))?;
                self.send(&chunk, frames.len())?;
                frames.clear();
                pages.clear();
            }
        }
        Ok(())
    }

    fn send(&mut self, chunk: &lockstep_proto::PageChunk, pages: usize) -> Result<(), Stopped> {
        self.sent += pages as u64;
        let frame = wire::frame(kind::PAGES as u8, chunk);
        self.bulk
            .blocking_send(frame)
            .map_err(|_| Stopped("the backup is gone"))
    }
}
