//! Disk images: a raw file, and a copy-on-write view of one for replays.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use lockstep_vmm::devices::DiskOp;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::chunks::{CHUNK, Piece, read_chunks};
use super::holes::punch;
use super::size::bytes_of;

/// Bytes of a sector, the unit of virtio block requests.
pub const SECTOR: u64 = 512;
/// Bytes of a block, the unit in which an overlay's writes are told of and taken back.
pub const BLOCK: u64 = 4096;
/// Zeroes are written in pieces of this size where the file system cannot punch holes.
const ZERO_PIECE: usize = 1 << 16;

/// What a disk is read from.
pub trait ReadAt {
    /// Size in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills `data` from the byte `at` on.
    fn fill_at(&self, at: u64, data: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        bytes_of(self)
    }

    fn fill_at(&self, at: u64, data: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(data, at)
    }
}

/// Where a disk's content lies.
pub enum Image {
    /// A raw image file.
    Raw(File),
    /// A base that stays as it is, and a file with the sectors that were written since.
    Overlay {
        /// The base.
        base: File,
        /// Same size, sparse.
        top: File,
        /// One bit for each sector: it is in `top`.
        written: Vec<u64>,
        /// One bit for each block: it was written since [`Image::take_touched`] was called last.
        touched: Vec<u64>,
    },
}

impl Image {
    /// Opens a raw image, and locks it: two machines that write to one image destroy it.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(!read_only).open(path)?;
        let lock = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match flock(&file, lock) {
            Err(Errno::WOULDBLOCK) => Err(io::Error::other("another process uses it; end that first")),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(Self::Raw(file)),
        }
    }

    /// A view of `base` whose writes go to an unnamed temporary file in `directory`.
    pub fn overlay(base: &Path, directory: &Path) -> io::Result<Self> {
        let base = File::open(base)?;
        let bytes = bytes_of(&base)?;
        let top = tempfile::tempfile_in(directory)?;
        top.set_len(bytes)?;
        Ok(Self::Overlay {
            base,
            top,
            written: vec![0; (bytes / SECTOR).div_ceil(64) as usize],
            touched: vec![0; bytes.div_ceil(BLOCK).div_ceil(64) as usize],
        })
    }

    /// Size in bytes.
    pub fn bytes(&self) -> io::Result<u64> {
        match self {
            Self::Raw(file) | Self::Overlay { base: file, .. } => bytes_of(file),
        }
    }

    /// Does one request; a read returns its data.
    pub fn execute(&mut self, op: &DiskOp) -> io::Result<Option<Vec<u8>>> {
        match op {
            DiskOp::Read { sector, bytes } => {
                let mut data = vec![0; *bytes as usize];
                self.read(*sector, &mut data)?;
                return Ok(Some(data));
            }
            DiskOp::Write { sector, data } => self.write(*sector, data)?,
            DiskOp::Flush => self.flush()?,
            DiskOp::Discard { sector, sectors } => self.zero(*sector, u64::from(*sectors), true)?,
            DiskOp::WriteZeroes { sector, sectors, unmap } => self.zero(*sector, u64::from(*sectors), *unmap)?,
        }
        Ok(None)
    }

    /// Fills `data` from the byte `at` on.
    pub fn read_at(&self, at: u64, data: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(data.len() as u64);
        if end.is_none_or(|end| end > self.bytes().unwrap_or(0)) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (first, within) = (at / SECTOR, (at % SECTOR) as usize);
        if within == 0 && (data.len() as u64).is_multiple_of(SECTOR) {
            return self.read(first, data);
        }
        let mut whole = vec![0; (within + data.len()).next_multiple_of(SECTOR as usize)];
        self.read(first, &mut whole)?;
        data.copy_from_slice(&whole[within..within + data.len()]);
        Ok(())
    }

    fn read(&self, sector: u64, data: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Raw(file) => file.read_exact_at(data, sector * SECTOR),
            Self::Overlay { base, top, written, .. } => {
                for (index, piece) in data.chunks_mut(SECTOR as usize).enumerate() {
                    let at = sector + index as u64;
                    let file = if is_set(written, at) { top } else { base };
                    file.read_exact_at(piece, at * SECTOR)?;
                }
                Ok(())
            }
        }
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Raw(file) => file.write_all_at(data, sector * SECTOR),
            Self::Overlay {
                top, written, touched, ..
            } => {
                top.write_all_at(data, sector * SECTOR)?;
                note(written, touched, sector..sector + data.len() as u64 / SECTOR);
                Ok(())
            }
        }
    }

    /// The blocks of an overlay that were written since the last call, ascending.
    pub fn take_touched(&mut self) -> Vec<u64> {
        let Self::Overlay { touched, .. } = self else {
            return Vec::new();
        };
        let mut blocks = Vec::new();
        // What is not set is not written to either: memory for it has never been taken.
        for (word, bits) in touched.iter_mut().enumerate().filter(|(_, bits)| **bits != 0) {
            let mut bits = std::mem::take(bits);
            while bits != 0 {
                blocks.push(word as u64 * 64 + u64::from(bits.trailing_zeros()));
                bits &= bits - 1;
            }
        }
        blocks
    }

    /// Reads all chunks of a raw image as they are now, all but its holes.
    pub fn chunks(&self) -> io::Result<impl Iterator<Item = io::Result<Piece>> + '_> {
        match self {
            Self::Raw(file) => read_chunks(file, 0..bytes_of(file)?.div_ceil(CHUNK)),
            Self::Overlay { .. } => Err(io::Error::other("a replay's disk is not copied")),
        }
    }

    /// One block as it is now; beyond the image's end it reads as zeroes.
    pub fn read_block(&self, block: u64, data: &mut [u8; BLOCK as usize]) -> io::Result<()> {
        data.fill(0);
        let sectors = self.sectors_of(block)?;
        self.read(block * (BLOCK / SECTOR), &mut data[..(sectors * SECTOR) as usize])
    }

    /// Makes one block of an overlay what it was: `data`, or the base's content.
    pub fn put_back(&mut self, block: u64, data: Option<&[u8; BLOCK as usize]>) -> io::Result<()> {
        let first = block * (BLOCK / SECTOR);
        let sectors = self.sectors_of(block)?;
        if let Some(data) = data {
            return self.write(first, &data[..(sectors * SECTOR) as usize]);
        }
        if let Self::Overlay { written, touched, .. } = self {
            for at in first..first + sectors {
                clear(written, at);
            }
            set(touched, block);
        }
        Ok(())
    }

    /// How many sectors of this block the image has.
    fn sectors_of(&self, block: u64) -> io::Result<u64> {
        let bytes = self.bytes()?.saturating_sub(block.saturating_mul(BLOCK));
        Ok(bytes.min(BLOCK) / SECTOR)
    }

    fn flush(&self) -> io::Result<()> {
        match self {
            Self::Raw(file) => file.sync_data(),
            // A replay's overlay dies with the replay.
            Self::Overlay { .. } => Ok(()),
        }
    }

    /// Reads as zeroes from now on, on every replica: a discard must not leave the content to the file system.
    fn zero(&mut self, sector: u64, sectors: u64, unmap: bool) -> io::Result<()> {
        match self {
            Self::Raw(file) => {
                if unmap && punch(file, sector * SECTOR, sectors * SECTOR).is_ok() {
                    return Ok(());
                }
            }
            Self::Overlay {
                top, written, touched, ..
            } => {
                if punch(top, sector * SECTOR, sectors * SECTOR).is_ok() {
                    note(written, touched, sector..sector + sectors);
                    return Ok(());
                }
            }
        }
        let zeroes = vec![0; ZERO_PIECE];
        let per_piece = ZERO_PIECE as u64 / SECTOR;
        let mut done = 0;
        while done < sectors {
            let piece = (sectors - done).min(per_piece);
            self.write(sector + done, &zeroes[..(piece * SECTOR) as usize])?;
            done += piece;
        }
        Ok(())
    }
}

/// These sectors of an overlay are its own, and have been written.
fn note(written: &mut [u64], touched: &mut [u64], sectors: Range<u64>) {
    for at in sectors {
        set(written, at);
        set(touched, at / (BLOCK / SECTOR));
    }
}

fn is_set(bits: &[u64], index: u64) -> bool {
    bits.get((index / 64) as usize)
        .is_some_and(|word| word >> (index % 64) & 1 == 1)
}

fn set(bits: &mut [u64], index: u64) {
    if let Some(word) = bits.get_mut((index / 64) as usize) {
        *word |= 1 << (index % 64);
    }
}

fn clear(bits: &mut [u64], index: u64) {
    if let Some(word) = bits.get_mut((index / 64) as usize) {
        *word &= !(1 << (index % 64));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::host::size::allocated;

    pub(in crate::host) fn pattern(sectors: usize, seed: u8) -> Vec<u8> {
        (0..sectors * SECTOR as usize)
            .map(|index| (index as u8).wrapping_mul(31) ^ seed)
            .collect()
    }

    #[test]
    fn an_overlay_reads_what_was_written_and_leaves_the_base_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let base = pattern(64, 1);
        std::fs::write(&path, &base).unwrap();
        let mut image = Image::overlay(&path, dir.path()).unwrap();
        image
            .execute(&DiskOp::Write {
                sector: 10,
                data: pattern(3, 7),
            })
            .unwrap();
        image.execute(&DiskOp::Discard { sector: 20, sectors: 2 }).unwrap();
        let mut expected = base.clone();
        expected[10 * 512..13 * 512].copy_from_slice(&pattern(3, 7));
        expected[20 * 512..22 * 512].fill(0);
        let read = image
            .execute(&DiskOp::Read {
                sector: 0,
                bytes: 64 * 512,
            })
            .unwrap()
            .unwrap();
        assert_eq!(read, expected);
        assert_eq!(std::fs::read(&path).unwrap(), base);
    }

    #[test]
    fn any_bytes_of_an_image_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let mut expected = pattern(8, 1);
        std::fs::write(&path, &expected).unwrap();
        let mut image = Image::overlay(&path, dir.path()).unwrap();
        let data = pattern(1, 7);
        expected[1024..1536].copy_from_slice(&data);
        image.execute(&DiskOp::Write { sector: 2, data }).unwrap();
        for (at, length) in [
            (0, 0),
            (0, 4096),
            (1000, 30),
            (1023, 514),
            (1024, 512),
            (4095, 1),
            (3584, 512),
        ] {
            let mut read = vec![0; length];
            image.read_at(at as u64, &mut read).unwrap();
            assert_eq!(read, expected[at..at + length], "{at}, {length}");
        }
        for (at, length) in [(4096, 1), (4095, 2), (u64::MAX, 1), (3584, 513)] {
            image.read_at(at, &mut vec![0; length]).unwrap_err();
        }
    }

    #[test]
    fn an_overlay_tells_what_was_written_and_takes_it_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        // The last block is half a block.
        let base = pattern(20, 1);
        std::fs::write(&path, &base).unwrap();
        let mut image = Image::overlay(&path, dir.path()).unwrap();
        assert!(image.take_touched().is_empty());
        let write = |image: &mut Image, sector, seed| {
            let data = pattern(2, seed);
            image.execute(&DiskOp::Write { sector, data }).unwrap();
        };
        let whole = |image: &mut Image| {
            let bytes = 20 * 512;
            image.execute(&DiskOp::Read { sector: 0, bytes }).unwrap().unwrap()
        };
        write(&mut image, 7, 5);
        write(&mut image, 18, 6);
        assert_eq!(image.take_touched(), [0, 1, 2]);
        assert!(image.take_touched().is_empty());
        let then = whole(&mut image);
        let mut kept = [0; 4096];
        image.read_block(2, &mut kept).unwrap();
        assert_eq!((&kept[..2048], &kept[2048..]), (&then[8192..], &[0; 2048][..]));
        write(&mut image, 17, 7);
        assert_ne!(whole(&mut image), then);
        image.put_back(2, Some(&kept)).unwrap();
        assert_eq!(whole(&mut image), then);
        assert_eq!(image.take_touched(), [2], "what is put back is a write");
        for block in 0..3 {
            image.put_back(block, None).unwrap();
        }
        assert_eq!(whole(&mut image), base);
    }

    #[test]
    fn a_raw_image_zeroes_with_and_without_holes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, pattern(512, 3)).unwrap();
        let mut image = Image::open(&path, false).unwrap();
        image
            .execute(&DiskOp::WriteZeroes {
                sector: 1,
                sectors: 200,
                unmap: false,
            })
            .unwrap();
        image
            .execute(&DiskOp::Discard {
                sector: 300,
                sectors: 8,
            })
            .unwrap();
        let mut expected = pattern(512, 3);
        expected[512..201 * 512].fill(0);
        expected[300 * 512..308 * 512].fill(0);
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }

    /// What a guest discards is not written by its replay.
    #[test]
    fn an_overlay_takes_no_room_for_what_is_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let base = File::create(&path).unwrap();
        base.set_len(300 << 30).unwrap();
        base.write_all_at(&pattern(2, 9), 1 << 20).unwrap();
        let mut image = Image::overlay(&path, dir.path()).unwrap();
        for number in 0..16 {
            let sector = number * (64 << 20) / SECTOR;
            image
                .execute(&DiskOp::Discard {
                    sector,
                    sectors: (64 << 20) / SECTOR as u32,
                })
                .unwrap();
        }
        let Image::Overlay { top, .. } = &image else {
            unreachable!()
        };
        assert_eq!(allocated(top).unwrap(), 0);
        let (sector, bytes) = ((1 << 20) / SECTOR, 1024);
        let read = image.execute(&DiskOp::Read { sector, bytes }).unwrap().unwrap();
        assert_eq!(read, [0; 1024], "what was there is gone");
        assert_eq!(image.take_touched().len(), 16 * (64 << 20) / BLOCK as usize);
    }

    #[test]
    fn a_read_beyond_the_end_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, pattern(4, 0)).unwrap();
        let mut image = Image::open(&path, true).unwrap();
        assert!(image.execute(&DiskOp::Read { sector: 3, bytes: 1024 }).is_err());
    }
}
