//! Some thousand damaged logs, the same ones each time: nothing panics, and nothing but a prefix of the log is delivered.
//!
//! A small stand-in for `fuzz/`, which needs a nightly toolchain. LOCKSTEP_MUTATIONS sets how many.

mod common;

use std::fs;
use std::path::Path;

use common::{identity, options, write};
use lockstep_logcodec::segment::{Opened, Step, plain_name};
use lockstep_logcodec::{LogReader, Record, SegmentReader, WriterOptions, cut_torn_tail, unpack_pages};
use lockstep_proto::quantity::{PageNumber, StopNumber};

/// A fixed sequence (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }
}

fn mutations() -> usize {
    std::env::var("LOCKSTEP_MUTATIONS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(5000)
}

/// Damages bytes in one of the ways that disks, networks and bugs do.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len());
    let length = random.below(64).min(bytes.len() - at);
    match random.below(8) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.below(256) as u8,
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..at + length)),
        4 => bytes[at..at + length].fill(0),
        5 => {
            let copy = bytes[at..at + length].to_vec();
            bytes.splice(at..at, copy);
        }
        6 => {
            let other = random.below(bytes.len() - length);
            bytes.copy_within(at..at + length, other);
        }
        _ => bytes.extend((0..length).map(|_| random.below(256) as u8)),
    }
}

fn read_segment(bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    if let Ok(Opened::Ready(mut segment)) = SegmentReader::open(bytes, Path::new("memory"), false) {
        while let Ok(Step::Record(record, _)) = segment.next() {
            if let Record::Pages(chunk) = &record {
                unpack_pages(chunk, PageNumber::new(1 << 20)).expect("its frame was good");
            }
            records.push(record);
        }
    }
    records
}

#[test]
fn damaged_segments() {
    let dir = tempfile::tempdir().unwrap();
    let records = write(dir.path(), 12, WriterOptions::default());
    let good = fs::read(dir.path().join(plain_name(0))).unwrap();
    let mut random = Random(1);
    let mut deepest = 0;
    for run in 0..mutations() {
        let mut bytes = good.clone();
        for _ in 0..=random.below(3) {
            if !bytes.is_empty() {
                mutate(&mut bytes, &mut random);
            }
        }
        let got = read_segment(&bytes);
        assert!(got.len() <= records.len() && got == records[..got.len()], "run {run}");
        deepest = deepest.max(got.len());
    }
    assert!(deepest >= records.len() - 1, "the runs reach the end of the log");
}

/// The same in frames whose CRCs are right: what a buggy writer or a clever attacker leaves.
#[test]
fn damaged_messages_in_good_frames() {
    use lockstep_logcodec::frame::{FrameReader, FrameWriter, Next};
    use lockstep_logcodec::record::LOG_FORMAT;
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 12, WriterOptions::default());
    let good = fs::read(dir.path().join(plain_name(0))).unwrap();
    let mut random = Random(2);
    let (mut accepted, mut all) = (0, 0);
    for _ in 0..mutations() {
        let mut source = FrameReader::open(&good[..], LOG_FORMAT).unwrap();
        let mut frames = FrameWriter::create(Vec::new(), LOG_FORMAT).unwrap();
        let victim = random.below(20);
        let mut number = 0;
        while let Next::Frame(frame) = source.next().unwrap() {
            let mut payload = frame.payload.to_vec();
            if number == victim && !payload.is_empty() {
                mutate(&mut payload, &mut random);
            }
            frames.write(frame.kind, &payload).unwrap();
            number += 1;
        }
        let bytes = frames.into_inner();
        if let Ok(Opened::Ready(mut segment)) = SegmentReader::open(&bytes[..], Path::new("memory"), false) {
            all += 1;
            while let Ok(Step::Record(record, _)) = segment.next() {
                if let Record::Pages(chunk) = &record {
                    let _ = unpack_pages(chunk, PageNumber::new(1 << 20));
                }
                accepted += 1;
            }
        }
    }
    assert!(all > mutations() / 2 && accepted > all, "the runs get past the header");
}

/// Whole directories: reading, seeking and cutting.
#[test]
fn damaged_directories() {
    let dir = tempfile::tempdir().unwrap();
    let records = write(dir.path(), 60, options(2048));
    let names = common::files(dir.path());
    let mut random = Random(3);
    for run in 0..mutations() / 25 {
        let copy = tempfile::tempdir().unwrap();
        for name in &names {
            fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
        }
        let path = copy.path().join(&names[random.below(names.len())]);
        let mut bytes = fs::read(&path).unwrap();
        mutate(&mut bytes, &mut random);
        fs::write(&path, bytes).unwrap();

        let _ = cut_torn_tail(copy.path());
        let Ok(mut log) = LogReader::open(copy.path()) else {
            continue;
        };
        assert_eq!(*log.identity(), identity());
        let mut got = Vec::new();
        while let Ok(Some(record)) = log.next_record() {
            got.push(record);
        }
        assert!(got.len() <= records.len() && got == records[..got.len()], "run {run}");
        let stop = common::START + random.below(700) as u64;
        if let Ok(true) = log.seek(StopNumber::new(stop)) {
            let Ok(Some(record)) = log.next_record() else { continue };
            assert!(records.contains(&record), "run {run}");
        }
    }
}
