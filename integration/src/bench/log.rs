//! What a stretch of a log consists of.

use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use lockstep_logcodec::frame::FRAME_HEADER_BYTES;
use lockstep_logcodec::{LogReader, Record, packed};
use lockstep_proto::Batch;
use prost::Message;

/// Sums over a stretch of guest time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sums {
    /// Natural stops.
    pub stops: u64,
    /// Turns.
    pub turns: u64,
    /// Bytes of batches with their frames, less the vCPU states of deltas.
    pub turn_bytes: u64,
    /// Bytes of deltas: pages with their frames, and vCPU states.
    pub delta_bytes: u64,
    /// Forced stops.
    pub deltas: u64,
    /// Pages in them.
    pub delta_pages: u64,
    /// Bytes of Ethernet frames that came in.
    pub network_bytes: u64,
    /// Epochs.
    pub epochs: u64,
}

/// One batch with the pages before it.
struct Entry {
    /// Guest time at its beginning, in seconds since the recording's.
    begin: f64,
    /// A line was typed in it.
    line: bool,
    sums: Sums,
}

/// A log, batch by batch.
pub struct Log {
    entries: Vec<Entry>,
    seconds: f64,
}

impl Log {
    /// Reads the log in `directory`.
    pub fn read(directory: &Path) -> Result<Self> {
        let mut reader = LogReader::open(directory)?;
        let (mut entries, mut page_bytes, mut ns) = (Vec::new(), 0, 0);
        while let Some(record) = reader.next_record()? {
            match record {
                Record::Pages(chunk) => page_bytes += (chunk.encoded_len() + FRAME_HEADER_BYTES) as u64,
                Record::Batch(batch) => {
                    let begin = ns as f64 / 1e9;
                    ns += batch.turns.iter().filter_map(|turn| turn.clock).sum::<u64>();
                    let line = batch.turns.iter().any(|turn| turn.console.contains(&b'\n'));
                    let mut sums = sums(&batch);
                    sums.delta_bytes += std::mem::take(&mut page_bytes);
                    entries.push(Entry { begin, line, sums });
                }
                Record::End(_) => {}
            }
        }
        Ok(Self {
            entries,
            seconds: ns as f64 / 1e9,
        })
    }

    /// Guest time in seconds.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// When the last line was typed into the guest's console.
    pub fn last_line(&self) -> f64 {
        self.entries
            .iter()
            .rev()
            .find(|entry| entry.line)
            .map_or(0.0, |entry| entry.begin)
    }

    /// Sums over the batches that begin in `stretch` (seconds of guest time; a batch has a quarter of one at most).
    pub fn sums(&self, stretch: Range<f64>) -> Sums {
        let mut all = Sums::default();
        for entry in self.entries.iter().filter(|entry| stretch.contains(&entry.begin)) {
            let one = entry.sums;
            all.stops += one.stops;
            all.turns += one.turns;
            all.turn_bytes += one.turn_bytes;
            all.delta_bytes += one.delta_bytes;
            all.deltas += one.deltas;
            all.delta_pages += one.delta_pages;
            all.network_bytes += one.network_bytes;
            all.epochs += one.epochs;
        }
        all
    }
}

fn sums(batch: &Batch) -> Sums {
    let mut sums = Sums {
        stops: batch.last_stop - batch.first_stop,
        turns: batch.turns.len() as u64,
        turn_bytes: (packed::pack(batch).encoded_len() + FRAME_HEADER_BYTES) as u64,
        ..Sums::default()
    };
    for turn in &batch.turns {
        sums.network_bytes += turn.frames.iter().map(|frame| frame.data.len() as u64).sum::<u64>();
        sums.epochs += u64::from(turn.epoch.is_some());
        if let Some(forced) = &turn.forced {
            let state = forced.encoded_len() as u64;
            sums.deltas += 1;
            sums.delta_pages += u64::from(forced.pages);
            sums.delta_bytes += state;
            sums.turn_bytes = sums.turn_bytes.saturating_sub(state);
        }
    }
    sums
}
