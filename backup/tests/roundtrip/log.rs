//! The log: as the recorder gives it, with what a planted bug makes of it, and through the codec to the replayer.

use std::cell::RefCell;
use std::rc::Rc;

use lockstep_logcodec::frame::{FrameReader, FrameWriter, Next};
use lockstep_logcodec::packed::pack;
use lockstep_logcodec::record::{LOG_FORMAT, kind};
use lockstep_logcodec::{Ending, LogError, Record, StreamChecker, pack_pages};
use lockstep_primary::recorder::{Keeper, LogSummary};
use lockstep_proto::quantity::{PageNumber, StopNumber};
use lockstep_proto::{Batch, End, MachineConfig, Turn};
use lockstep_replay::feed::Source;

use super::bug::Bug;

#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    Pages(Vec<PageNumber>, Vec<u8>),
    Batch(Batch),
    End(End),
}

/// Keeps the log in memory.
#[derive(Clone, Default)]
pub struct Journal(Rc<RefCell<Vec<Entry>>>);

impl Journal {
    pub fn push(&self, entry: Entry) {
        self.0.borrow_mut().push(entry);
    }

    pub fn take(&self) -> Vec<Entry> {
        self.0.take()
    }
}

impl Keeper for Journal {
    fn batch(&self, batch: Batch) -> Result<(), String> {
        self.push(Entry::Batch(batch));
        Ok(())
    }

    fn pages(&self, frames: Vec<PageNumber>, pages: Vec<u8>) -> Result<(), String> {
        self.push(Entry::Pages(frames, pages));
        Ok(())
    }

    fn finish(self: Box<Self>, end: End) -> Result<LogSummary, String> {
        self.push(Entry::End(end));
        Ok(LogSummary::default())
    }

    fn give_up(self: Box<Self>) {}
}

/// What `bug` makes of the log, once: at the place with number `at` of those that there are, counted round.
pub fn spoil(entries: &mut Vec<Entry>, bug: Bug, at: u64) {
    match bug {
        Bug::InputEarly => {
            let late = |turns: &[Turn]| turns.iter().skip(1).any(|turn| !turn.disks.is_empty());
            let turns = batches(entries).into_iter().map(|batch| &mut batch.turns);
            if let Some(turns) = nth(turns.filter(|turns| late(turns)).collect(), at) {
                let of = (1..turns.len()).find(|&of| !turns[of].disks.is_empty()).unwrap_or(1);
                let mut early = std::mem::take(&mut turns[of].disks);
                turns[of - 1].disks.append(&mut early);
            }
        }
        Bug::FrameLost => {
            let turns = turns(entries).filter(|turn| !turn.frames.is_empty());
            if let Some(turn) = nth(turns.collect(), at) {
                turn.frames.pop();
            }
        }
        Bug::TypedOtherwise => {
            let turns = turns(entries).filter(|turn| turn.console.first() != turn.console.last());
            if let Some(turn) = nth(turns.collect(), at) {
                turn.console = turn.console.iter().rev().copied().collect();
            }
        }
        Bug::RandomOtherwise => {
            let values = turns(entries).filter_map(|turn| turn.random.as_mut());
            if let Some(value) = nth(values.collect(), at) {
                *value ^= 1 << (at % 64);
            }
        }
        Bug::DeltaLeftOut => leave_out_delta(entries, at),
        Bug::PageLeftOut => leave_out_page(entries, at),
        Bug::BatchSplitWrong => split_wrong(entries, at),
        _ => {}
    }
}

fn nth<T>(of: Vec<T>, at: u64) -> Option<T> {
    let at = at as usize % of.len().max(1);
    of.into_iter().nth(at)
}

fn batches(entries: &mut [Entry]) -> Vec<&mut Batch> {
    entries
        .iter_mut()
        .filter_map(|entry| match entry {
            Entry::Batch(batch) => Some(batch),
            Entry::Pages(..) | Entry::End(_) => None,
        })
        .collect()
}

fn turns(entries: &mut [Entry]) -> impl Iterator<Item = &mut Turn> {
    batches(entries).into_iter().flat_map(|batch| &mut batch.turns)
}

/// Where the pages of each forced stop stand.
fn deltas(entries: &[Entry]) -> Vec<usize> {
    let is = |entry: &Entry| matches!(entry, Entry::Pages(..));
    (0..entries.len()).filter(|&at| is(&entries[at])).collect()
}

fn leave_out_delta(entries: &mut Vec<Entry>, at: u64) {
    let places = deltas(entries);
    let Some(place) = nth(places.clone(), at) else { return };
    let mut before = places.iter().filter(|&&of| of < place).count();
    for batch in batches(entries) {
        let is_it = |turn: &Turn| {
            let is_forced = turn.forced.is_some();
            let is_it = is_forced && before == 0;
            before = before.wrapping_sub(is_forced.into());
            is_it
        };
        if let Some(of) = batch.turns.iter().position(is_it) {
            let gone = batch.turns.remove(of);
            if let Some(next) = batch.turns.get_mut(of) {
                next.gap += gone.gap;
            }
            break;
        }
    }
    entries.remove(place);
}

fn leave_out_page(entries: &mut [Entry], at: u64) {
    let places = deltas(entries);
    let Some(number) = nth((0..places.len()).collect(), at) else {
        return;
    };
    if let Entry::Pages(frames, pages) = &mut entries[places[number]]
        && frames.pop().is_some()
    {
        pages.truncate(frames.len() * 4096);
        let forced = turns(entries).filter_map(|turn| turn.forced.as_mut()).nth(number);
        forced.expect("pages have a turn").pages -= 1;
    }
}

fn split_wrong(entries: &mut [Entry], at: u64) {
    let batches = batches(entries);
    // The stop that is taken away from the next one is not its last, nor that of a turn.
    let has_more =
        |next: &Batch| next.last_stop > next.first_stop + 1 && next.turns.first().is_none_or(|turn| turn.gap > 1);
    let places = (1..batches.len()).filter(|&of| has_more(batches[of])).collect();
    let Some(place) = nth(places, at) else { return };
    for (of, batch) in batches.into_iter().enumerate() {
        if of + 1 == place {
            batch.last_stop += 1;
        } else if of == place {
            batch.first_stop += 1;
            if let Some(turn) = batch.turns.first_mut() {
                turn.gap -= 1;
            }
        }
    }
}

/// The log as it was written and read.
pub struct Written {
    records: std::vec::IntoIter<Record>,
    checker: StreamChecker,
}

impl Written {
    pub fn new(entries: Vec<Entry>, config: &MachineConfig, chain: [u8; 16]) -> Self {
        let mut writer = FrameWriter::create(Vec::new(), LOG_FORMAT).expect("memory takes all");
        for entry in entries {
            match entry {
                Entry::Pages(frames, pages) if frames.is_empty() => assert!(pages.is_empty()),
                Entry::Pages(frames, pages) => {
                    let chunk = pack_pages(frames.into_iter().zip(pages.chunks(4096))).expect("pages");
                    writer.write_message(kind::PAGES, &chunk).expect("a frame");
                }
                Entry::Batch(batch) => {
                    writer.write_message(kind::BATCH, &pack(&batch)).expect("a frame");
                }
                Entry::End(end) => {
                    writer.write_message(kind::END, &end).expect("a frame");
                }
            }
        }
        let bytes = writer.into_inner();
        let mut reader = FrameReader::open(&bytes[..], LOG_FORMAT).expect("what was written");
        let mut records = Vec::new();
        while let Next::Frame(frame) = reader.next().expect("what was written") {
            records.push(Record::decode(frame.kind, frame.payload).expect("what was written"));
        }
        Self {
            records: records.into_iter(),
            checker: StreamChecker::new(config, StopNumber::START, chain.to_vec().into()),
        }
    }
}

impl Source for Written {
    fn next_record(&mut self) -> Result<Option<Record>, LogError> {
        let record = self.records.next();
        if let Some(record) = &record {
            self.checker.take(record).map_err(LogError::Refused)?;
        }
        Ok(record)
    }

    fn ending(&self) -> Ending {
        Ending::Unfinished
    }
}
