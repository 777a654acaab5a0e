//! Boot from the disk: kernel, initrd and command line are those that the guest itself keeps on its first disk, looked up
//! anew at each boot, so that an upgrade inside the guest is in force at its next one.
//!
//! Only the node that boots a machine looks: what it finds is in the machine's memory when it makes its first step, and with
//! that memory it comes to a backup and into a recording. Digests of both files are in the log.
//!
//! Invariants:
//! - The disk is not written: a journal that is to be replayed is replayed in memory.
//! - All on it is the guest's: sizes are bounded before there is memory for them, what is read has a bound, and so has the
//!   time that it takes.
//! - What is not understood is refused, with the place, the reason and what to do.

mod bls;
mod choose;
mod contents;
mod defaults;
mod ext;
pub mod files;
mod grub;
#[cfg(test)]
mod made;
mod partitions;
#[cfg(test)]
mod pretended;
mod refusal;
mod tree;
mod version;
mod volumes;
mod window;
mod words;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use crossbeam_channel::{RecvTimeoutError, bounded};

pub use refusal::Refusal;
pub use tree::Node;
pub use words::merge;

use crate::host::image::SECTOR;
use crate::sandbox::{self, Kind};
use window::Window;

/// Bytes of a kernel, as many as one may have unpacked.
const MAX_KERNEL: u64 = 512 << 20;
/// Bytes that may be read beside kernel and initrd.
const MAX_REST: u64 = 2 << 30;
/// A disk that takes longer is broken, or made up: a file system can be such that its reader goes round in it for years.
const PATIENCE: Duration = Duration::from_secs(300);
/// The same where a file is read that nothing depends on.
const PATIENCE_WITH_FILE: Duration = Duration::from_secs(30);

/// What a disk has to boot.
#[derive(Clone, PartialEq, Eq)]
pub struct Found {
    /// The kernel.
    pub kernel: Vec<u8>,
    /// The initrd, if it has one.
    pub initrd: Option<Vec<u8>>,
    /// The command line of the guest's own configuration.
    pub words: String,
    /// The kernel's path in the guest.
    pub kernel_path: String,
    /// The initrds' paths in the guest.
    pub initrd_paths: Vec<String>,
    /// What the choice follows from, for people.
    pub how: String,
    /// What was passed over, for people.
    pub notes: Vec<String>,
}

/// Whether a disk's beginning is blank: nothing was ever installed on it.
pub fn is_blank(disk: &Path) -> Result<bool> {
    let window = Window::whole(File::open(disk)?, MAX_REST)?;
    Ok(contents::of(&window)? == contents::Contents::Unknown { blank: true })
}

/// Looks up what `disk` has to boot. `memory`: of the machine, in bytes; a larger initrd is refused. Who runs the
/// machine locks its disks, before or after: here nobody does.
pub fn look_up(disk: &Path, memory: u64) -> Result<Found> {
    let cannot = || format!("cannot boot from the disk {}", disk.display());
    let file = File::open(disk).with_context(cannot)?;
    within(PATIENCE, move || in_file(file, memory))?.with_context(cannot)
}

/// Reads the file at `path` of the guest's on `disk`, of at most `limit` bytes; `None` where there is none. As it is on the
/// disk: what the guest has not written there yet is not read.
pub fn read_file(disk: &Path, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
    let cannot = || format!("cannot read {path} on the disk {}", disk.display());
    let file = File::open(disk).with_context(cannot)?;
    let path = path.to_owned();
    let work = move || {
        let window = Window::whole(file, MAX_REST.saturating_add(limit))
            .map_err(|error| Refusal::new("the disk", error.to_string()))?;
        volumes::of(&window)?.tree.read(&path, limit)
    };
    within(PATIENCE_WITH_FILE, work)?.with_context(cannot)
}

/// What `work` finds, on a thread of its own: it may take `patience`, and a panic is an answer, too.
fn within<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<Result<T, Refusal>> {
    let (tell, told) = bounded(1);
    let answer = move || {
        // Who asked may have lost patience.
        let _ = tell.send(work());
    };
    // It ends with its answer, or with the process.
    sandbox::spawn(Kind::Disk, "boot-disk", answer)?;
    let failed = |why: String| Refusal::new("its file system", why);
    Ok(match told.recv_timeout(patience) {
        Ok(found) => found,
        Err(RecvTimeoutError::Timeout) => Err(failed(format!(
            "it could not be read in {} seconds: it is damaged, or the disk is",
            patience.as_secs()
        ))),
        Err(RecvTimeoutError::Disconnected) => Err(failed("its reader failed: it is damaged".into())),
    })
}

/// The same of an open file, without a limit of time.
pub fn in_file(disk: File, memory: u64) -> Result<Found, Refusal> {
    let budget = MAX_REST
        .saturating_add(MAX_KERNEL)
        .saturating_add(memory.saturating_mul(2));
    let window = Window::whole(disk, budget).map_err(|error| Refusal::new("the disk", error.to_string()))?;
    if window.bytes() < 2 * SECTOR {
        return Err(Refusal::new("the disk", "it is too small to have a file system"));
    }
    let volumes = volumes::of(&window)?;
    let tree = volumes.tree;
    let chosen = choose::choose(&tree, volumes.root_word.as_deref())?;
    let gone = |path: &str| Refusal::new(path, "it is not there any more: the disk is written by somebody");
    let kernel = tree
        .read(&chosen.kernel, MAX_KERNEL)?
        .ok_or_else(|| gone(&chosen.kernel))?;
    let mut initrd: Option<Vec<u8>> = None;
    for path in &chosen.initrds {
        let already = initrd.as_ref().map_or(0, Vec::len) as u64;
        let bytes = tree
            .read(path, memory.saturating_sub(already))
            .map_err(|error| error.or("give the machine more memory (`memory-mib`), or make the initrd smaller"))?
            .ok_or_else(|| gone(path))?;
        match &mut initrd {
            None => initrd = Some(bytes),
            Some(before) => {
                // An archive behind another one begins at a multiple of four (Linux, initramfs buffer format).
                before.resize(before.len().next_multiple_of(4), 0);
                before.extend_from_slice(&bytes);
            }
        }
    }
    Ok(Found {
        kernel,
        initrd,
        words: chosen.words,
        kernel_path: chosen.kernel,
        initrd_paths: chosen.initrds,
        how: format!("{}; {}", volumes.how, chosen.how),
        notes: chosen.notes,
    })
}

#[cfg(test)]
mod tests;
