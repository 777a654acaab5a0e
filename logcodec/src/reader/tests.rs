use std::fs;

use bytes::Bytes;
use lockstep_proto::quantity::PageNumber;
use lockstep_proto::{Batch, MachineConfig, SegmentHeader};

use super::*;
use crate::frame::FrameWriter;
use crate::pages::pack_pages;
use crate::record::{LOG_FORMAT, kind};
use crate::segment::plain_name;
use crate::writer::{LogWriter, WriterOptions};

fn chain() -> Bytes {
    vec![1; 16].into()
}

fn identity() -> Identity {
    Identity {
        machine: Some(MachineConfig::default()),
        start_chain: chain(),
        start_stop: 100,
        ..Identity::default()
    }
}

fn batch(first_stop: u64, last_stop: u64) -> Batch {
    Batch {
        first_stop,
        last_stop,
        digest: chain(),
        turns: vec![],
        ..Batch::default()
    }
}

/// Between a reader's look at the end of a segment and its look for the next one, the writer fills the one and begins the
/// other.
#[test]
fn a_segment_that_is_closed_between_two_looks_is_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let options = WriterOptions {
        segment_bytes: 1,
        ..WriterOptions::default()
    };
    let mut writer = LogWriter::create(dir.path(), &identity(), options).unwrap();
    let mut reader = LogReader::open(dir.path()).unwrap();
    for stop in 100..110 {
        let mut written = false;
        let record = reader.next_looking(|dir, number| {
            if !std::mem::replace(&mut written, true) {
                // The first goes where the reader has looked already; the second begins the next segment.
                writer.append_batch(&batch(stop, stop + 1)).unwrap();
                let begun = writer.append_batch(&batch(stop + 1, stop + 1));
                begun.and_then(|()| writer.flush()).unwrap();
            }
            Source::exists(dir, number)
        });
        assert_eq!(record.unwrap(), Some(Record::Batch(batch(stop, stop + 1))));
        assert_eq!(
            reader.next_record().unwrap(),
            Some(Record::Batch(batch(stop + 1, stop + 1)))
        );
    }
}

/// A segment made by hand.
fn segment(dir: &Path, header: &SegmentHeader, records: &[Record]) {
    let file = fs::File::create(dir.join(plain_name(0))).unwrap();
    let mut frames = FrameWriter::create(file, LOG_FORMAT).unwrap();
    frames.write_message(kind::SEGMENT_HEADER, header).unwrap();
    for record in records {
        let written = match record {
            Record::Pages(chunk) => frames.write_message(kind::PAGES, chunk),
            Record::Batch(batch) => frames.write_message(kind::BATCH, batch),
            Record::End(end) => frames.write_message(kind::END, end),
        };
        written.unwrap();
    }
}

fn header() -> SegmentHeader {
    SegmentHeader {
        identity: Some(identity()),
        number: 0,
        first_stop: 100,
        chain: chain(),
    }
}

#[test]
fn segment_0_is_where_the_log_begins() {
    let dir = tempfile::tempdir().unwrap();
    let why = |header: &SegmentHeader| {
        segment(dir.path(), header, &[]);
        LogReader::open(dir.path()).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(why(&header()), Ok(()));
    let refused = |header: &SegmentHeader, words: &str| {
        let error = why(header).unwrap_err();
        assert!(error.contains(words), "{error}");
    };
    refused(&SegmentHeader { number: 1, ..header() }, "another number");
    refused(
        &SegmentHeader {
            first_stop: 101,
            ..header()
        },
        "does not begin where the log does",
    );
    refused(
        &SegmentHeader {
            chain: vec![2; 16].into(),
            ..header()
        },
        "does not begin where the log does",
    );
    refused(
        &SegmentHeader {
            identity: None,
            ..header()
        },
        "no identity",
    );
}

#[test]
fn a_segment_begins_with_its_header() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create(dir.path().join(plain_name(0))).unwrap();
    FrameWriter::create(file, LOG_FORMAT)
        .unwrap()
        .write_message(kind::BATCH, &header())
        .unwrap();
    assert!(
        LogReader::open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("no segment header")
    );
}

#[test]
fn a_segment_does_not_end_between_pages_and_their_batch() {
    let dir = tempfile::tempdir().unwrap();
    let options = WriterOptions {
        segment_bytes: 1,
        ..WriterOptions::default()
    };
    let mut writer = LogWriter::create(dir.path(), &identity(), options).unwrap();
    writer.append_batch(&batch(100, 101)).unwrap();
    writer.append_batch(&batch(101, 102)).unwrap();
    drop(writer);
    let page = [0; 4096];
    let chunk = pack_pages([(PageNumber::new(1), &page[..])]).unwrap();
    segment(
        dir.path(),
        &header(),
        &[Record::Batch(batch(100, 101)), Record::Pages(chunk)],
    );
    let mut log = LogReader::open(dir.path()).unwrap();
    assert!(log.next_record().unwrap().is_some() && log.next_record().unwrap().is_some());
    let error = log.next_record().unwrap_err().to_string();
    assert!(error.contains("between chunks of pages and their batch"), "{error}");
}
