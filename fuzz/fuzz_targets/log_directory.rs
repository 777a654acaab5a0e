//! Feeds directories to the reader of logs: several segments, plain and compressed, their indexes, and a log that grows
//! while it is read.
//!
//! fuzz/README.md says how it is run. Files are made in the system's temporary directory: one in memory is fast.
//!
//! CRCs and headers would stop nearly everything at once, so segments begin with a header that fits, and most bytes become
//! payloads of frames with right CRCs.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use lockstep_logcodec::frame::{FILE_HEADER_BYTES, FrameWriter};
use lockstep_logcodec::index::{INDEX_FORMAT, KIND_ENTRY};
use lockstep_logcodec::record::{LOG_FORMAT, kind};
use lockstep_logcodec::segment::{compressed_name, index_name, plain_name};
use lockstep_logcodec::{Ending, LogReader, Record, cut_torn_tail, packed};
use lockstep_proto::quantity::StopNumber;
use lockstep_proto::{Batch, End, Identity, MachineConfig, SegmentHeader, Turn, end};

/// Segments of a log, at most.
const SEGMENTS: u32 = 4;
/// Records that are read, at most: a bound on the work for an input.
const RECORDS: usize = 10_000;

fuzz_target!(|bytes: &[u8]| {
    let dir = directory();
    let Some(grown) = make(dir, bytes) else { return };
    let whole = read(dir);
    seek(dir, &whole, bytes);
    grow(dir, &whole, grown);
    // Cutting needs no luck either: what is left has no torn tail.
    if cut_torn_tail(dir).is_ok() && LogReader::open(dir).is_ok() {
        let (_, ending) = read(dir);
        assert!(!matches!(ending, Some(Ending::Torn { .. })));
    }
});

fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIRECTORY
        .get_or_init(|| tempfile::tempdir().expect("a temporary directory"))
        .path()
}

/// The bytes as a small program: each step takes one byte for what to do.
struct Steps<'a>(&'a [u8]);

impl<'a> Steps<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte().unwrap_or(0)) | usize::from(self.byte().unwrap_or(0) & 3) << 8;
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

/// Makes a log's files. Returns how many bytes of the last segment are there at first where the log grows; None where there
/// is no log.
fn make(dir: &Path, bytes: &[u8]) -> Option<usize> {
    for entry in fs::read_dir(dir).expect("list") {
        fs::remove_file(entry.expect("entry").path()).expect("remove");
    }
    let mut steps = Steps(bytes);
    let grown = usize::from(steps.byte()?) << 4;
    let mut stop = 0;
    for number in 0..SEGMENTS {
        let segment = segment(&mut steps, number, &mut stop);
        let how = steps.byte().unwrap_or(0);
        if how & 1 != 0 {
            let packed = zstd::encode_all(&segment[..], 1).expect("memory");
            // Sometimes damaged, sometimes not.
            let end = packed.len() - (usize::from(how >> 5)).min(packed.len());
            fs::write(dir.join(compressed_name(number)), &packed[..end]).expect("write");
        }
        if how & 3 != 1 {
            fs::write(dir.join(plain_name(number)), &segment).expect("write");
        }
        if how & 4 != 0 {
            fs::write(dir.join(index_name(number)), index(&mut steps)).expect("write");
        }
        if how & 8 == 0 {
            break;
        }
    }
    Some(grown)
}

fn identity() -> Identity {
    Identity {
        machine: Some(MachineConfig::default()),
        start_chain: vec![0; 16].into(),
        ..Identity::default()
    }
}

/// A segment of batches that fit, with whatever the bytes put between and after them.
fn segment(steps: &mut Steps, number: u32, stop: &mut u64) -> Vec<u8> {
    let header = SegmentHeader {
        identity: Some(identity()),
        number,
        first_stop: *stop,
        chain: stop_digest(*stop),
    };
    let mut frames = FrameWriter::create(Vec::new(), LOG_FORMAT).expect("memory");
    frames.write_message(kind::SEGMENT_HEADER, &header).expect("memory");
    while let Some(step) = steps.byte() {
        match step % 8 {
            // A batch that fits, with ticks of any size.
            0..=2 => {
                let turn = Turn {
                    gap: u32::from(step >> 6),
                    clock: Some(u64::from(step) << (step % 56)),
                    console: steps.bytes().to_vec().into(),
                    ..Turn::default()
                };
                let last_stop = stop.saturating_add(u64::from(step >> 3) + u64::from(turn.gap));
                let batch = Batch {
                    first_stop: *stop,
                    last_stop,
                    digest: stop_digest(last_stop),
                    turns: vec![turn],
                    ..Batch::default()
                };
                *stop = last_stop;
                frames
                    .write_message(kind::BATCH, &packed::pack(&batch))
                    .expect("memory");
            }
            // Any payload.
            3 | 4 => {
                let kind = u32::from(step >> 3) % 6 + 1;
                frames.write(kind, steps.bytes()).expect("memory");
            }
            5 => {
                let end = End {
                    reason: end::Reason::Quit.into(),
                    last_stop: *stop,
                    digest: stop_digest(*stop),
                    ..End::default()
                };
                frames.write_message(kind::END, &end).expect("memory");
            }
            // The segment ends here: in order, or with any tail.
            6 => {
                let mut bytes = frames.into_inner();
                bytes.extend_from_slice(steps.bytes());
                return bytes;
            }
            _ => return frames.into_inner(),
        }
    }
    frames.into_inner()
}

fn stop_digest(stop: u64) -> bytes::Bytes {
    u128::from(stop).to_be_bytes().to_vec().into()
}

fn index(steps: &mut Steps) -> Vec<u8> {
    let mut frames = FrameWriter::create(Vec::new(), INDEX_FORMAT).expect("memory");
    for entry in steps.bytes().chunks(4) {
        let mut payload = [0; 16];
        payload[0] = entry[0];
        payload[8..][..entry.len() - 1].copy_from_slice(&entry[1..]);
        frames.write(KIND_ENTRY, &payload).expect("memory");
    }
    frames.into_inner()
}

/// What a log delivers, and how it ends; None where that is an error.
type Whole = (Vec<Record>, Option<Ending>);

fn read(dir: &Path) -> Whole {
    match LogReader::open(dir) {
        Ok(mut reader) => drain(&mut reader),
        Err(_) => (Vec::new(), None),
    }
}

fn drain(reader: &mut LogReader) -> Whole {
    let mut records = Vec::new();
    let mut stop = reader.stop().get();
    while records.len() < RECORDS {
        match reader.next_record() {
            Ok(Some(record)) => {
                if let Record::Batch(batch) = &record {
                    assert_eq!(batch.first_stop, stop);
                    stop = batch.last_stop;
                }
                assert_eq!(reader.stop().get(), stop);
                records.push(record);
            }
            Ok(None) => return (records, Some(reader.ending())),
            Err(_) => return (records, None),
        }
    }
    (records, None)
}

/// Wherever an index leads, the batch that holds the stop is the one that reading from the start finds.
fn seek(dir: &Path, whole: &Whole, bytes: &[u8]) {
    for stop in bytes.iter().rev().take(4).map(|byte| u64::from(*byte)) {
        let Ok(mut reader) = LogReader::open(dir) else { return };
        let Ok(found) = reader.seek(StopNumber::new(stop)) else {
            continue;
        };
        if !found {
            continue;
        }
        let batch = loop {
            match reader.next_record() {
                Ok(Some(Record::Batch(batch))) => break batch,
                Ok(Some(Record::Pages(_))) => {}
                Ok(_) | Err(_) => return,
            }
        };
        assert!(batch.last_stop >= stop);
        let straight = whole.0.iter().find_map(|record| match record {
            Record::Batch(batch) if batch.last_stop >= stop => Some(batch),
            _ => None,
        });
        // Damage before it stops who reads from the start, and not who jumps.
        if let Some(straight) = straight {
            assert_eq!(*straight, batch);
        }
    }
}

/// A reader that follows a log's last segment delivers what one does that comes later.
fn grow(dir: &Path, whole: &Whole, first: usize) {
    let Some(number) = (0..SEGMENTS)
        .rev()
        .find(|number| dir.join(plain_name(*number)).exists())
    else {
        return;
    };
    let later = (0..SEGMENTS).any(|other| other > number && dir.join(compressed_name(other)).exists());
    let path = dir.join(plain_name(number));
    let bytes = fs::read(&path).expect("read");
    if later || whole.1.is_none() || bytes.len() < FILE_HEADER_BYTES {
        return;
    }
    fs::write(&path, &bytes[..first.min(bytes.len())]).expect("write");
    if let Ok(mut reader) = LogReader::open(dir) {
        let (mut records, ending) = drain(&mut reader);
        if ending.is_some() {
            let mut file = fs::OpenOptions::new().append(true).open(&path).expect("open");
            std::io::Write::write_all(&mut file, &bytes[first.min(bytes.len())..]).expect("append");
            let (more, ending) = drain(&mut reader);
            records.extend(more);
            assert_eq!((&records, &ending), (&whole.0, &whole.1));
        }
    }
    fs::write(&path, &bytes).expect("write");
}
