//! Feeds bytes to what takes frames out of a stream, and what comes out to the decoders.
//!
//! fuzz/README.md says how it is run.
//!
//! The first byte says in how large pieces the stream comes; it must not matter.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use lockstep_primary::link::wire::{Frames, WireError, decode};
use lockstep_proto::{DiskChunk, Have, PageChunk, ToBackup, ToPrimary};

/// Far below the 4096 bytes that an input has: payloads just below and just beyond it come.
const LIMIT: usize = 100;

fuzz_target!(|bytes: &[u8]| {
    let Some((piece, stream)) = bytes.split_first() else {
        return;
    };
    let (whole, fault) = take(stream, stream.len().max(1));
    let in_pieces = take(stream, usize::from(*piece).max(1));
    assert_eq!((&whole, &fault), (&in_pieces.0, &in_pieces.1));
    let taken: usize = whole.iter().map(|(_, payload)| 5 + payload.len()).sum();
    assert!(taken <= stream.len());
    if let Some(fault) = fault {
        let WireError::TooLarge { bytes, limit } = fault else {
            panic!("{fault}");
        };
        assert!(bytes > limit);
    }
    for (_, payload) in whole {
        // Whatever it is, it is a message or a fault.
        let _ = decode::<ToBackup>(payload.clone());
        let _ = decode::<ToPrimary>(payload.clone());
        let _ = decode::<PageChunk>(payload.clone());
        let _ = decode::<DiskChunk>(payload.clone());
        let _ = decode::<Have>(payload);
    }
});

/// The frames of a stream, and the fault that ends it, if one does.
fn take(stream: &[u8], piece: usize) -> (Vec<(u8, Bytes)>, Option<WireError>) {
    let mut frames = Frames::new(LIMIT);
    let mut seen = Vec::new();
    for bytes in stream.chunks(piece) {
        frames.push(bytes);
        loop {
            match frames.take() {
                Ok(Some((kind, payload))) => {
                    assert!(payload.len() <= LIMIT);
                    seen.push((kind, payload));
                }
                Ok(None) => break,
                Err(fault) => return (seen, Some(fault)),
            }
        }
    }
    (seen, None)
}
