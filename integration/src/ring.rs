//! Rings of recordings.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep_logcodec::{Ending, LogReader, Record};

use crate::verify::Verify;

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(20);
/// The same where something is over soon.
const SHORT_LOOK: Duration = Duration::from_millis(1);

/// A ring's directory, as it is now.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Numbers and directories of the parts that are whole, oldest first.
    pub parts: Vec<(u32, PathBuf)>,
    /// What everything in it takes on the disk.
    pub bytes: u64,
}

impl Ring {
    /// Looks at the ring in `directory`; it may change meanwhile.
    pub fn look(directory: &Path) -> Result<Self> {
        let mut ring = Self {
            parts: Vec::new(),
            bytes: 0,
        };
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            // What goes meanwhile takes nothing.
            for file in fs::read_dir(&path).into_iter().flatten().flatten() {
                ring.bytes += file.metadata().map_or(0, |metadata| metadata.blocks() * 512);
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let number = name
                .strip_prefix("part-")
                .with_context(|| format!("{name} is no part"))?;
            if is_whole(&path) {
                ring.parts.push((number.parse()?, path));
            }
        }
        ring.parts.sort();
        Ok(ring)
    }

    /// Waits until the part with this number is whole. The ring never takes more than `max_bytes` meanwhile.
    pub fn wait_for(directory: &Path, number: u32, max_bytes: u64, limit: Duration) -> Result<Self> {
        let begin = Instant::now();
        let mut most = 0;
        loop {
            if directory.exists() {
                let ring = Self::look(directory)?;
                most = most.max(ring.bytes);
                ensure!(ring.bytes <= max_bytes, "{ring:?} is more than {max_bytes}");
                if ring.parts.last().is_some_and(|(last, _)| *last >= number) {
                    println!(
                        "part {number} after {:.1} s, {most} of {max_bytes} bytes at most",
                        begin.elapsed().as_secs_f64()
                    );
                    return Ok(ring);
                }
            }
            ensure!(begin.elapsed() < limit, "no part {number} after {limit:?}");
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the copying of the part with this number has come to memory: disks have been copied once.
    pub fn wait_for_copied_disks(directory: &Path, number: u32, limit: Duration) -> Result<()> {
        let part = part(directory, number);
        let begin = Instant::now();
        loop {
            // The start state has another name until it is whole.
            for file in fs::read_dir(&part).into_iter().flatten().flatten() {
                let is_disk = file.file_name().to_string_lossy().starts_with("disk-");
                if !is_disk && file.metadata().is_ok_and(|metadata| metadata.len() > 0) {
                    return Ok(());
                }
            }
            ensure!(begin.elapsed() < limit, "part {number} is not begun after {limit:?}");
            std::thread::sleep(SHORT_LOOK);
        }
    }

    /// Whether the part with this number is whole.
    pub fn has_whole(directory: &Path, number: u32) -> bool {
        is_whole(&part(directory, number))
    }

    /// Waits until a part's log has a batch.
    pub fn wait_for_batch(part: &Path, limit: Duration) -> Result<()> {
        let begin = Instant::now();
        // What is being written may end in the middle of a record.
        while !has_batch(part).unwrap_or(false) {
            ensure!(begin.elapsed() < limit, "{} has no batch", part.display());
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Every part is replayed exactly, and begins where the one before has a batch that ends so. All but the last end there.
    pub fn verify(&self) -> Result<()> {
        self.verify_parts(self.parts.len().saturating_sub(1))
    }

    /// The same of a process that was killed: the last part may have become whole just before, and the one before it is not
    /// ended then.
    pub fn verify_killed(&self) -> Result<()> {
        self.verify_parts(self.parts.len().saturating_sub(2))
    }

    /// The first `ended` parts have an end.
    fn verify_parts(&self, ended: usize) -> Result<()> {
        for (number, part) in &self.parts {
            let verify = Verify::run(part)?;
            let report = verify.identical().with_context(|| format!("part {number}"))?;
            println!(
                "part {number}: {} stops, {} turns, ends {}",
                report["stops"], report["turns"], report["ending"]
            );
        }
        for (index, parts) in self.parts.windows(2).enumerate() {
            let [(_, before), (number, next)] = parts else { continue };
            let identity = LogReader::open(next)?.identity().clone();
            ensure!(identity.part == *number, "{identity:?}");
            let place = (identity.start_stop, identity.start_chain);
            let mut reader = LogReader::open(before)?;
            let mut is_found = (reader.identity().start_stop, reader.identity().start_chain.clone()) == place;
            while let Some(record) = reader.next_record()? {
                if let Record::Batch(batch) = record {
                    is_found |= (batch.last_stop, batch.digest) == place;
                }
            }
            ensure!(
                is_found,
                "part {number} begins at {}, where the one before has no batch's end",
                place.0
            );
            let ending = reader.ending();
            ensure!(
                index >= ended || matches!(&ending, Ending::Clean(end) if end.continued && end.last_stop >= place.0),
                "before part {number}: {ending:?}"
            );
        }
        Ok(())
    }
}

fn part(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("part-{number:08}"))
}

/// The start state gets its name last.
fn is_whole(part: &Path) -> bool {
    part.join("start.snapshot").exists()
}

fn has_batch(part: &Path) -> Result<bool> {
    let mut reader = LogReader::open(part)?;
    while let Some(record) = reader.next_record()? {
        if matches!(record, Record::Batch(_)) {
            return Ok(true);
        }
    }
    Ok(false)
}
