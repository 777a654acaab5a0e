//! Copies of disks as they are now, as thin as what they are of.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::holes::{data_from, punch};
use super::image::{BLOCK, Image};
use super::size::bytes_of;

/// Copies an image as it is now to `to`, sharing its blocks where the file system can (reflink), else sparsely.
pub fn keep_copy(from: &Path, to: &Path) -> io::Result<()> {
    let target = create(to)?;
    copy(&File::open(from)?, &target)?;
    target.sync_all()
}

/// Writes what a replay's disk has now into the new file `to`, which is as thin as it can be. The disk's requests are settled.
pub fn keep_overlay(image: &Image, to: &Path) -> io::Result<()> {
    let Image::Overlay { base, written, .. } = image else {
        return Err(io::Error::other("it is no replay's disk"));
    };
    let target = create(to)?;
    copy(base, &target)?;
    let end = image.bytes()?;
    let mut data = [0; BLOCK as usize];
    // A block has eight sectors, and a word of the bits eight blocks: most words are zero.
    for (word, bits) in (0..).zip(written).filter(|(_, bits)| **bits != 0) {
        for (block, bits) in (word * 8..).zip(bits.to_le_bytes()) {
            let at = block * BLOCK;
            if bits == 0 || at >= end {
                continue;
            }
            image.read_block(block, &mut data)?;
            let data = &data[..(end - at).min(BLOCK) as usize];
            let is_hole = data.iter().all(|&byte| byte == 0) && punch(&target, at, data.len() as u64).is_ok();
            if !is_hole {
                target.write_all_at(data, at)?;
            }
        }
    }
    target.sync_all()
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

fn copy(source: &File, target: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    let bytes = bytes_of(source)?;
    target.set_len(bytes)?;
    let mut buffer = vec![0; 1 << 20];
    let mut data = data_from(source, 0, bytes);
    while data.start < bytes {
        // Blocks begin where the file system's do.
        let mut at = data.start - data.start % BLOCK;
        while at < data.end {
            let piece = (data.end - at).min(buffer.len() as u64) as usize;
            source.read_exact_at(&mut buffer[..piece], at)?;
            for (index, block) in buffer[..piece].chunks(BLOCK as usize).enumerate() {
                if block.iter().any(|&byte| byte != 0) {
                    target.write_all_at(block, at + index as u64 * BLOCK)?;
                }
            }
            at += piece as u64;
        }
        data = data_from(source, data.end, bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lockstep_vmm::devices::DiskOp;

    use super::*;
    use crate::host::image::SECTOR;
    use crate::host::image::tests::pattern;
    use crate::host::size::allocated;

    #[test]
    fn a_kept_copy_is_equal_and_never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let mut data = pattern(64, 9);
        data.resize(3 << 20, 0);
        std::fs::write(&from, &data).unwrap();
        keep_copy(&from, &to).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), data);
        assert!(keep_copy(&from, &to).is_err());
    }

    /// Of a thin image only what it has is read and written.
    #[test]
    fn a_kept_copy_of_a_thin_image_is_thin() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let file = File::create(&from).unwrap();
        file.set_len(300 << 30).unwrap();
        for at in [0, (100 << 30) - 700, (300 << 30) - 512] {
            file.write_all_at(&pattern(1, 9), at).unwrap();
        }
        keep_copy(&from, &to).unwrap();
        let copy = File::open(&to).unwrap();
        assert_eq!(bytes_of(&copy).unwrap(), 300 << 30);
        assert!(allocated(&copy).unwrap() <= 64 << 10);
        for at in [0, (100 << 30) - 700, (300 << 30) - 512] {
            let mut data = vec![0; 512];
            copy.read_exact_at(&mut data, at).unwrap();
            assert_eq!(data, pattern(1, 9), "{at}");
        }
    }

    /// What was written, discarded and left alone is in the copy, which takes no room for what is zero.
    #[test]
    fn a_copy_of_an_overlay_is_what_it_reads_as_and_is_thin() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let base = File::create(&from).unwrap();
        // The last block is half a block.
        let bytes = (300 << 30) - 2048;
        base.set_len(bytes).unwrap();
        base.write_all_at(&pattern(64, 9), 1 << 20).unwrap();
        let mut image = Image::overlay(&from, dir.path()).unwrap();
        let write = |image: &mut Image, sector, data| image.execute(&DiskOp::Write { sector, data }).unwrap();
        write(&mut image, (1 << 20) / SECTOR + 3, pattern(6, 5));
        write(&mut image, (200 << 30) / SECTOR, vec![0; 1 << 20]);
        write(&mut image, bytes / SECTOR - 1, pattern(1, 6));
        let (sector, sectors) = ((1 << 20) / SECTOR + 16, 16);
        image.execute(&DiskOp::Discard { sector, sectors }).unwrap();
        keep_overlay(&image, &to).unwrap();
        let copy = File::open(&to).unwrap();
        assert_eq!(bytes_of(&copy).unwrap(), bytes);
        assert!(allocated(&copy).unwrap() <= 64 << 10);
        for at in [0, 1 << 20, (200 << 30) - 4096, bytes - 65536] {
            let (mut expected, mut found) = (vec![0; 65536], vec![0; 65536]);
            image.read_at(at, &mut expected).unwrap();
            copy.read_exact_at(&mut found, at).unwrap();
            assert!(expected == found, "{at}");
        }
        assert!(keep_overlay(&image, &to).is_err(), "it is there");
        assert!(keep_overlay(&Image::Raw(copy), &dir.path().join("c")).is_err());
        let mut data = vec![0; 64 * 512];
        File::open(&from).unwrap().read_exact_at(&mut data, 1 << 20).unwrap();
        assert_eq!(data, pattern(64, 9), "the base is as it was");
    }
}
