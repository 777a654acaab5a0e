//! What a backup has already of a machine's memory and disks: a returning host's disk is mostly what it was, and a machine
//! that went another way differs in a few pages. Only what differs is sent.
//!
//! Both sides hash pages and chunks with xxh3-128. A page that was taken for equal and is not is found by the digest of all
//! memory in the join's state.

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use lockstep_proto::Have;
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
    /// Digest of each chunk of each disk, as far as they were told.
    disks: Vec<Vec<Option<u128>>>,
}

impl Had {
    /// Whether the backup's memory is all zeroes.
    pub fn has_blank_memory(&self) -> bool {
        self.pages.is_empty()
    }

    /// Whether it has this content in the page with this index.
    pub fn has_page(&self, index: u64, page: &[u8]) -> bool {
        let digest = self.pages.get(index as usize).copied().flatten();
        digest.is_some_and(|digest| digest == xxh3_128(page))
    }

    /// The page with this index is on its way there.
    pub fn send_page(&mut self, index: u64) {
        if let Some(digest) = self.pages.get_mut(index as usize) {
            *digest = None;
        }
    }

    /// Whether it has this content in a chunk of a disk.
    pub fn has_chunk(&self, disk: u32, chunk: u64, data: &[u8]) -> bool {
        let digest = self.disks.get(disk as usize).and_then(|disk| disk.get(chunk as usize));
        digest.copied().flatten().is_some_and(|digest| digest == xxh3_128(data))
    }

    /// A chunk of a disk is on its way there.
    pub fn send_chunk(&mut self, disk: u32, chunk: u64) {
        let disk = self.disks.get_mut(disk as usize);
        if let Some(digest) = disk.and_then(|disk| disk.get_mut(chunk as usize)) {
            *digest = None;
        }
    }

    /// Takes a frame. `pages` and `chunks` are how many there are of each.
    fn take(&mut self, have: &Have, pages: u64, chunks: &[u64]) -> Result<()> {
        ensure!(have.digests.len().is_multiple_of(DIGEST), "half a digest");
        if self.disks.is_empty() {
            self.disks = vec![Vec::new(); chunks.len()];
        }
        let (list, most) = if have.memory {
            (&mut self.pages, pages)
        } else {
            match (self.disks.get_mut(have.disk as usize), chunks.get(have.disk as usize)) {
                (Some(list), Some(most)) => (list, *most),
                _ => bail!("digests of disk {}, which the machine does not have", have.disk),
            }
        };
        let (digests, _) = have.digests.as_chunks::<DIGEST>();
        ensure!(
            (list.len() + digests.len()) as u64 <= most,
            "more digests than there are pages or chunks"
        );
        list.extend(digests.iter().map(|digest| Some(u128::from_be_bytes(*digest))));
        Ok(())
    }
}

/// Packs digests into frames, as the backup does.
#[derive(Default)]
pub struct Packer {
    digests: Vec<u8>,
}

impl Packer {
    /// The digests of all of `memory`.
    pub fn memory(memory: &Memory, send: &mut dyn FnMut(Bytes)) {
        let mut packer = Self::default();
        let mut page = [0; PAGE_SIZE];
        for index in 0..memory.page_count() {
            memory.read_page(memory.frame(index), &mut page);
            packer.push(&page, None, send);
        }
        packer.flush(None, send);
    }

    /// One more chunk of a disk; `None` stands for memory.
    pub fn push(&mut self, data: &[u8], disk: Option<u32>, send: &mut dyn FnMut(Bytes)) {
        self.digests.extend(xxh3_128(data).to_be_bytes());
        if self.digests.len() == FRAME_DIGESTS * DIGEST {
            self.flush(disk, send);
        }
    }

    /// What has not been sent.
    pub fn flush(&mut self, disk: Option<u32>, send: &mut dyn FnMut(Bytes)) {
        if !self.digests.is_empty() {
            let have = Have {
                memory: disk.is_none(),
                disk: disk.unwrap_or(0),
                digests: std::mem::take(&mut self.digests).into(),
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

    fn have(disk: Option<u32>, contents: &[&[u8]]) -> Have {
        Have {
            memory: disk.is_none(),
            disk: disk.unwrap_or(0),
            digests: contents
                .iter()
                .flat_map(|content| xxh3_128(content).to_be_bytes())
                .collect::<Vec<_>>()
                .into(),
        }
    }

    #[test]
    fn what_is_equal_is_known_until_it_is_sent() {
        let mut had = Had::default();
        assert!(had.has_blank_memory());
        had.take(&have(None, &[b"a", b"b"]), 2, &[3]).unwrap();
        had.take(&have(Some(0), &[b"c"]), 2, &[3]).unwrap();
        assert!(!had.has_blank_memory());
        assert!(had.has_page(1, b"b") && !had.has_page(0, b"b") && !had.has_page(2, b"b"));
        assert!(had.has_chunk(0, 0, b"c") && !had.has_chunk(0, 1, b"c") && !had.has_chunk(1, 0, b"c"));
        had.send_page(1);
        had.send_chunk(0, 0);
        had.send_page(9);
        had.send_chunk(9, 9);
        assert!(!had.has_page(1, b"b") && !had.has_chunk(0, 0, b"c"));
    }

    #[test]
    fn more_than_there_is_is_refused() {
        let mut had = Had::default();
        assert!(had.take(&have(None, &[b"a", b"b"]), 1, &[]).is_err());
        assert!(had.take(&have(Some(0), &[b"a"]), 1, &[]).is_err());
        assert!(had.take(&have(Some(1), &[b"a"]), 1, &[5]).is_err());
        had.take(&have(Some(0), &[b"a"]), 1, &[1]).unwrap();
        assert!(had.take(&have(Some(0), &[b"a"]), 1, &[1]).is_err());
        let half = Have {
            digests: vec![0; 15].into(),
            ..Have::default()
        };
        assert!(had.take(&half, 1, &[1]).is_err());
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
