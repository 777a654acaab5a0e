//! What holds for any log and any bytes.

mod common;

use std::fs;
use std::path::Path;

use bytes::Bytes;
use common::{digest_array, end, identity, read};
use lockstep_logcodec::record::{LOG_FORMAT, kind};
use lockstep_logcodec::segment::{Opened, Step, plain_name};
use lockstep_logcodec::{
    BatchBuilder, Ending, LogError, LogWriter, Record, Result, SegmentReader, WriterOptions, pack_pages, positions,
    unpack_pages,
};
use lockstep_proto::quantity::{PageNumber, StopNumber};
use lockstep_proto::{
    DiskCompletion, Epoch, Forced, Frame, Identity, MachineConfig, Msr, SegmentHeader, Turn, VcpuState,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;

fn bytes(most: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..=most).prop_map(Bytes::from)
}

fn forced() -> impl Strategy<Value = Forced> {
    let msrs = vec(
        (any::<u32>(), any::<u64>()).prop_map(|(index, value)| Msr { index, value }),
        0..3,
    );
    let vcpu = (any::<u32>(), bytes(144), bytes(64), msrs).prop_map(|(mp_state, regs, events, msrs)| VcpuState {
        mp_state,
        regs,
        events,
        msrs,
        ..VcpuState::default()
    });
    (vcpu, any::<u64>()).prop_map(|(vcpu, slice_ns)| Forced {
        vcpu: Some(vcpu),
        pages: 0,
        slice_ns,
    })
}

fn turn() -> impl Strategy<Value = Turn> {
    let frame = bytes(100).prop_map(|data| Frame { nic: 0, data });
    let disk = (any::<u64>(), 0..3u32).prop_map(|(request, status)| DiskCompletion {
        disk: 0,
        request,
        status,
    });
    let epoch = (bytes(0), any::<u32>()).prop_map(|(_, pages)| Epoch {
        digest: vec![1; 16].into(),
        pages,
        ..Epoch::default()
    });
    (
        option::of(0..1u64 << 56),
        option::of(any::<u64>()),
        vec(frame, 0..3),
        bytes(20),
        bytes(16),
        vec(disk, 0..3),
        vec(bytes(20), 0..3),
        option::weighted(0.1, forced()),
        option::weighted(0.1, epoch),
        any::<bool>(),
    )
        .prop_map(
            |(clock, random, frames, console, keyboard, disks, entropy, forced, epoch, power_button)| Turn {
                gap: 0,
                clock,
                random,
                frames,
                console,
                keyboard,
                disks,
                entropy,
                forced,
                epoch,
                power_button,
            },
        )
}

/// The turns of a batch with the gaps before them, the gap after the last, and pages for each forced turn.
type Raw = (Vec<(u32, Turn, Vec<u8>)>, u32);

fn raw() -> impl Strategy<Value = Raw> {
    let gap = prop_oneof![3 => 0..5u32, 1 => any::<u32>()];
    (vec((gap.clone(), turn(), vec(any::<u8>(), 0..3)), 0..6), gap)
}

/// The records of a batch, through the builder; its turns' positions are as they were pushed.
fn build(builder: &mut BatchBuilder, (turns, rest): Raw) -> Vec<Record> {
    let mut records = Vec::new();
    let (mut stop, mut stops) = (builder.first_stop(), Vec::new());
    for (gap, mut turn, fills) in turns {
        stop = stop.plus(gap.into());
        stops.push(stop);
        if let Some(forced) = &mut turn.forced {
            forced.pages = fills.len() as u32;
            let pages: Vec<[u8; 4096]> = fills.iter().map(|&fill| [fill; 4096]).collect();
            if !pages.is_empty() {
                let numbered = (7..).map(PageNumber::new).zip(pages.iter().map(<[u8; 4096]>::as_slice));
                records.push(Record::Pages(pack_pages(numbered).unwrap()));
            }
        }
        builder.push(stop, turn).unwrap();
    }
    let last = stop.plus(rest.into());
    let batch = builder.close(last, digest_array(last.get())).unwrap();
    assert_eq!(positions(&batch).map(|(stop, _)| stop).collect::<Vec<_>>(), stops);
    records.push(Record::Batch(batch));
    records
}

/// A log of these batches with an end, in one segment or several.
fn log(dir: &Path, batches: Vec<Raw>, segment_bytes: u64) -> Vec<Record> {
    let options = WriterOptions {
        segment_bytes,
        ..WriterOptions::default()
    };
    let mut log = LogWriter::create(dir, &identity(), options).unwrap();
    let mut builder = BatchBuilder::new(log.stop());
    let mut records = Vec::new();
    for raw in batches {
        let more = build(&mut builder, raw);
        common::append(&mut log, &more);
        records.extend(more);
    }
    let end = end(log.stop().get());
    log.finish(end.clone()).unwrap();
    records.push(Record::End(end));
    records
}

/// All that can be read of one segment, and how it ends.
fn read_segment(bytes: &[u8]) -> (Vec<Record>, Result<Ending>) {
    let mut records = Vec::new();
    let torn = |offset, bytes_lost| {
        Ok(Ending::Torn {
            segment: 0,
            offset,
            bytes_lost,
        })
    };
    let mut segment = match SegmentReader::open(bytes, Path::new("memory"), false) {
        Err(e) => return (records, Err(e)),
        Ok(Opened::Short(bytes)) => return (records, torn(0, bytes)),
        Ok(Opened::Ready(segment)) => segment,
    };
    let mut end = None;
    loop {
        match segment.next() {
            Err(e) => return (records, Err(e)),
            Ok(Step::Torn { offset, bytes }) => return (records, torn(offset, bytes)),
            Ok(Step::End) => return (records, Ok(end.map_or(Ending::Unfinished, Ending::Clean))),
            Ok(Step::Record(record, _)) => {
                if let Record::End(record) = &record {
                    end = Some(record.clone());
                }
                records.push(record);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(batches in vec(raw(), 0..8), segment_bytes in 1..2000u64) {
        let dir = tempfile::tempdir().unwrap();
        let records = log(dir.path(), batches, segment_bytes);
        let (got, ending) = read(dir.path()).unwrap();
        prop_assert!(matches!(ending, Ending::Clean(_)));
        prop_assert_eq!(got, records);
    }

    #[test]
    fn the_size_of_a_batch_is_known(raw in raw()) {
        let mut builder = BatchBuilder::new(StopNumber::new(u64::from(u32::MAX) << 8));
        let (turns, _) = raw;
        let mut stop = builder.first_stop();
        for (gap, turn, _) in turns {
            stop = stop.plus(gap.into());
            builder.push(stop, turn).unwrap();
        }
        let known = builder.encoded_len();
        let real = builder.close(stop, [1; 16]).unwrap().encoded_len();
        prop_assert!((real..=real + 40).contains(&known));
    }

    #[test]
    fn a_cut_log_is_a_prefix_with_a_torn_or_unfinished_end(batches in vec(raw(), 1..4), at in any::<prop::sample::Index>()) {
        let dir = tempfile::tempdir().unwrap();
        let records = log(dir.path(), batches, 64 << 20);
        let path = dir.path().join(plain_name(0));
        let bytes = fs::read(&path).unwrap();
        let length = at.index(bytes.len());
        fs::write(&path, &bytes[..length]).unwrap();
        match read(dir.path()) {
            Ok((got, ending)) => {
                prop_assert!(got.len() < records.len());
                prop_assert_eq!(&got[..], &records[..got.len()]);
                match ending {
                    Ending::Torn { segment, offset, bytes_lost } => {
                        prop_assert_eq!((segment, offset + bytes_lost), (0, length as u64));
                    }
                    Ending::Unfinished => {}
                    Ending::Clean(_) => prop_assert!(false, "clean"),
                }
            }
            Err(LogError::NoHeader { bytes, .. }) => prop_assert_eq!(bytes, length as u64),
            Err(e) => prop_assert!(false, "{}", e),
        }
    }

    #[test]
    fn a_damaged_byte_is_found_or_in_a_torn_tail(
        batches in vec(raw(), 1..4),
        at in any::<prop::sample::Index>(),
        flip in 1..=255u8,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let records = log(dir.path(), batches, 64 << 20);
        let mut bytes = fs::read(dir.path().join(plain_name(0))).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let (got, ending) = read_segment(&bytes);
        prop_assert!(got.len() < records.len());
        prop_assert_eq!(&got[..], &records[..got.len()]);
        match ending {
            Err(_) => {}
            Ok(Ending::Torn { offset, bytes_lost, .. }) => {
                prop_assert_eq!(got.len(), records.len() - 1, "only the last record's frame");
                prop_assert!(offset <= at as u64);
                prop_assert_eq!(offset + bytes_lost, bytes.len() as u64);
            }
            Ok(other) => prop_assert!(false, "{:?}", other),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_decoded_or_refused(frame_kind in 0..20u32, payload in vec(any::<u8>(), 0..300)) {
        if let Ok(Record::Pages(chunk)) = Record::decode(frame_kind, &payload) {
            let _ = unpack_pages(&chunk, PageNumber::new(1 << 20));
        }
    }

    /// Bytes that are messages, nearly: an encoded batch with some of it replaced, in frames with the right CRCs.
    #[test]
    fn any_messages_are_read_or_refused(
        raw in raw(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        kinds in vec(1..6u32, 1..4),
    ) {
        let mut builder = BatchBuilder::new(StopNumber::START);
        let records = build(&mut builder, raw);
        let header = SegmentHeader {
            identity: Some(Identity {
                machine: Some(MachineConfig::default()),
                start_chain: vec![0; 16].into(),
                ..Identity::default()
            }),
            chain: vec![0; 16].into(),
            ..SegmentHeader::default()
        };
        let mut frames = lockstep_logcodec::frame::FrameWriter::create(Vec::new(), LOG_FORMAT).unwrap();
        frames.write_message(kind::SEGMENT_HEADER, &header).unwrap();
        for (record, frame_kind) in records.iter().zip(kinds) {
            let mut payload = match record {
                Record::Pages(chunk) => chunk.encode_to_vec(),
                Record::Batch(batch) => batch.encode_to_vec(),
                Record::End(end) => end.encode_to_vec(),
            };
            for (at, byte) in &changes {
                let at = at.index(payload.len());
                payload[at] = *byte;
            }
            frames.write(frame_kind, &payload).unwrap();
        }
        for record in read_segment(&frames.into_inner()).0 {
            if let Record::Batch(batch) = record {
                let last = positions(&batch).last().map_or(batch.first_stop, |(stop, _)| stop.get());
                prop_assert!(last <= batch.last_stop);
            }
        }
    }

    #[test]
    fn any_file_is_read_or_refused(tail in vec(any::<u8>(), 0..400), from in 0..3usize) {
        // Nothing, the file header, or the whole header of a log before it.
        let dir = tempfile::tempdir().unwrap();
        drop(LogWriter::create(dir.path(), &identity(), WriterOptions::default()).unwrap());
        let header = fs::read(dir.path().join(plain_name(0))).unwrap();
        let bytes = [&header[..[0, 16, header.len()][from]], &tail].concat();
        prop_assert_eq!(read_segment(&bytes).0.len(), 0);
    }
}
