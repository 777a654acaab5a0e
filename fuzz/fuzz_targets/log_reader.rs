//! Feeds bytes to the reader of log segments.
//!
//! fuzz/README.md says how it is run. A corpus to begin with is any recording's `segment-*.lsl`, copied into
//! `fuzz/corpus/log_reader/`.
//!
//! CRCs would stop nearly everything at the first frame, so the bytes are used twice: as a file, and cut into payloads of
//! frames with right CRCs (a kind and two bytes of length before each).
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use lockstep_logcodec::frame::FrameWriter;
use lockstep_logcodec::record::LOG_FORMAT;
use lockstep_logcodec::segment::{Opened, Step};
use lockstep_logcodec::{Record, SegmentReader, positions, unpack_pages};
use lockstep_proto::quantity::PageNumber;

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    read(&framed(bytes));
});

fn read(bytes: &[u8]) {
    for whole in [false, true] {
        let Ok(Opened::Ready(mut segment)) = SegmentReader::open(bytes, Path::new("fuzz"), whole) else {
            continue;
        };
        while let Ok(Step::Record(record, offset)) = segment.next() {
            assert!(offset < segment.offset());
            match record {
                Record::Pages(chunk) => drop(unpack_pages(&chunk, PageNumber::new(1 << 20))),
                Record::Batch(batch) => assert!(positions(&batch).all(|(stop, _)| stop.get() <= batch.last_stop)),
                Record::End(end) => assert_eq!(end.last_stop, segment.stop().get()),
            }
        }
    }
}

fn framed(mut bytes: &[u8]) -> Vec<u8> {
    let mut frames = FrameWriter::create(Vec::new(), LOG_FORMAT).expect("memory");
    while let [kind, low, high, rest @ ..] = bytes {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (payload, rest) = rest.split_at(length);
        frames.write(u32::from(*kind) % 6 + 1, payload).expect("memory");
        bytes = rest;
    }
    frames.into_inner()
}
