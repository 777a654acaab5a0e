//! Copying a machine while it runs: memory and disks in rounds, then the rest and the state in a short pause.
//!
//! What the guest writes meanwhile is marked (pages by the collections that epochs and deltas make, chunks of disks as
//! writes finish), so each round copies what the one before it missed; the last are read by the thread that steps the
//! machine itself, between two steps. A disk request that is outstanding then is made again by whoever goes on from the
//! copy, so it does not matter how much of it a copied chunk has.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use lockstep_proto::quantity::PageIndex;
use lockstep_vmm::machine::{Machine, MachineError, Transfer};
use lockstep_vmm::memory::{DirtyWatch, Memory, PAGE_SIZE};

use crate::host::chunks::{ChunkWatch, Piece, read_chunks};
use crate::host::disk::Disks;
use crate::status::pulse::Pulse;

/// Most rounds that only copy.
const MAX_ROUNDS: u32 = 8;
/// A round that finds no more pages than this is the last: the pause takes them in some milliseconds.
const FEW_PAGES: usize = 512;
/// The same for chunks of disks.
const FEW_CHUNKS: u64 = 16;

/// What is copied, and what tells of writes meanwhile.
pub struct Sources {
    /// Guest memory, shared.
    pub memory: Memory,
    /// Told what collections find.
    pub watch: Arc<DirtyWatch>,
    /// The disks' images, to read.
    pub images: Arc<Vec<File>>,
    /// Told of finished writes.
    pub chunks: Arc<ChunkWatch>,
}

impl Sources {
    /// Of `machine`, between two steps.
    pub fn of(machine: &mut Machine, disks: &mut Disks, images: &Arc<Vec<File>>) -> io::Result<Self> {
        let chunks = Arc::new(ChunkWatch::of(images)?);
        disks.start_watch(&chunks);
        let memory = machine.memory_mut();
        Ok(Self {
            watch: memory.start_watch(),
            memory: memory.share(),
            images: images.clone(),
            chunks,
        })
    }
}

/// Takes what the rounds find, as it is now: what changes meanwhile comes again.
pub trait Copier {
    /// What it fails with.
    type Error;

    /// The pages with these indices. `first`: it gets every page, once.
    fn pages(&mut self, sources: &Sources, indices: &[PageIndex], first: bool) -> Result<(), Self::Error>;

    /// Chunks of disks, in runs: disk and numbers. `first`: as above.
    fn chunks(&mut self, sources: &Sources, runs: &[(u32, Range<u64>)], first: bool) -> Result<(), Self::Error>;
}

/// Gives `copier` everything, until little is missing.
pub fn copy<C: Copier>(sources: &Sources, copier: &mut C) -> Result<(), C::Error> {
    // Disks first: they change less meanwhile.
    copier.chunks(sources, &sources.chunks.all(), true)?;
    let all: Vec<_> = sources.memory.indices().collect();
    copier.pages(sources, &all, true)?;
    for _ in 0..MAX_ROUNDS {
        let (dirty, written) = (sources.watch.take(), sources.chunks.take());
        copier.chunks(sources, &written, false)?;
        copier.pages(sources, &dirty, false)?;
        let chunks: u64 = written.iter().map(|(_, run)| run.end - run.start).sum();
        if dirty.len() <= FEW_PAGES && chunks <= FEW_CHUNKS {
            break;
        }
    }
    Ok(())
}

/// What the rounds left.
pub struct Rest {
    /// The machine's state.
    pub transfer: Transfer,
    /// The contents of the transfer's frames.
    pub pages: Vec<u8>,
    /// Chunks of disks that were written since they were last copied, and the disks that they are of.
    pub chunks: Vec<(u32, Piece)>,
}

impl Rest {
    /// Of `machine`, between two steps; its thread's pulse beats as it gets on. The inner error: an image cannot be read.
    pub fn of(
        machine: &mut Machine,
        host_class: &str,
        sources: &Sources,
        vcpu: &Pulse,
    ) -> Result<io::Result<Self>, MachineError> {
        let transfer = machine.take_transfer(host_class, &sources.watch)?;
        let mut pages = vec![0; transfer.frames.len() * PAGE_SIZE];
        let (contents, _) = pages.as_chunks_mut::<PAGE_SIZE>();
        for (frame, page) in transfer.frames.iter().zip(contents) {
            machine.memory().read_page(*frame, page);
            vcpu.beat();
        }
        // Read here, while nothing is submitted: what comes later is the log's.
        Ok(read_written(sources, vcpu).map(|chunks| Self {
            transfer,
            pages,
            chunks,
        }))
    }
}

fn read_written(sources: &Sources, vcpu: &Pulse) -> io::Result<Vec<(u32, Piece)>> {
    let mut read = Vec::new();
    for (disk, run) in sources.chunks.take() {
        for piece in read_chunks(&sources.images[disk as usize], run)? {
            read.push((disk, piece?));
            vcpu.beat();
        }
    }
    Ok(read)
}
