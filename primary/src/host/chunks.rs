//! Disk images in chunks: what a join copies while the guest runs, and which chunks were written meanwhile.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use super::size::bytes_of;

/// Bytes of a chunk.
pub const CHUNK: u64 = 64 << 10;

/// Sets of chunks, one for each disk, filled as writes finish and emptied by the one who watches.
#[derive(Debug)]
pub struct ChunkWatch(Mutex<Vec<Vec<u64>>>, Vec<u64>);

impl ChunkWatch {
    /// For disks with so many bytes.
    pub fn new(bytes: impl IntoIterator<Item = u64>) -> Self {
        let counts: Vec<u64> = bytes.into_iter().map(|bytes| bytes.div_ceil(CHUNK)).collect();
        let sets = counts
            .iter()
            .map(|count| vec![0; count.div_ceil(64) as usize])
            .collect();
        Self(Mutex::new(sets), counts)
    }

    /// For these images.
    pub fn of(images: &[File]) -> io::Result<Self> {
        let bytes: io::Result<Vec<u64>> = images.iter().map(bytes_of).collect();
        Ok(Self::new(bytes?))
    }

    /// These chunks of a disk were written.
    pub fn mark(&self, disk: u32, chunks: Range<u64>) {
        let Ok(mut sets) = self.0.lock() else { return };
        let Some(set) = sets.get_mut(disk as usize) else { return };
        for chunk in chunks {
            if let Some(word) = set.get_mut((chunk / 64) as usize) {
                *word |= 1 << (chunk % 64);
            }
        }
    }

    /// Any chunk of a disk may have been written.
    pub fn mark_all(&self, disk: u32) {
        let count = self.1.get(disk as usize).copied().unwrap_or(0);
        self.mark(disk, 0..count);
    }

    /// The chunks written since the last call: disk and number.
    pub fn take(&self) -> Vec<(u32, u64)> {
        let mut taken = Vec::new();
        let Ok(mut sets) = self.0.lock() else { return taken };
        for (disk, set) in sets.iter_mut().enumerate() {
            for (word, bits) in set.iter_mut().enumerate() {
                while *bits != 0 {
                    taken.push((disk as u32, word as u64 * 64 + u64::from(bits.trailing_zeros())));
                    *bits &= *bits - 1;
                }
            }
        }
        taken
    }

    /// All chunks of all disks.
    pub fn all(&self) -> Vec<(u32, u64)> {
        let disks = self.1.iter().enumerate();
        disks
            .flat_map(|(disk, count)| (0..*count).map(move |chunk| (disk as u32, chunk)))
            .collect()
    }
}

/// Reads a chunk of an image; the last one may be shorter.
pub fn read_chunk(image: &File, chunk: u64) -> io::Result<Vec<u8>> {
    let bytes = bytes_of(image)?;
    let offset = chunk * CHUNK;
    let mut data = vec![0; bytes.saturating_sub(offset).min(CHUNK) as usize];
    image.read_exact_at(&mut data, offset)?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_told_once() {
        let watch = ChunkWatch::new([CHUNK * 70, CHUNK + 1]);
        assert_eq!(watch.take(), []);
        watch.mark(0, 63..65);
        watch.mark(0, 64..65);
        watch.mark_all(1);
        watch.mark(7, 0..1);
        assert_eq!(watch.take(), [(0, 63), (0, 64), (1, 0), (1, 1)]);
        assert_eq!(watch.take(), []);
        assert_eq!(watch.all().len(), 72);
    }
}
