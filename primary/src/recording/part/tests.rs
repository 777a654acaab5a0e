use std::cell::Cell;

use lockstep_vmm::memory::Memory;

use super::*;
use crate::host::chunks::ChunkWatch;
use crate::recording::digest_of_disk;
use crate::recording::ring::Limits;

/// Writes to the disk when all of it has been copied once, as a guest would.
struct Meddled<'a> {
    prepared: Prepared,
    image: &'a Path,
    is_done: Cell<bool>,
}

impl Copier for Meddled<'_> {
    type Error = anyhow::Error;

    fn pages(&mut self, sources: &Sources, indices: &[u64], first: bool) -> Result<()> {
        if first && !self.is_done.replace(true) {
            let image = OpenOptions::new().write(true).open(self.image)?;
            image.write_all_at(&[7; 100], CHUNK + 5)?;
            // Zeroes again, where there was something.
            image.write_all_at(&vec![0; CHUNK as usize], 2 * CHUNK)?;
            sources.chunks.mark(0, 1..3);
        }
        self.prepared.pages(sources, indices, first)
    }

    fn chunks(&mut self, sources: &Sources, chunks: &[(u32, u64)], first: bool) -> Result<()> {
        self.prepared.chunks(sources, chunks, first)
    }
}

#[test]
fn what_is_written_to_a_disk_while_it_is_copied_is_copied_again() {
    let home = tempfile::tempdir().unwrap();
    let (image, ring) = (home.path().join("image"), home.path().join("ring"));
    let mut content = vec![0; 3 * CHUNK as usize + 512];
    content[2 * CHUNK as usize + 9] = 1;
    std::fs::write(&image, &content).unwrap();
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
    let equal = std::fs::read(&disk).unwrap() == std::fs::read(&image).unwrap();
    assert!(equal, "the copy is not what the disk is now");
    let identity = Identity {
        disk_digest_chunk: CHUNK as u32,
        ..Identity::default()
    };
    let kept = digest_of_chunks(&meddled.prepared.disks[0].digests);
    assert_eq!(digest_of_disk(&disk, &identity).unwrap(), kept);
    drop(meddled);
    assert!(!directory.exists(), "what is given up is removed");
}
