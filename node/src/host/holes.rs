//! Holes of disks: where a thin image has nothing, nothing is read, hashed, sent or written.
//!
//! A file system that does not know its holes says that all is data, and so does a block device: those are read from end to
//! end. A stretch is told as it is when it is asked for. Who copies a disk that is written meanwhile watches the writes
//! ([`super::chunks::ChunkWatch`]) from before the first question on: what fills a hole later comes again.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use super::size::bytes_of;

/// A run of a disk's pieces, which are numbered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// Nothing but zeroes; whole pieces.
    Holes(Range<u64>),
    /// To be read: there may be something in each.
    Data(Range<u64>),
}

/// These pieces of `piece` bytes of a disk, in order, its holes apart. A last piece that is shorter is never a hole.
pub fn stretches(disk: &File, piece: u64, pieces: Range<u64>) -> io::Result<impl Iterator<Item = Stretch> + '_> {
    let bytes = bytes_of(disk)?;
    let Range { start: mut at, end } = pieces;
    Ok(std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let data = data_from(disk, at * piece, bytes);
        let begin = at;
        let first = (data.start / piece).clamp(begin, end);
        if first > begin {
            at = first;
            return Some(Stretch::Holes(begin..at));
        }
        at = data.end.div_ceil(piece).clamp(begin + 1, end);
        Some(Stretch::Data(begin..at))
    }))
}

/// The first stretch from `at` on that may have something in it; an empty one at `end` where there is none before it.
pub fn data_from(disk: &File, at: u64, end: u64) -> Range<u64> {
    let begin = match seek(disk, SeekFrom::Data(at)) {
        Ok(begin) => begin,
        // A file that was cut off has no hole there: reading it fails, as it should.
        Err(Errno::NXIO) if bytes_of(disk).is_ok_and(|bytes| bytes >= end) => end,
        Err(_) => return at..end,
    };
    if begin >= end {
        return end..end;
    }
    // It may be a hole by now.
    let past = seek(disk, SeekFrom::Hole(begin)).unwrap_or(end);
    begin..past.clamp(begin + 1, end)
}

/// Makes a hole, where the file system can: it reads as zeroes.
pub fn punch(disk: &File, at: u64, bytes: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(disk, flags, at, bytes)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn all(disk: &File, piece: u64) -> Vec<Stretch> {
        let pieces = bytes_of(disk).unwrap().div_ceil(piece);
        stretches(disk, piece, 0..pieces).unwrap().collect()
    }

    #[test]
    fn holes_are_told_apart_from_what_was_written() {
        const PIECE: u64 = 64 << 10;
        let disk = tempfile::tempfile().unwrap();
        assert_eq!(all(&disk, PIECE), []);
        disk.set_len(10 * PIECE + 512).unwrap();
        // The last piece is shorter, and is read.
        assert_eq!(all(&disk, PIECE), [Stretch::Holes(0..10), Stretch::Data(10..11)]);
        // One byte, at the end of one piece, and more at both sides of a border.
        disk.write_all_at(&[1], 3 * PIECE - 1).unwrap();
        disk.write_all_at(&[1; 8192], 6 * PIECE - 4096).unwrap();
        let expected = [
            Stretch::Holes(0..2),
            Stretch::Data(2..3),
            Stretch::Holes(3..5),
            Stretch::Data(5..7),
            Stretch::Holes(7..10),
            Stretch::Data(10..11),
        ];
        assert_eq!(all(&disk, PIECE), expected);
        let some: Vec<_> = stretches(&disk, PIECE, 4..6).unwrap().collect();
        assert_eq!(some, [Stretch::Holes(4..5), Stretch::Data(5..6)]);
        punch(&disk, 2 * PIECE, PIECE).unwrap();
        assert_eq!(all(&disk, PIECE)[0], Stretch::Holes(0..5));
    }

    #[test]
    fn what_is_written_to_a_hole_while_it_is_looked_for_is_told_or_was_passed() {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(8 * 4096).unwrap();
        disk.write_all_at(&[1], 4096).unwrap();
        let mut found = stretches(&disk, 4096, 0..8).unwrap();
        assert_eq!(found.next(), Some(Stretch::Holes(0..1)));
        disk.write_all_at(&[1], 5 * 4096).unwrap();
        let rest: Vec<_> = found.collect();
        let expected = [
            Stretch::Data(1..2),
            Stretch::Holes(2..5),
            Stretch::Data(5..6),
            Stretch::Holes(6..8),
        ];
        assert_eq!(rest, expected);
    }

    #[test]
    fn who_does_not_know_holes_has_none_and_what_was_cut_off_is_not_one() {
        let (pipe, _) = std::io::pipe().unwrap();
        assert_eq!(data_from(&File::from(OwnedFd::from(pipe)), 0, 4096), 0..4096);
        let disk = tempfile::tempfile().unwrap();
        assert_eq!(data_from(&disk, 0, 4096), 0..4096);
        disk.set_len(4096).unwrap();
        assert_eq!(data_from(&disk, 0, 4096), 4096..4096);
    }
}
