//! Changes recordings: what a checksum does not notice, and what it does.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lockstep_logcodec::limits::MAX_CLOCK_STEP_NS;
use lockstep_logcodec::{LogReader, LogWriter, Record, WriterOptions};
use lockstep_proto::{Identity, Turn};

/// The value of a turn that is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The clock sample.
    Clock,
    /// The clock sample: not one bit of it, but the longest step that a log may have.
    LongClock,
    /// A byte typed on the console.
    Console,
    /// A byte of a received frame.
    Frame,
    /// What a trapped RDRAND or RDSEED gave: a bit of the high half.
    Random,
    /// A byte that the entropy device gave.
    Entropy,
}

impl Value {
    /// Changes one bit of it, if the turn has one. Forced turns are left alone: a delta overwrites much.
    fn flip(self, turn: &mut Turn) -> bool {
        if turn.forced.is_some() {
            return false;
        }
        match self {
            Self::Clock => turn.clock.as_mut().map(|clock| *clock ^= 1 << 4).is_some(),
            Self::LongClock => turn.clock.as_mut().map(|clock| *clock = MAX_CLOCK_STEP_NS).is_some(),
            Self::Random => turn.random.as_mut().map(|random| *random ^= 1 << 33).is_some(),
            Self::Console => {
                !turn.console.is_empty() && {
                    let mut bytes = turn.console.to_vec();
                    bytes[0] ^= 1;
                    turn.console = bytes.into();
                    true
                }
            }
            Self::Frame => turn.frames.first_mut().is_some_and(|frame| {
                let mut bytes = frame.data.to_vec();
                // The last byte: payload in most frames, so that only the content differs.
                if let Some(last) = bytes.last_mut() {
                    *last ^= 1 << 6;
                }
                frame.data = bytes.into();
                true
            }),
            Self::Entropy => turn
                .entropy
                .iter_mut()
                .find(|bytes| !bytes.is_empty())
                .is_some_and(|answer| {
                    let mut bytes = answer.to_vec();
                    bytes[0] ^= 1 << 2;
                    *answer = bytes.into();
                    true
                }),
        }
    }
}

/// Copies the recording `from` to `to` with one bit of one turn changed and all checksums right, in the first batch at
/// or after `share` of the batches (0 to 1) that has such a value. Returns the batch's number.
pub fn flip_bit(from: &Path, to: &Path, value: Value, share: f64) -> Result<u64> {
    let mut reader = LogReader::open(from)?;
    let mut records = Vec::new();
    while let Some(record) = reader.next_record()? {
        records.push(record);
    }
    let batches = records
        .iter()
        .filter(|record| matches!(record, Record::Batch(_)))
        .count();
    let first = (batches as f64 * share) as u64;
    let mut number = 0;
    let mut changed = None;
    for record in &mut records {
        let Record::Batch(batch) = record else { continue };
        if changed.is_none() && number >= first && batch.turns.iter_mut().any(|turn| value.flip(turn)) {
            changed = Some(number);
        }
        number += 1;
    }
    let changed = changed.with_context(|| format!("no {value:?} in the last of {batches} batches"))?;
    copy_start(from, to)?;
    write(to, reader.identity(), records)?;
    Ok(changed)
}

/// Copies the recording `from` to `to` with another identity.
pub fn change_identity(from: &Path, to: &Path, change: impl FnOnce(&mut Identity)) -> Result<()> {
    let mut reader = LogReader::open(from)?;
    let mut identity = reader.identity().clone();
    change(&mut identity);
    let records = std::iter::from_fn(|| reader.next_record().transpose()).collect::<Result<Vec<_>, _>>()?;
    copy_start(from, to)?;
    write(to, &identity, records)
}

fn write(to: &Path, identity: &Identity, records: Vec<Record>) -> Result<()> {
    let mut writer = LogWriter::create(to, identity, WriterOptions::default())?;
    for record in records {
        match record {
            Record::Pages(chunk) => writer.append_pages(&chunk)?,
            Record::Batch(batch) => writer.append_batch(&batch)?,
            Record::End(end) => {
                writer.finish(end)?;
                return Ok(());
            }
        }
    }
    bail!("the log has no end")
}

/// Copies a recording.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    copy_some(from, to, |_| true)
}

/// Copies what a log starts from, and not the log.
fn copy_start(from: &Path, to: &Path) -> Result<()> {
    copy_some(from, to, |name| !name.starts_with("segment-"))
}

fn copy_some(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if wanted(&entry.file_name().to_string_lossy()) {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// The first segment of a recording.
pub fn segment(directory: &Path) -> PathBuf {
    directory.join("segment-00000000.lsl")
}

/// Gives the first segment another format version, with the header's checksum right.
pub fn set_version(directory: &Path, version: u32) -> Result<()> {
    let path = segment(directory);
    let mut bytes = fs::read(&path)?;
    let header = bytes.get_mut(..16).context("no header")?;
    header[8..12].copy_from_slice(&version.to_le_bytes());
    let crc = crc32c::crc32c(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    Ok(fs::write(path, bytes)?)
}
