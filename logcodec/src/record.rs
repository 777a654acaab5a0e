//! Records of a log, and the frames that hold them.

use bytes::Bytes;
use lockstep_proto::{Batch, End, PackedBatch, PageChunk, SegmentHeader};
use prost::Message;

use crate::error::Violation;
use crate::frame::Format;
use crate::limits::{MAX_PAYLOAD, MAX_TURNS};
use crate::packed::unpack;
pub use crate::pages::{pack_pages, unpack_pages};

/// The oldest format version of a log that this crate reads. With a version N + 1, this becomes N.
pub const MIN_LOG_VERSION: u32 = 1;

/// The format version of a log that this crate writes.
pub const LOG_VERSION: u32 = 1;

/// Segment files of a log.
pub const LOG_FORMAT: Format = Format {
    magic: *b"LOCKSLOG",
    version: LOG_VERSION,
    min_version: MIN_LOG_VERSION,
    max_payload: MAX_PAYLOAD,
};

/// Frame kinds of a log.
pub mod kind {
    /// [`lockstep_proto::SegmentHeader`]: the first frame of a segment, and only that.
    pub const SEGMENT_HEADER: u32 = 1;
    /// [`lockstep_proto::PageChunk`].
    pub const PAGES: u32 = 2;
    /// [`lockstep_proto::PackedBatch`].
    pub const BATCH: u32 = 3;
    /// [`lockstep_proto::End`]: the last frame of a log.
    pub const END: u32 = 4;
}

/// What a log delivers.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// Pages for a forced turn of the next batch.
    Pages(PageChunk),
    /// Turns.
    Batch(Batch),
    /// The recording was closed in order; nothing comes after this.
    End(End),
}

impl Record {
    /// Decodes a frame. Nothing is checked but that it decodes, and that it does not become larger than it should.
    pub fn decode(frame_kind: u32, payload: &[u8]) -> Result<Self, Violation> {
        match frame_kind {
            kind::PAGES => message("a PageChunk", payload).map(Self::Pages),
            kind::BATCH => decode_batch(payload).map(Self::Batch),
            kind::END => message("an End", payload).map(Self::End),
            kind::SEGMENT_HEADER => Err(Violation::Rule("a second segment header in a segment")),
            _ => Err(Violation::Rule("a frame of a kind that a log does not have")),
        }
    }
}

/// Decodes the message of a segment header's frame.
pub fn decode_segment_header(payload: &[u8]) -> Result<SegmentHeader, Violation> {
    message("a SegmentHeader", payload)
}

fn message<M: Message + Default>(what: &'static str, payload: &[u8]) -> Result<M, Violation> {
    M::decode(Bytes::copy_from_slice(payload)).map_err(|e| Violation::Undecodable {
        what,
        why: e.to_string(),
    })
}

/// Decodes a batch, its turns counted first: see [`MAX_TURNS`].
fn decode_batch(payload: &[u8]) -> Result<Batch, Violation> {
    let turns = count_turns(payload).ok_or(Violation::Undecodable {
        what: "a Batch",
        why: "not a message".into(),
    })?;
    if turns > MAX_TURNS {
        let (value, limit) = (turns as u64, MAX_TURNS as u64);
        return Err(Violation::TooMuch {
            what: "turns in a batch",
            value,
            limit,
        });
    }
    let mut packed = PackedBatch {
        turns: Vec::with_capacity(turns),
        ..PackedBatch::default()
    };
    packed
        .merge(Bytes::copy_from_slice(payload))
        .map_err(|e| Violation::Undecodable {
            what: "a Batch",
            why: e.to_string(),
        })?;
    unpack(packed)
}

/// Counts the turns in an encoded batch without decoding them. None where it is no message.
fn count_turns(mut rest: &[u8]) -> Option<usize> {
    /// Field 4, length-delimited.
    const TURN: u64 = 4 << 3 | 2;
    let mut turns = 0;
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        turns += usize::from(key == TURN);
        let skip = match key & 7 {
            0 => {
                varint(&mut rest)?;
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut rest)?).ok()?,
            5 => 4,
            _ => return None,
        };
        rest = rest.get(skip..)?;
    }
    Some(turns)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (i, &byte) in rest.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            *rest = &rest[i + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use lockstep_proto::Turn;

    use super::*;

    #[test]
    fn turns_are_counted_before_they_are_decoded() {
        let batch = Batch {
            first_stop: 1 << 40,
            last_stop: 1 << 41,
            digest: vec![7; 16].into(),
            turns: vec![
                Turn {
                    gap: 3,
                    random: Some(u64::MAX),
                    ..Turn::default()
                };
                300
            ],
            ..Batch::default()
        };
        let payload = crate::packed::pack(&batch).encode_to_vec();
        assert_eq!(count_turns(&payload), Some(300));
        assert_eq!(Record::decode(kind::BATCH, &payload).unwrap(), Record::Batch(batch));
    }

    #[test]
    fn more_turns_than_the_limit_are_not_decoded() {
        let turns = |n: usize| {
            let mut batch = [0x22, 0].repeat(n);
            PackedBatch {
                ticks_before: vec![0; n],
                ..PackedBatch::default()
            }
            .encode_raw(&mut batch);
            batch
        };
        assert!(Record::decode(kind::BATCH, &turns(MAX_TURNS)).is_ok());
        let error = Record::decode(kind::BATCH, &turns(MAX_TURNS + 1)).unwrap_err();
        assert!(matches!(
            error,
            Violation::TooMuch {
                what: "turns in a batch",
                ..
            }
        ));
    }

    #[test]
    fn what_does_not_decode_is_refused() {
        for payload in [&[0x22][..], &[0x22, 5, 0], &[0x0b], &[0xff; 11], &[0x21, 0]] {
            assert_eq!(count_turns(payload), None, "{payload:?}");
            assert!(Record::decode(kind::BATCH, payload).is_err());
        }
        for k in [kind::PAGES, kind::END] {
            assert!(Record::decode(k, &[0xff]).is_err());
        }
        for k in [0, kind::SEGMENT_HEADER, 5, 16] {
            assert!(Record::decode(k, &[]).is_err());
        }
    }
}
