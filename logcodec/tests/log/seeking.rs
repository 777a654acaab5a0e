//! Going to a stop, and the index.

use std::fs;
use std::path::Path;

use lockstep_logcodec::segment::index_name;
use lockstep_logcodec::{LogReader, LogWriter, Record, WriterOptions};
use lockstep_proto::quantity::StopNumber;
use lockstep_proto::{Batch, Turn};

use crate::SMALL;
use crate::common::{START, batches, digest, end, identity, options, write};

#[test]
fn seeking_finds_every_stop() {
    for segment_bytes in [SMALL, 64 << 20] {
        let dir = tempfile::tempdir().unwrap();
        let records = write(dir.path(), 200, options(segment_bytes));
        let mut log = LogReader::open(dir.path()).unwrap();
        for stop in (START - 1..START + 2000).rev().step_by(7) {
            assert!(log.seek(StopNumber::new(stop)).unwrap());
            let batch = batches(&records).find(|b| b.last_stop >= stop).unwrap();
            assert_eq!(log.stop(), StopNumber::new(batch.first_stop));
            let first = log.next_record().unwrap().unwrap();
            let at = records.iter().position(|r| *r == first).unwrap();
            let whole = at == 0 || matches!(records[at - 1], Record::Batch(_));
            assert!(whole, "with its pages");
            let group = records[at..]
                .iter()
                .find_map(|r| if let Record::Batch(b) = r { Some(b) } else { None });
            assert_eq!(group, Some(batch));
        }
        assert!(!log.seek(StopNumber::new(START + 2001)).unwrap());
        assert!(
            matches!(log.next_record().unwrap(), Some(Record::End(_))),
            "it stands at its end"
        );
        assert_eq!(log.next_record().unwrap(), None);
        assert!(log.seek(StopNumber::new(START)).unwrap());
        let mut rest = Vec::new();
        while let Some(record) = log.next_record().unwrap() {
            rest.push(record);
        }
        assert_eq!(rest, records, "back to the beginning and through");
    }
}

#[test]
fn a_reader_returns_to_its_bookmarks() {
    for segment_bytes in [SMALL, 64 << 20] {
        let dir = tempfile::tempdir().unwrap();
        let records = write(dir.path(), 200, options(segment_bytes));
        let mut log = LogReader::open(dir.path()).unwrap();
        let mut places = vec![(log.bookmark().unwrap(), 0)];
        let mut read = 0;
        while let Some(record) = log.next_record().unwrap() {
            read += 1;
            let place = log.bookmark();
            let between = !matches!(record, Record::Pages(_));
            assert_eq!(place.is_some(), between, "not between pages and their batch");
            places.extend(place.map(|place| (place, read)));
        }
        assert_eq!(read, records.len());
        // Backwards, forwards, and by a reader that has never been there.
        let order = places.iter().rev().chain(&places);
        for (place, read) in order.clone() {
            log.return_to(place).unwrap();
            assert_eq!(log.next_record().unwrap().as_ref(), records.get(*read));
        }
        let mut other = LogReader::open(dir.path()).unwrap();
        for (place, read) in order.step_by(17) {
            other.return_to(place).unwrap();
            let mut rest = Vec::new();
            while let Some(record) = other.next_record().unwrap() {
                rest.push(record);
            }
            assert_eq!(rest, records[*read..]);
            assert!(matches!(other.ending(), lockstep_logcodec::Ending::Clean(_)));
        }
    }
}

/// A log of 3 MB in one segment, with an index of some ten entries.
fn large(dir: &Path) -> Vec<Record> {
    let mut log = LogWriter::create(dir, &identity(), WriterOptions::default()).unwrap();
    let mut records = Vec::new();
    for i in 0..60 {
        let console: Vec<u8> = (0..50_000u32).map(|n| (n * 7 + i) as u8).collect();
        let stop = log.stop().get() + 10;
        let turn = Turn {
            gap: 10,
            console: console.into(),
            ..Turn::default()
        };
        let batch = Batch {
            first_stop: stop - 10,
            last_stop: stop,
            digest: digest(stop),
            turns: vec![turn],
            ..Batch::default()
        };
        log.append_batch(&batch).unwrap();
        records.push(Record::Batch(batch));
    }
    let end = end(log.stop().get());
    log.finish(end).unwrap();
    records
}

#[test]
fn an_index_is_a_cache() {
    let dir = tempfile::tempdir().unwrap();
    let records = large(dir.path());
    let path = dir.path().join(index_name(0));
    let good = fs::read(&path).unwrap();
    let entries = lockstep_logcodec::index::read(&path);
    assert!((8..14).contains(&entries.len()), "{entries:?}");
    let all_found = || {
        for stop in (START + 1..=START + 600).rev().step_by(13) {
            let mut log = LogReader::open(dir.path()).unwrap();
            assert!(log.seek(StopNumber::new(stop)).unwrap());
            let batch = batches(&records).find(|b| b.last_stop >= stop).unwrap();
            assert_eq!(
                log.next_record().unwrap(),
                Some(Record::Batch(batch.clone())),
                "stop {stop}"
            );
        }
    };
    all_found();
    assert_eq!(fs::read(&path).unwrap(), good, "nothing to add");

    let restored = || lockstep_logcodec::index::read(&path) == entries;
    fs::remove_file(&path).unwrap();
    all_found();
    assert!(restored(), "missing");
    for cut in [0, 5, 16, 40, good.len() - 1] {
        fs::write(&path, &good[..cut]).unwrap();
        all_found();
        assert!(restored(), "torn at {cut}");
    }
    for at in (0..good.len()).step_by(5) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&path, bad).unwrap();
        all_found();
        assert!(restored(), "damaged at {at}");
    }
}

#[test]
fn a_stale_index_is_not_believed() {
    use lockstep_logcodec::frame::FrameWriter;
    use lockstep_logcodec::index::{INDEX_FORMAT, KIND_ENTRY};
    let dir = tempfile::tempdir().unwrap();
    let records = large(dir.path());
    let path = dir.path().join(index_name(0));
    let entries = lockstep_logcodec::index::read(&path);
    // Right offsets with wrong stops, wrong offsets with right stops, offsets beyond the end.
    for (stops, offset) in [(10, 0), (-10, 0), (0, 1), (0, 1 << 40)] {
        let mut frames = FrameWriter::create(Vec::new(), INDEX_FORMAT).unwrap();
        for entry in &entries {
            let stop = entry.stop.get().wrapping_add_signed(stops).to_le_bytes();
            frames
                .write(KIND_ENTRY, &[stop, (entry.offset + offset).to_le_bytes()].concat())
                .unwrap();
        }
        let stale = frames.into_inner();
        for stop in (START + 1..=START + 600).step_by(29) {
            fs::write(&path, &stale).unwrap();
            let mut log = LogReader::open(dir.path()).unwrap();
            assert!(log.seek(StopNumber::new(stop)).unwrap());
            let batch = batches(&records).find(|b| b.last_stop >= stop).unwrap();
            assert_eq!(
                log.next_record().unwrap(),
                Some(Record::Batch(batch.clone())),
                "stop {stop} with {stops} {offset}"
            );
        }
    }
}

#[test]
fn an_index_has_only_so_many_entries() {
    use lockstep_logcodec::frame::FrameWriter;
    use lockstep_logcodec::index::{INDEX_FORMAT, KIND_ENTRY};
    use lockstep_logcodec::limits::MAX_INDEX_ENTRIES;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(index_name(0));
    let mut frames = FrameWriter::create(Vec::new(), INDEX_FORMAT).unwrap();
    for n in 0..=MAX_INDEX_ENTRIES as u64 {
        frames
            .write(KIND_ENTRY, &[n.to_le_bytes(), (n + 1).to_le_bytes()].concat())
            .unwrap();
    }
    fs::write(&path, frames.into_inner()).unwrap();
    assert_eq!(lockstep_logcodec::index::read(&path).len(), MAX_INDEX_ENTRIES);
}

#[test]
fn an_index_ascends() {
    use lockstep_logcodec::frame::FrameWriter;
    use lockstep_logcodec::index::{INDEX_FORMAT, KIND_ENTRY};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(index_name(0));
    let kept = |entries: &[(u64, u64)], kind: u32| {
        let mut frames = FrameWriter::create(Vec::new(), INDEX_FORMAT).unwrap();
        for (stop, offset) in entries {
            frames
                .write(kind, &[stop.to_le_bytes(), offset.to_le_bytes()].concat())
                .unwrap();
        }
        fs::write(&path, frames.into_inner()).unwrap();
        lockstep_logcodec::index::read(&path).len()
    };
    assert_eq!(kept(&[(1, 10), (1, 20), (5, 30)], KIND_ENTRY), 3);
    assert_eq!(kept(&[(1, 10), (0, 20), (5, 30)], KIND_ENTRY), 1, "stops");
    assert_eq!(kept(&[(1, 10), (2, 10), (5, 30)], KIND_ENTRY), 1, "offsets");
    assert_eq!(kept(&[(1, 10)], KIND_ENTRY + 1), 0, "another kind");
}

#[test]
fn an_index_does_not_run_ahead_of_its_segment() {
    let dir = tempfile::tempdir().unwrap();
    let options = WriterOptions {
        buffer_bytes: 16 << 20,
        ..WriterOptions::default()
    };
    let mut log = LogWriter::create(dir.path(), &identity(), options).unwrap();
    let index = dir.path().join(index_name(0));
    for n in 0..20 {
        let turn = Turn {
            console: vec![n; 60_000].into(),
            ..Turn::default()
        };
        let stop = log.stop();
        let batch = Batch {
            first_stop: stop.get(),
            last_stop: stop.get() + 1,
            digest: digest(stop.get() + 1),
            turns: vec![turn],
            ..Batch::default()
        };
        log.append_batch(&batch).unwrap();
    }
    assert!(
        lockstep_logcodec::index::read(&index).is_empty(),
        "nothing is in the file yet"
    );
    log.flush().unwrap();
    assert!(lockstep_logcodec::index::read(&index).len() > 2);
}
