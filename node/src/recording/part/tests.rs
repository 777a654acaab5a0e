use std::cell::Cell;

use lockstep_vmm::memory::Memory;

use super::*;
use crate::host::chunks::ChunkWatch;
use crate::recording::digest_of_disk;
use crate::recording::ring::Limits;

/// Of the disk, but for a sector.
const THIN: u64 = 300 << 30;

/// Writes to the disk when all of it has been copied once, as a guest would.
struct Meddled<'a> {
    prepared: Prepared,
    image: &'a Path,
    is_done: Cell<bool>,
}

impl Copier for Meddled<'_> {
    type Error = anyhow::Error;

    fn pages(&mut self, sources: &Sources, indices: &[PageIndex], first: bool) -> Result<()> {
        if first && !self.is_done.replace(true) {
            let image = OpenOptions::new().write(true).open(self.image)?;
            image.write_all_at(&[7; 100], CHUNK + 5)?;
            // Zeroes again, where there was something.
            image.write_all_at(&vec![0; CHUNK as usize], 2 * CHUNK)?;
            sources.chunks.mark(0, 1..3);
            // A hole that is filled, and one that is made.
            image.write_all_at(&[8; 100], 7 * CHUNK - 50)?;
            punch(&image, 4 * CHUNK, CHUNK)?;
            sources.chunks.mark(0, 4..8);
        }
        self.prepared.pages(sources, indices, first)
    }

    fn chunks(&mut self, sources: &Sources, runs: &[(u32, Range<u64>)], first: bool) -> Result<()> {
        self.prepared.chunks(sources, runs, first)
    }
}

#[test]
fn what_is_written_to_a_disk_while_it_is_copied_is_copied_again() {
    let home = tempfile::tempdir().unwrap();
    let (image, ring) = (home.path().join("image"), home.path().join("ring"));
    let file = File::create(&image).unwrap();
    file.set_len(THIN + 512).unwrap();
    file.write_all_at(&vec![1; CHUNK as usize], 2 * CHUNK).unwrap();
    file.write_all_at(&vec![2; 2 * CHUNK as usize], 4 * CHUNK).unwrap();
    file.write_all_at(&[3; 512], THIN).unwrap();
    let ring = Ring::open(&ring, Limits::default()).unwrap();
    let images = vec![File::open(&image).unwrap()];
    let mut memory = Memory::new(16 << 20).unwrap();
    let sources = Sources {
        watch: memory.start_watch(),
        memory: memory.share(),
        chunks: Arc::new(ChunkWatch::of(&images).unwrap()),
        images: Arc::new(images),
    };
    let mut meddled = Meddled {
        prepared: Prepared::begin(&ring, &sources).unwrap(),
        image: &image,
        is_done: Cell::new(false),
    };
    copy(&sources, &mut meddled).unwrap();
    let directory = meddled.prepared.directory.0.clone();
    let disk = start_disk(&directory, 0);
    let content = |path: &Path| {
        let mut content = vec![0; 9 * CHUNK as usize + 512];
        let file = File::open(path).unwrap();
        let (begin, end) = content.split_at_mut(9 * CHUNK as usize);
        file.read_exact_at(begin, 0).unwrap();
        file.read_exact_at(end, THIN).unwrap();
        content
    };
    let equal = content(&disk) == content(&image);
    assert!(equal, "the copy is not what the disk is now");
    let copy = File::open(&disk).unwrap();
    assert_eq!(bytes_of(&copy).unwrap(), THIN + 512);
    // Chunks 1, 5, 6, 7 and the last sector; chunk 2 where zeroes were written, and not chunk 4.
    assert!(allocated(&copy).unwrap() <= 6 * CHUNK + 4096);
    let identity = Identity {
        disk_digest_chunk: CHUNK as u32,
        ..Identity::default()
    };
    let kept = meddled.prepared.disks[0].digests.total();
    assert_eq!(digest_of_disk(&disk, &identity).unwrap(), kept);
    drop(meddled);
    assert!(!directory.exists(), "what is given up is removed");
}
