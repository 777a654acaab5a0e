//! How large a disk is, asked in one place for files and block devices alike: of a device stat(2) tells neither.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};

/// Where lies what outlives a reboot, unless LOCKSTEP_STATE_DIR says otherwise.
const STATE: &str = "/var/lib/lockstep";

/// Bytes that a disk has. All reading and writing of disks says where: that this moves the file's own position is nothing
/// to anybody.
pub fn bytes_of(disk: &File) -> io::Result<u64> {
    Ok(seek(disk, SeekFrom::End(0))?)
}

/// Bytes that it takes where it lies; a block device is all there.
pub fn allocated(disk: &File) -> io::Result<u64> {
    let metadata = disk.metadata()?;
    if is_block_device(&metadata) {
        bytes_of(disk)
    } else {
        Ok(metadata.blocks() * 512)
    }
}

/// Whether it is a block device.
pub fn is_block_device(metadata: &Metadata) -> bool {
    metadata.file_type().is_block_device()
}

fn state_directory() -> PathBuf {
    std::env::var_os("LOCKSTEP_STATE_DIR").map_or_else(|| STATE.into(), PathBuf::from)
}

/// Where nodes keep the newest records that they have seen.
pub fn seen_directory() -> PathBuf {
    state_directory().join("seen")
}

/// What a disk's marks are named after: the image itself, or for a block device, by the name that it was given, a file in
/// the directory of states: /dev is empty after a reboot.
pub fn marked_as(disk: &Path) -> io::Result<PathBuf> {
    if !is_block_device(&disk.metadata()?) {
        return Ok(disk.to_owned());
    }
    let path = std::path::absolute(disk)?;
    let text = path.to_str().ok_or_else(|| io::Error::other("its path is not UTF-8"))?;
    Ok(state_directory()
        .join("disks")
        .join(text.replace('%', "%25").replace('/', "%2F")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_size_and_its_marks_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.img");
        let file = File::create(&path).unwrap();
        file.set_len(12345).unwrap();
        assert_eq!((bytes_of(&file).unwrap(), allocated(&file).unwrap()), (12345, 0));
        assert_eq!(marked_as(&path).unwrap(), path);
        assert!(marked_as(&directory.path().join("b.img")).is_err());
    }
}
