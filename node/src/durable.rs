//! Small files that are replaced as a whole: after a crash at any point the old content is there or the new one, never
//! a part of one, and never nothing where there was something.
//!
//! Invariant: what a name points at was on the disk before the name pointed at it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Writes `bytes` to `path`, a file that nobody reads yet, and waits until they are on the disk. A file of that name,
/// left over from a crash, is overwritten. `mode` is the file's permissions; the umask can only take from them.
pub fn stage(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // Never opened: a left-over file has the permissions of whoever made it.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Puts a staged file in its place. When this returns without an error, the change is on the disk; after an error it
/// may have been made or not.
pub fn publish(staged: &Path, path: &Path) -> io::Result<()> {
    fs::rename(staged, path)?;
    settle(path)
}

/// Waits until the directory that `path` lies in is on the disk: without that a rename is not.
pub fn settle(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Reads a file of at most `limit` bytes; None if there is none. What is no regular file is refused, so that nobody
/// waits at a pipe.
pub fn read(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(nonblocking).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(io::Error::other(format!("it is larger than {limit} bytes")));
    }
    Ok(Some(bytes))
}
