//! A ring: a directory of parts, each a whole recording, of which the oldest are removed as new ones begin.
//!
//! Invariants:
//! - A part is whole when its start state is there: that file is the last to come and the first to go. What has none is
//!   not listed, and removed when the ring is opened again.
//! - Numbers only grow.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::start_snapshot;
use crate::start::realtime_seconds;

/// The log of a part is at least one part in this many of the ring's bytes, however large its start state is.
const LEAST_LOG: u64 = 16;
/// The log may grow by one part in this many of the ring's bytes between two looks.
pub const SLACK: u64 = 32;
/// A part has one part in this many of what the ring may have, in bytes or in time.
const SHARE: u32 = 4;

/// How much a ring keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that all parts take on the disk together, at most.
    pub max_bytes: Option<u64>,
    /// What is older than this is removed, as far as no younger part needs it.
    pub max_age: Option<Duration>,
}

/// A part, as its files say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its number, from 1.
    pub number: u32,
    /// Where it lies.
    pub directory: PathBuf,
    /// What all its files take on the disk.
    pub bytes: u64,
    /// What those take that are not its log.
    pub start_bytes: u64,
    /// When its start state was whole, in seconds since 1970; `None`: it is not.
    pub begun: Option<i64>,
}

impl Limits {
    /// Whether a recording with these is a ring.
    pub fn are_given(&self) -> bool {
        *self != Self::default()
    }

    /// Bytes of log with which a part ends whose start state has `start_bytes`.
    pub fn log_share(&self, start_bytes: u64) -> Option<u64> {
        let max = self.max_bytes?;
        let share = max / u64::from(SHARE);
        Some(share.saturating_sub(start_bytes).max(max / LEAST_LOG))
    }

    /// The age with which a part ends.
    pub fn part_age(&self) -> Option<Duration> {
        self.max_age.map(|age| age / SHARE)
    }

    /// How many of `parts`, the oldest ones, are to go, where those from `first_needed` on stay and `more` bytes are about
    /// to come: those that are older than the limit as a whole, and those that there is no room for.
    pub fn surplus(&self, parts: &[Part], first_needed: u32, more: u64, now: i64) -> usize {
        let removable = parts.iter().take_while(|part| part.number < first_needed).count();
        let old = self.max_age.map_or(0, |age| {
            let age = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
            let is_over = |next: &Part| next.begun.is_some_and(|at| now.saturating_sub(at) >= age);
            // A part is over where the next one begins.
            parts.iter().skip(1).take_while(|next| is_over(next)).count()
        });
        let large = self.max_bytes.map_or(0, |max| {
            let mut total = parts.iter().fold(more, |sum, part| sum.saturating_add(part.bytes));
            let too_many = parts.iter().take_while(|part| {
                let is_too_much = total > max;
                total = total.saturating_sub(part.bytes);
                is_too_much
            });
            too_many.count()
        });
        old.max(large).min(removable)
    }
}

/// A ring that this process records into.
#[derive(Debug)]
pub struct Ring {
    directory: PathBuf,
    limits: Limits,
    /// Held for as long as the process records here.
    _lock: File,
}

impl Ring {
    /// Opens the ring in `directory`, which is created if need be. What an earlier process left stays, as far as it is whole.
    pub fn open(directory: &Path, limits: Limits) -> Result<Self> {
        let shown = directory.display();
        fs::create_dir_all(directory).with_context(|| format!("cannot create {shown}"))?;
        let lock = File::open(directory).with_context(|| format!("cannot open {shown}"))?;
        // Not every file system has locks.
        if let Err(Errno::WOULDBLOCK) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            bail!("another process records into {shown}: give each its own directory");
        }
        let ring = Self {
            directory: directory.to_owned(),
            limits,
            _lock: lock,
        };
        for entry in fs::read_dir(directory).with_context(|| format!("cannot read {shown}"))? {
            let name = entry?.file_name();
            // What else lies there is left alone.
            if name.to_string_lossy().starts_with("segment-") {
                bail!("{shown} is a recording and no ring: give --record a directory that is new, empty or a ring");
            }
        }
        for part in ring.parts()? {
            if part.begun.is_none() {
                ring.remove(&part)?;
            }
        }
        Ok(ring)
    }

    /// How much it keeps.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Its parts, oldest first, those that are not whole too.
    pub fn parts(&self) -> Result<Vec<Part>> {
        parts(&self.directory)
    }

    /// Makes room for a start state with disks of so many bytes and memory like the last one's. `first_needed` as in
    /// [`Limits::surplus`]; `None`: the newest part that is whole.
    pub fn make_room(&self, disks: u64, first_needed: Option<u32>) -> Result<()> {
        let parts = self.parts()?;
        let newest = parts.iter().rfind(|part| part.begun.is_some());
        let memory = newest.map_or(0, |part| {
            fs::metadata(start_snapshot(&part.directory)).map_or(0, |snapshot| snapshot.len())
        });
        // Its pages are there twice for a moment.
        let start = disks.saturating_add(2 * memory);
        let slack = self.limits.max_bytes.map_or(0, |max| max / SLACK);
        let first_needed = first_needed.unwrap_or_else(|| newest.map_or(u32::MAX, |part| part.number));
        let surplus = self
            .limits
            .surplus(&parts, first_needed, start.saturating_add(slack), realtime_seconds());
        parts.iter().take(surplus).try_for_each(|part| self.remove(part))
    }

    /// Makes the next part's directory.
    pub fn make_next(&self) -> Result<(u32, PathBuf)> {
        let last = self.parts()?.last().map_or(0, |part| part.number);
        let number = last.checked_add(1).context("the ring has no more numbers")?;
        let directory = self.directory.join(name_of(number));
        fs::create_dir(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        Ok((number, directory))
    }

    /// Removes a part.
    pub fn remove(&self, part: &Part) -> Result<()> {
        remove(&part.directory)
    }
}

/// Removes a part's directory; after a crash in the middle of it, it is one that is not whole.
pub fn remove(directory: &Path) -> Result<()> {
    let shown = || format!("cannot remove {}", directory.display());
    for removed in [
        fs::remove_file(start_snapshot(directory)),
        fs::remove_dir_all(directory),
    ] {
        match removed {
            // Somebody was faster.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.with_context(shown)?,
        }
    }
    Ok(())
}

fn name_of(number: u32) -> String {
    format!("part-{number:08}")
}

fn number_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("part-")?;
    let is_number = digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

/// The parts in a ring's directory, oldest first; empty where it is none.
pub fn parts(directory: &Path) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().and_then(number_of) else {
            continue;
        };
        parts.extend(look(number, entry.path())?);
    }
    parts.sort_by_key(|part| part.number);
    Ok(parts)
}

/// What a part's files say; none where it is removed meanwhile.
fn look(number: u32, directory: PathBuf) -> Result<Option<Part>> {
    let gone = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let shown = || format!("cannot read {}", directory.display());
    let entries = match fs::read_dir(&directory) {
        Err(error) if gone(&error) => return Ok(None),
        entries => entries.with_context(shown)?,
    };
    let (mut bytes, mut start_bytes) = (0, 0);
    for entry in entries {
        let entry = entry.with_context(shown)?;
        // A file may get its name, or go, at any time.
        let Ok(metadata) = entry.metadata() else { continue };
        let on_disk = metadata.blocks() * 512;
        bytes += on_disk;
        if !entry.file_name().to_string_lossy().starts_with("segment-") {
            start_bytes += on_disk;
        }
    }
    let begun = fs::metadata(start_snapshot(&directory)).ok().map(|start| start.mtime());
    Ok(Some(Part {
        number,
        directory,
        bytes,
        start_bytes,
        begun,
    }))
}

#[cfg(test)]
mod tests;
