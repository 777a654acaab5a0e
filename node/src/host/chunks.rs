//! Disk images in chunks: what a join copies while the guest runs, and which chunks were written meanwhile. Sets of chunks are
//! bits, and lists of them runs: their number grows with a disk's size, and a thin disk's size is nothing that it has.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use super::holes::{Stretch, stretches};
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

    /// The chunks written since the last call, in runs: disk and numbers.
    pub fn take(&self) -> Vec<(u32, Range<u64>)> {
        let mut taken: Vec<(u32, Range<u64>)> = Vec::new();
        let Ok(mut sets) = self.0.lock() else { return taken };
        for (disk, set) in sets.iter_mut().enumerate() {
            for (word, bits) in set.iter_mut().enumerate() {
                while *bits != 0 {
                    let first = bits.trailing_zeros();
                    let length = (*bits >> first).trailing_ones();
                    let begin = word as u64 * 64 + u64::from(first);
                    let run = begin..begin + u64::from(length);
                    match taken.last_mut() {
                        Some((last, before)) if *last == disk as u32 && before.end == run.start => before.end = run.end,
                        _ => taken.push((disk as u32, run)),
                    }
                    *bits &= !(u64::MAX >> (64 - length) << first);
                }
            }
        }
        taken
    }

    /// All chunks of all disks.
    pub fn all(&self) -> Vec<(u32, Range<u64>)> {
        let disks = self.1.iter().enumerate();
        disks.map(|(disk, count)| (disk as u32, 0..*count)).collect()
    }
}

/// A run of chunks as it was read.
#[derive(Debug)]
pub enum Piece {
    /// Zeroes, whole chunks of them, which nobody has read.
    Holes(Range<u64>),
    /// One chunk's number and content.
    Data(u64, Vec<u8>),
}

/// Reads these chunks of an image, all but its holes.
pub fn read_chunks(image: &File, chunks: Range<u64>) -> io::Result<impl Iterator<Item = io::Result<Piece>> + '_> {
    Ok(stretches(image, CHUNK, chunks)?.flat_map(move |stretch| {
        let (holes, data) = match stretch {
            Stretch::Holes(chunks) => (Some(chunks), 0..0),
            Stretch::Data(chunks) => (None, chunks),
        };
        let read = data.map(move |chunk| Ok(Piece::Data(chunk, read_chunk(image, chunk)?)));
        holes.map(|chunks| Ok(Piece::Holes(chunks))).into_iter().chain(read)
    }))
}

/// Reads a chunk of an image; the last one may be shorter.
fn read_chunk(image: &File, chunk: u64) -> io::Result<Vec<u8>> {
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
        let watch = ChunkWatch::new([CHUNK * 71, CHUNK + 1]);
        assert_eq!(watch.take(), []);
        watch.mark(0, 63..65);
        watch.mark(0, 64..65);
        watch.mark_all(1);
        watch.mark(7, 0..1);
        watch.mark(0, 66..67);
        assert_eq!(watch.take(), [(0, 63..65), (0, 66..67), (1, 0..2)]);
        assert_eq!(watch.take(), []);
        assert_eq!(watch.all(), [(0, 0..71), (1, 0..2)]);
        // Whole words of bits, too.
        watch.mark(0, 3..71);
        assert_eq!(watch.take(), [(0, 3..71)]);
        watch.mark_all(0);
        assert_eq!(watch.take(), [(0, 0..71)]);
    }
}
