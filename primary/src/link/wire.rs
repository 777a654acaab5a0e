//! How messages lie on QUIC streams: a length (four bytes, little-endian), a kind (one byte), the payload.
//!
//! QUIC and TLS see to order and integrity. Lengths are bounded before anything is kept.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use thiserror::Error;

/// Bytes before a payload.
const HEADER_BYTES: usize = 5;

/// First byte of a stream of the primary's that one side only writes: memory of a join, then its end.
pub const BULK_STREAM: u8 = 1;
/// The same: the log from the join's state on.
pub const LOG_STREAM: u8 = 2;

/// First byte of the backup's stream: what it has already.
pub const HAVE_STREAM: u8 = 3;

/// Frames of the bulk stream: a PageChunk.
pub const BULK_PAGES: u8 = 1;
/// The same: a DiskChunk.
pub const BULK_CHUNK: u8 = 2;
/// Frames of the backup's stream: a Have.
pub const HAVE: u8 = 3;

/// A frame that cannot be taken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// It is too large.
    #[error("a message of {bytes} bytes: at most {limit} are taken")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// It does not decode.
    #[error("a message does not decode: {0}")]
    Undecodable(String),
    /// It is of a kind that this stream does not have.
    #[error("a message of kind {0} where none belongs")]
    Kind(u8),
}

/// A framed message.
pub fn frame(kind: u8, message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(HEADER_BYTES + length);
    out.put_u32_le(length as u32);
    out.put_u8(kind);
    // The buffer grows as needed.
    let _ = message.encode(&mut out);
    out.freeze()
}

/// Takes frames out of what a stream brings.
pub struct Frames {
    buffer: BytesMut,
    limit: usize,
}

impl Frames {
    /// Payloads of at most `limit` bytes are taken.
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            limit,
        }
    }

    /// More of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame: its kind and payload.
    pub fn take(&mut self) -> Result<Option<(u8, Bytes)>, WireError> {
        let Some((length, rest)) = self.buffer.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let bytes = u32::from_le_bytes(*length) as usize;
        if bytes > self.limit {
            let limit = self.limit;
            return Err(WireError::TooLarge { bytes, limit });
        }
        let Some(&kind) = rest.first() else { return Ok(None) };
        if self.buffer.len() < HEADER_BYTES + bytes {
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        Ok(Some((kind, self.buffer.split_to(bytes).freeze())))
    }
}

/// Decodes a payload.
pub fn decode<M: Message + Default>(payload: Bytes) -> Result<M, WireError> {
    M::decode(payload).map_err(|error| WireError::Undecodable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use lockstep_proto::HeartbeatReply;

    use super::*;

    #[test]
    fn frames_come_out_whole_however_they_come_in() {
        let message = HeartbeatReply {
            number: 1 << 40,
            uplink_down: true,
        };
        let mut stream = frame(7, &message).to_vec();
        stream.extend(frame(8, &HeartbeatReply::default()));
        for piece in 1..stream.len() {
            let mut frames = Frames::new(100);
            let mut seen = Vec::new();
            for bytes in stream.chunks(piece) {
                frames.push(bytes);
                while let Some((kind, payload)) = frames.take().unwrap() {
                    seen.push((kind, decode::<HeartbeatReply>(payload).unwrap()));
                }
            }
            assert_eq!(seen, [(7, message), (8, HeartbeatReply::default())]);
        }
    }

    #[test]
    fn a_length_is_bounded_before_anything_comes() {
        let mut frames = Frames::new(100);
        frames.push(&101u32.to_le_bytes());
        assert_eq!(frames.take(), Err(WireError::TooLarge { bytes: 101, limit: 100 }));
    }
}
