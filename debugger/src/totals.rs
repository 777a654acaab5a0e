//! What a log sums up to, and how it ends.

use std::path::Path;

use anyhow::Result;
use lockstep_logcodec::{Ending, LogError, LogReader, Record, packed, positions};
use lockstep_proto::end::Reason;
use lockstep_proto::quantity::StopNumber;
use lockstep_proto::{Batch, TermBegun, Turn};
use prost::Message;

/// Sums over a whole log.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub last_stop: StopNumber,
    pub batches: u64,
    pub turns: u64,
    pub clock: u64,
    pub random: u64,
    pub frames: u64,
    pub frame_bytes: u64,
    pub console: u64,
    pub keyboard: u64,
    pub power_button: u64,
    pub disk: u64,
    pub entropy: u64,
    pub forced: u64,
    pub delta_pages: u64,
    pub epochs: u64,
    pub guest_ns: u64,
    pub batch_bytes: u64,
    pub page_bytes: u64,
    pub file_bytes: u64,
    /// Terms that began in it, in order.
    pub terms: Vec<TermBegun>,
    /// How it ends; `None` where it is damaged.
    pub ending: Option<Ending>,
}

impl Totals {
    /// Reads the log in `directory` from its beginning to its end.
    pub fn of(directory: &Path) -> Result<Self> {
        match Self::up_to_damage(LogReader::open(directory)?, directory)? {
            (totals, None) => Ok(totals),
            (_, Some(damage)) => Err(damage.into()),
        }
    }

    /// Reads a log to its end, or up to damage in it, which is returned with what was good.
    pub fn up_to_damage(mut reader: LogReader, directory: &Path) -> Result<(Self, Option<LogError>)> {
        let mut totals = Self {
            last_stop: StopNumber::new(reader.identity().start_stop),
            ..Self::default()
        };
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("segment-") {
                totals.file_bytes += entry.metadata()?.len();
            }
        }
        loop {
            let record = match reader.next_record() {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(damage) => return Ok((totals, Some(damage))),
            };
            match record {
                Record::Pages(chunk) => totals.page_bytes += chunk.encoded_len() as u64,
                Record::End(_) => {}
                Record::Batch(batch) => {
                    totals.batches += 1;
                    let bytes = packed::pack(&batch).encoded_len() as u64;
                    let states: u64 = forced_bytes(&batch);
                    totals.batch_bytes += bytes.saturating_sub(states);
                    totals.page_bytes += states;
                    totals.last_stop = StopNumber::new(batch.last_stop);
                    totals.terms.extend_from_slice(&batch.terms);
                    for (_, turn) in positions(&batch) {
                        totals.add(turn);
                    }
                }
            }
        }
        totals.ending = Some(reader.ending());
        Ok((totals, None))
    }

    fn add(&mut self, turn: &Turn) {
        self.turns += 1;
        self.clock += u64::from(turn.clock.is_some());
        self.guest_ns = self.guest_ns.saturating_add(turn.clock.unwrap_or(0));
        self.random += u64::from(turn.random.is_some());
        self.frames += turn.frames.len() as u64;
        self.frame_bytes += turn.frames.iter().map(|frame| frame.data.len() as u64).sum::<u64>();
        self.console += turn.console.len() as u64;
        self.keyboard += turn.keyboard.len() as u64;
        self.power_button += u64::from(turn.power_button);
        self.disk += turn.disks.len() as u64;
        self.entropy += turn.entropy.len() as u64;
        self.epochs += u64::from(turn.epoch.is_some());
        if let Some(forced) = &turn.forced {
            self.forced += 1;
            self.delta_pages += u64::from(forced.pages);
        }
    }

    /// All bytes of the log's files.
    pub fn all_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Bytes that are neither turns nor delta pages.
    pub fn other_bytes(&self) -> u64 {
        self.file_bytes.saturating_sub(self.batch_bytes + self.page_bytes)
    }
}

/// Bytes of the vCPU states in a batch: part of its deltas.
fn forced_bytes(batch: &Batch) -> u64 {
    batch
        .turns
        .iter()
        .filter_map(|turn| turn.forced.as_ref())
        .map(|forced| forced.encoded_len() as u64)
        .sum()
}

/// How a log ends, in words.
pub fn describe_ending(ending: &Ending) -> String {
    match ending {
        Ending::Clean(end) if end.continued => "in order (the next part of the ring goes on)".into(),
        Ending::Clean(end) => match end.reason() {
            Reason::Quit if end.detail.is_empty() => "in order (ended from outside)".into(),
            Reason::Quit => format!("at a failover: in term {}, {}", end.term, end.detail),
            Reason::Reset => "in order (the guest reset)".into(),
            Reason::PoweredOff => "in order (the guest powered off)".into(),
            Reason::Halted => "in order (the guest halted with interrupts off)".into(),
            Reason::Failed => format!("because the recorder failed: {}", end.detail),
            Reason::Unspecified => "in order".into(),
        },
        Ending::Torn {
            segment,
            offset,
            bytes_lost,
        } => {
            format!("torn: segment {segment} at offset {offset}, {bytes_lost} bytes of an unfinished record left out")
        }
        Ending::Unfinished => "without an end: the recorder was killed, or still writes".into(),
    }
}
