//! Marks of disks that are a backup's: files beside them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::size::marked_as;

/// The file that marks a disk as a replica's; `marked`: what its marks are named after.
pub fn mark_of(marked: &Path) -> PathBuf {
    beside(marked, ".replica")
}

/// A file beside what a disk's marks are named after.
pub fn beside(marked: &Path, suffix: &str) -> PathBuf {
    let mut name = marked.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Refuses a disk that is a replica's: it is behind, or in the middle of being copied. No machine boots from it.
pub fn check_no_replica(disk: &Path) -> Result<()> {
    let marked = marked_as(disk).with_context(|| format!("cannot use disk image {}", disk.display()))?;
    check_no_mark(disk, &marked)
}

/// The same where it is known already what its marks are named after.
pub fn check_no_mark(disk: &Path, marked: &Path) -> Result<()> {
    let mark = mark_of(marked);
    let of = match fs::read_to_string(&mark) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // What cannot be read may be a mark.
        read => read.with_context(|| format!("cannot look for {}", mark.display()))?,
    };
    bail!(
        "disk image {} is a backup's and was never live (its primary: {}). Let this node stand by: \
         lockstep-backup run. If the primary is lost for good and this disk is better than none, remove {}",
        disk.display(),
        of.trim(),
        mark.display()
    );
}
