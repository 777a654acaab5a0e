//! A join: a thread of its own copies memory and disks while the guest runs ([`lockstep_node::copying`]), and packs what
//! the backup does not have; the log goes on from the pause.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use lockstep_logcodec::{PagePacker, Violation};
use lockstep_node::copying::{Rest, Sources, copy};
use lockstep_node::host::chunks::{CHUNK, Piece, read_chunks};
use lockstep_node::host::inbox::Bell;
use lockstep_node::sandbox::{self, Kind};
use lockstep_proto::quantity::{LogPosition, PageIndex};
use lockstep_proto::{DiskChunk, JoinState, PageChunk};
use lockstep_vmm::memory::PAGE_SIZE;
use tokio::sync::mpsc;

use super::channels::{JoinChannels, LogItem};
use super::have::Had;
use super::wire::{self, BULK_CHUNK, BULK_PAGES};

/// Pages in one chunk.
const CHUNK_PAGES: usize = 256;
/// Fast rather than small.
const ZSTD_LEVEL: i32 = 1;

/// The vCPU thread's part of the last round.
pub struct Final {
    /// What the rounds left.
    pub rest: Rest,
    /// Position of the log.
    pub position: LogPosition,
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
        for (disk, piece) in chunks {
            self.send_piece(disk, piece)?;
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
            position: position.get(),
        })
    }

    fn send_pages(&mut self, chunk: &PageChunk, pages: usize) -> Result<(), Stopped> {
        self.pages += pages as u64;
        self.send(wire::frame(BULK_PAGES, chunk))
    }

    /// Sends what the backup does not have of it. A hole is sent as zeroes: there may be something else.
    fn send_piece(&mut self, disk: u32, piece: Piece) -> Result<(), Stopped> {
        match piece {
            Piece::Data(chunk, data) => {
                if self.had.has_chunk(disk, chunk, &data) {
                    self.same_chunks += 1;
                    return Ok(());
                }
                self.send_chunk(disk, chunk, pack(&data)?)
            }
            Piece::Holes(chunks) => {
                let mut packed = None;
                for chunk in chunks {
                    if self.had.has_zeroes(disk, chunk) {
                        self.same_chunks += 1;
                        continue;
                    }
                    let zeroes = match &packed {
                        Some(zeroes) => zeroes,
                        None => packed.insert(pack(&vec![0; CHUNK as usize])?),
                    };
                    self.send_chunk(disk, chunk, zeroes.clone())?;
                }
                Ok(())
            }
        }
    }

    fn send_chunk(&mut self, disk: u32, chunk: u64, data: Bytes) -> Result<(), Stopped> {
        self.had.send_chunk(disk, chunk);
        self.chunks += 1;
        let offset = chunk * CHUNK;
        self.send(wire::frame(BULK_CHUNK, &DiskChunk { disk, offset, data }))
    }

    fn send(&self, frame: Bytes) -> Result<(), Stopped> {
        self.bulk
            .blocking_send(frame)
            .map_err(|_| Stopped("the backup is gone".into()))
    }
}

fn pack(data: &[u8]) -> Result<Bytes, Stopped> {
    let packed = zstd::bulk::compress(data, ZSTD_LEVEL);
    let packed = packed.map_err(|error| Stopped(format!("a chunk cannot be packed: {error}")))?;
    Ok(packed.into())
}

impl lockstep_node::copying::Copier for Copier {
    type Error = Stopped;

    fn pages(&mut self, sources: &Sources, indices: &[PageIndex], first: bool) -> Result<(), Stopped> {
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

    fn chunks(&mut self, sources: &Sources, runs: &[(u32, Range<u64>)], _first: bool) -> Result<(), Stopped> {
        for (disk, run) in runs {
            let cannot_be_read = |error| Stopped(format!("this host's disk {disk} cannot be read: {error}"));
            for piece in read_chunks(&sources.images[*disk as usize], run.clone()).map_err(cannot_be_read)? {
                self.send_piece(*disk, piece.map_err(cannot_be_read)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use lockstep_proto::Have;
    use lockstep_vmm::memory::Memory;
    use xxhash_rust::xxh3::xxh3_128;

    use super::*;
    use lockstep_node::copying::Copier as _;
    use lockstep_node::host::chunks::ChunkWatch;
    use lockstep_node::host::holes::punch;

    /// Chunks of the disk, and half a one.
    const CHUNKS: u64 = (300 << 30) / CHUNK;

    fn fill(disk: &File, chunk: u64, byte: u8) {
        disk.write_all_at(&vec![byte; CHUNK as usize], chunk * CHUNK).unwrap();
    }

    fn sources(image: &Path) -> Sources {
        let images = vec![File::open(image).unwrap()];
        let mut memory = Memory::new(16 << 20).unwrap();
        Sources {
            watch: memory.start_watch(),
            memory: memory.share(),
            chunks: Arc::new(ChunkWatch::of(&images).unwrap()),
            images: Arc::new(images),
        }
    }

    /// What is sent: chunk and first byte.
    fn sent(bulk: &mut mpsc::Receiver<Bytes>) -> Vec<(u64, u8)> {
        let frames = std::iter::from_fn(|| bulk.try_recv().ok());
        frames
            .map(|frame| {
                let chunk: DiskChunk = wire::decode(frame.slice(5..)).unwrap();
                let data = zstd::bulk::decompress(&chunk.data, CHUNK as usize).unwrap();
                assert!(data.iter().all(|byte| *byte == data[0]));
                assert_eq!(
                    data.len() as u64,
                    if chunk.offset == CHUNKS * CHUNK { 512 } else { CHUNK }
                );
                (chunk.offset / CHUNK, data[0])
            })
            .collect()
    }

    #[test]
    fn a_thin_disk_is_sent_without_its_holes_and_what_lies_in_them_there_is_zeroed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("disk");
        File::create(&path).unwrap().set_len(CHUNKS * CHUNK + 512).unwrap();
        let disk = OpenOptions::new().write(true).open(&path).unwrap();
        for (chunk, byte) in [(1000, 1), (1001, 2), (2_000_000, 3)] {
            fill(&disk, chunk, byte);
        }
        let sources = sources(&path);
        // The backup has the same in one chunk, and something where there are holes here.
        let mut had = Had::default();
        let mut tell = |zeroes, bytes: &[u8]| {
            let digest = |byte: &u8| xxh3_128(&vec![*byte; CHUNK as usize]).to_be_bytes();
            let digests: Vec<u8> = bytes.iter().flat_map(digest).collect();
            let have = Have {
                digests: digests.into(),
                zeroes,
                ..Have::default()
            };
            had.take(&have, 0, &[CHUNKS + 1]).unwrap();
        };
        tell(1001, &[2, 9]);
        tell(3_000_000, &[9]);
        tell(CHUNKS - 1001 - 2 - 3_000_000 - 1, &[]);
        let (bulk, mut frames) = mpsc::channel(64);
        let mut copier = Copier {
            sources: Arc::new(self::sources(&path)),
            had,
            bulk,
            pages: 0,
            chunks: 0,
            same_pages: 0,
            same_chunks: 0,
        };
        let mut copy = |runs: &[(u32, Range<u64>)], first| {
            assert!(copier.chunks(&sources, runs, first).is_ok());
            sent(&mut frames)
        };
        let all = copy(&sources.chunks.all(), true);
        // The last half of a chunk was not told of.
        let expected = [(1000, 1), (1002, 0), (2_000_000, 3), (3_001_003, 0), (CHUNKS, 0)];
        assert_eq!(all, expected);
        // Meanwhile one hole was filled, one made, and one made where the backup had none.
        fill(&disk, 77, 5);
        punch(&disk, 1000 * CHUNK, 2 * CHUNK).unwrap();
        assert_eq!(
            copy(&[(0, 77..78), (0, 999..1002)], false),
            [(77, 5), (1000, 0), (1001, 0)]
        );
        // What has been sent is known to nobody: it is sent again.
        assert_eq!(copy(&[(0, 76..79)], false), [(77, 5)]);
        assert_eq!(copier.chunks, 9);
    }
}
