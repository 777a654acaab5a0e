//! What a backup has already of a machine's memory and disks: a returning host's disk is mostly what it was, and a machine
//! that went another way differs in a few pages. Only what differs is sent.
//!
//! Both sides hash pages and chunks with xxh3-128. A page that was taken for equal and is not is found by the digest of all
//! memory in the join's state.

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use lockstep_node::host::digests::{Digest, Digests, ZEROES, chunk_digest};
use lockstep_proto::Have;
use lockstep_proto::quantity::PageIndex;
use lockstep_vmm::memory::{Memory, PAGE_SIZE};
use quinn::Connection;
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_128;

use super::net::FrameStream;
use super::wire::{self, HAVE, HAVE_STREAM};

/// Bytes of a digest.
const DIGEST: usize = 16;
/// Digests in one frame.
const FRAME_DIGESTS: usize = 4096;

/// What of a machine one end has.
#[derive(Debug, Default)]
pub struct Had {
    /// Digest of each page of memory; empty for memory that is all zeroes.
    pages: Vec<Option<u128>>,
    disks: Vec<HadDisk>,
}

/// What it has of a disk.
#[derive(Debug)]
struct HadDisk {
    digests: Digests,
    /// So many were told.
    told: u64,
    /// One bit for each chunk: another content was sent since.
    sent: Vec<u64>,
}

impl HadDisk {
    fn new(chunks: u64) -> Self {
        Self {
            digests: Digests::new(chunks),
            told: 0,
            sent: vec![0; chunks.div_ceil(64) as usize],
        }
    }

    fn knows(&self, chunk: u64) -> bool {
        let sent = self.sent.get((chunk / 64) as usize);
        chunk < self.told && sent.is_some_and(|word| word >> (chunk % 64) & 1 == 0)
    }
}

impl Had {
    /// Whether the backup's memory is all zeroes.
    pub fn has_blank_memory(&self) -> bool {
        self.pages.is_empty()
    }

    /// Whether it has this content in the page with this index.
    pub fn has_page(&self, index: PageIndex, page: &[u8]) -> bool {
        let digest = self.pages.get(index.get() as usize).copied().flatten();
        digest.is_some_and(|digest| digest == xxh3_128(page))
    }

    /// The page with this index is on its way there.
    pub fn send_page(&mut self, index: PageIndex) {
        if let Some(digest) = self.pages.get_mut(index.get() as usize) {
            *digest = None;
        }
    }

    /// Whether it has this content in a chunk of a disk.
    pub fn has_chunk(&self, disk: u32, chunk: u64, data: &[u8]) -> bool {
        let disk = self.disks.get(disk as usize);
        disk.is_some_and(|disk| disk.knows(chunk) && disk.digests.get(chunk) == Some(chunk_digest(data)))
    }

    /// Whether it has zeroes in a whole chunk of a disk.
    pub fn has_zeroes(&self, disk: u32, chunk: u64) -> bool {
        let disk = self.disks.get(disk as usize);
        disk.is_some_and(|disk| disk.knows(chunk) && disk.digests.is_zeroes(chunk))
    }

    /// A chunk of a disk is on its way there.
    pub fn send_chunk(&mut self, disk: u32, chunk: u64) {
        let disk = self.disks.get_mut(disk as usize);
        if let Some(word) = disk.and_then(|disk| disk.sent.get_mut((chunk / 64) as usize)) {
            *word |= 1 << (chunk % 64);
        }
    }

    /// Takes a frame. `pages` and `chunks` are how many there are of each.
    pub(super) fn take(&mut self, have: &Have, pages: u64, chunks: &[u64]) -> Result<()> {
        ensure!(have.digests.len().is_multiple_of(DIGEST), "half a digest");
        if self.disks.is_empty() {
            self.disks = chunks.iter().map(|chunks| HadDisk::new(*chunks)).collect();
        }
        let (digests, _) = have.digests.as_chunks::<DIGEST>();
        let more = have.zeroes.saturating_add(digests.len() as u64);
        let fits = |told: u64, most| {
            let total = told.saturating_add(more);
            ensure!(total <= most, "more digests than there are pages or chunks");
            Ok(())
        };
        if have.memory {
            ensure!(have.zeroes == 0, "pages of zeroes that are not told by their digests");
            fits(self.pages.len() as u64, pages)?;
            let digests = digests.iter().map(|digest| Some(u128::from_be_bytes(*digest)));
            self.pages.extend(digests);
            return Ok(());
        }
        let Some((disk, most)) = self
            .disks
            .get_mut(have.disk as usize)
            .zip(chunks.get(have.disk as usize))
        else {
            bail!("digests of disk {}, which the machine does not have", have.disk);
        };
        fits(disk.told, *most)?;
        // They are zeroes from the beginning.
        let first = disk.told + have.zeroes;
        for (chunk, digest) in (first..).zip(digests) {
            disk.digests.set(chunk, *digest);
        }
        disk.told += more;
        Ok(())
    }
}

/// Packs digests into frames, as the backup does.
#[derive(Default)]
pub struct Packer {
    /// Chunks of zeroes that come before them.
    zeroes: u64,
    digests: Vec<u8>,
}

impl Packer {
    /// The digests of all of `memory`.
    pub fn memory(memory: &Memory, send: &mut dyn FnMut(Bytes)) {
        let mut packer = Self::default();
        let mut page = [0; PAGE_SIZE];
        for index in memory.indices() {
            memory.read_page(memory.frame(index), &mut page);
            packer.push(&page, None, send);
        }
        packer.flush(None, send);
    }

    /// So many more whole chunks of a disk are zeroes. A primary that does not know them so is told their digests.
    pub fn push_zeroes(&mut self, chunks: u64, disk: u32, knows_zeroes: bool, send: &mut dyn FnMut(Bytes)) {
        if knows_zeroes {
            if !self.digests.is_empty() {
                self.flush(Some(disk), send);
            }
            self.zeroes += chunks;
        } else {
            (0..chunks).for_each(|_| self.push_digest(*ZEROES, Some(disk), send));
        }
    }

    /// One more chunk of a disk; `None` stands for memory.
    pub fn push(&mut self, data: &[u8], disk: Option<u32>, send: &mut dyn FnMut(Bytes)) {
        self.push_digest(chunk_digest(data), disk, send);
    }

    fn push_digest(&mut self, digest: Digest, disk: Option<u32>, send: &mut dyn FnMut(Bytes)) {
        self.digests.extend(digest);
        if self.digests.len() == FRAME_DIGESTS * DIGEST {
            self.flush(disk, send);
        }
    }

    /// What has not been sent.
    pub fn flush(&mut self, disk: Option<u32>, send: &mut dyn FnMut(Bytes)) {
        if self.zeroes > 0 || !self.digests.is_empty() {
            let have = Have {
                memory: disk.is_none(),
                disk: disk.unwrap_or(0),
                digests: std::mem::take(&mut self.digests).into(),
                zeroes: std::mem::take(&mut self.zeroes),
            };
            send(wire::frame(HAVE, &have));
        }
    }
}

/// Reads what the backup has, on the first stream that it opens.
pub async fn read_have(connection: &Connection, pages: u64, chunks: &[u64]) -> Result<Had> {
    let mut stream = connection.accept_uni().await?;
    let mut first = [0];
    stream.read_exact(&mut first).await?;
    ensure!(first[0] == HAVE_STREAM, "a stream of kind {} from the backup", first[0]);
    let mut frames = FrameStream::new(stream, 2 * FRAME_DIGESTS * DIGEST);
    let mut had = Had::default();
    while let Some((kind, payload)) = frames.next_frame().await? {
        ensure!(kind == HAVE, "a frame of kind {kind} among digests");
        had.take(&wire::decode(payload)?, pages, chunks)?;
    }
    ensure!(
        had.pages.is_empty() || had.pages.len() as u64 == pages,
        "digests of {} of {pages} pages",
        had.pages.len()
    );
    Ok(had)
}

/// Writes what this backup has, until the sender is gone.
pub async fn write_have(connection: Connection, mut frames: mpsc::Receiver<Bytes>) {
    let Ok(mut stream) = connection.open_uni().await else {
        return;
    };
    if stream.write_all(&[HAVE_STREAM]).await.is_err() {
        return;
    }
    while let Some(bytes) = frames.recv().await {
        if stream.write_chunk(bytes).await.is_err() {
            return;
        }
    }
    let _ = stream.finish();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64) -> PageIndex {
        PageIndex::new(number)
    }

    fn have(disk: Option<u32>, contents: &[&[u8]]) -> Have {
        Have {
            memory: disk.is_none(),
            disk: disk.unwrap_or(0),
            digests: contents
                .iter()
                .flat_map(|content| xxh3_128(content).to_be_bytes())
                .collect::<Vec<_>>()
                .into(),
            zeroes: 0,
        }
    }

    #[test]
    fn what_is_equal_is_known_until_it_is_sent() {
        let mut had = Had::default();
        assert!(had.has_blank_memory());
        had.take(&have(None, &[b"a", b"b"]), 2, &[3]).unwrap();
        had.take(&have(Some(0), &[b"c"]), 2, &[3]).unwrap();
        assert!(!had.has_blank_memory());
        assert!(had.has_page(at(1), b"b") && !had.has_page(at(0), b"b") && !had.has_page(at(2), b"b"));
        assert!(had.has_chunk(0, 0, b"c") && !had.has_chunk(0, 1, b"c") && !had.has_chunk(1, 0, b"c"));
        had.send_page(at(1));
        had.send_chunk(0, 0);
        had.send_page(at(9));
        had.send_chunk(9, 9);
        assert!(!had.has_page(at(1), b"b") && !had.has_chunk(0, 0, b"c"));
    }

    #[test]
    fn more_than_there_is_is_refused() {
        let mut had = Had::default();
        assert!(had.take(&have(None, &[b"a", b"b"]), 1, &[]).is_err());
        assert!(had.take(&have(Some(0), &[b"a"]), 1, &[]).is_err());
        assert!(had.take(&have(Some(1), &[b"a"]), 1, &[5]).is_err());
        had.take(&have(Some(0), &[b"a"]), 1, &[1]).unwrap();
        assert!(had.take(&have(Some(0), &[b"a"]), 1, &[1]).is_err());
        let zeroes = |zeroes, disk| Have {
            zeroes,
            ..have(disk, &[])
        };
        let mut had = Had::default();
        had.take(&zeroes(4, Some(0)), 1, &[5]).unwrap();
        assert!(had.take(&zeroes(2, Some(0)), 1, &[5]).is_err());
        assert!(had.take(&zeroes(u64::MAX, Some(0)), 1, &[5]).is_err());
        assert!(had.take(&zeroes(1, None), 1, &[5]).is_err(), "of memory");
        let half = Have {
            digests: vec![0; 15].into(),
            ..Have::default()
        };
        assert!(had.take(&half, 1, &[1]).is_err());
    }

    /// Zeroes are told so to who knows them so, else by their digests; both say the same.
    #[test]
    fn zeroes_are_told_in_runs() {
        for (knows_zeroes, expected) in [(true, 3), (false, 2)] {
            let mut frames = Vec::new();
            let mut send = |frame| frames.push(frame);
            let mut packer = Packer::default();
            packer.push_zeroes(3, 0, knows_zeroes, &mut send);
            packer.push(b"a", Some(0), &mut send);
            packer.push(b"b", Some(0), &mut send);
            packer.push_zeroes(4000, 0, knows_zeroes, &mut send);
            packer.push_zeroes(1000, 0, knows_zeroes, &mut send);
            packer.push(b"c", Some(0), &mut send);
            packer.push_zeroes(1, 0, knows_zeroes, &mut send);
            packer.flush(Some(0), &mut send);
            assert_eq!(frames.len(), expected);
            let mut had = Had::default();
            for frame in frames {
                had.take(&wire::decode(frame.slice(5..)).unwrap(), 0, &[6000]).unwrap();
            }
            let not_zeroes: Vec<_> = (0..6000).filter(|at| !had.has_zeroes(0, *at)).collect();
            let expected: Vec<_> = [3, 4, 5005].into_iter().chain(5007..6000).collect();
            assert_eq!(not_zeroes, expected);
            assert!(had.has_chunk(0, 4, b"b") && had.has_chunk(0, 5005, b"c"));
            assert!(had.has_chunk(0, 5006, &vec![0; 64 << 10]) && !had.has_chunk(0, 5007, &vec![0; 64 << 10]));
            had.send_chunk(0, 5006);
            assert!(!had.has_zeroes(0, 5006));
        }
    }

    #[test]
    fn packs_into_frames() {
        let mut frames = Vec::new();
        let mut packer = Packer::default();
        for _ in 0..=FRAME_DIGESTS {
            packer.push(b"x", Some(2), &mut |frame| frames.push(frame));
        }
        packer.flush(Some(2), &mut |frame| frames.push(frame));
        packer.flush(Some(2), &mut |frame| frames.push(frame));
        let counts: Vec<usize> = frames
            .iter()
            .map(|frame| wire::decode::<Have>(frame.slice(5..)).unwrap().digests.len() / DIGEST)
            .collect();
        assert_eq!(counts, [FRAME_DIGESTS, 1]);
    }
}
