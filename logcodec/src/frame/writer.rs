//! Writes frames.

use std::io::Write;

use prost::Message;

use super::{FRAME_HEADER_BYTES, Format, FrameError, FrameHeader, MAX_KIND};

/// Writes a file of frames. Each frame goes to `W` in a single `write_all`, so a `W` that takes whole writes or none holds
/// whole frames only. Nothing is buffered here.
#[derive(Debug)]
pub struct FrameWriter<W> {
    out: W,
    format: Format,
    position: u64,
    /// The frame being built; kept for its allocation.
    scratch: Vec<u8>,
}

impl<W: Write> FrameWriter<W> {
    /// Starts a file: writes its header.
    pub fn create(mut out: W, format: Format) -> Result<Self, FrameError> {
        let header = format.header();
        out.write_all(&header)?;
        Ok(Self {
            out,
            format,
            position: header.len() as u64,
            scratch: Vec::new(),
        })
    }

    /// Appends a frame of the given kind (1 to [`MAX_KIND`]). Returns its size in the file, in bytes.
    pub fn write(&mut self, kind: u32, payload: &[u8]) -> Result<u64, FrameError> {
        self.begin(payload.len())?;
        self.scratch.extend_from_slice(payload);
        self.end(kind)
    }

    /// Appends a frame that holds a message. Returns its size in the file, in bytes.
    pub fn write_message<M: Message>(&mut self, kind: u32, message: &M) -> Result<u64, FrameError> {
        self.begin(message.encoded_len())?;
        message.encode_raw(&mut self.scratch);
        self.end(kind)
    }

    /// Bytes written so far, the file header included: where the next frame will begin.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What the frames go to.
    pub fn get_ref(&self) -> &W {
        &self.out
    }

    /// What the frames go to. Whoever writes to it spoils the file.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Ends writing, without a flush.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn begin(&mut self, length: usize) -> Result<(), FrameError> {
        if length > self.format.max_payload as usize {
            let (offset, max) = (self.position, self.format.max_payload);
            return Err(FrameError::TooLarge {
                offset,
                length: length as u64,
                max,
            });
        }
        self.scratch.clear();
        self.scratch.resize(FRAME_HEADER_BYTES, 0);
        Ok(())
    }

    fn end(&mut self, kind: u32) -> Result<u64, FrameError> {
        if kind == 0 || kind > MAX_KIND {
            return Err(FrameError::Kind(kind));
        }
        let payload = &self.scratch[FRAME_HEADER_BYTES..];
        let header = FrameHeader {
            kind,
            length: payload.len() as u32,
            payload_crc: crc32c::crc32c(payload),
        };
        self.scratch[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode(self.position));
        self.out.write_all(&self.scratch)?;
        let size = self.scratch.len() as u64;
        self.position += size;
        Ok(size)
    }
}
