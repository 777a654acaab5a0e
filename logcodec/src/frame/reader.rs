//! Reads frames and tells the three ends of a file apart.
//!
//! - *Clean*: the file ends where a frame ends.
//! - *Torn*: the file ends inside a frame, or its last frame is damaged and nothing valid comes after it. This is what a
//!   writer leaves that was stopped while it wrote.
//! - *Corrupt*: a frame is damaged and a valid frame header comes after it. To find out, the rest of the file is searched;
//!   see the module above for why a header is not found by accident.
//!
//! In a file that is known to be whole ([`FrameReader::set_whole`]) there are no torn tails; all that is not clean is
//! corrupt.
//!
//! A file may grow while it is read: after `End`, or `Torn` because the file is short, a later call goes on with what has
//! come since.

use std::io::{self, Read};

use super::{FILE_HEADER_BYTES, FRAME_HEADER_BYTES, Format, FrameError, FrameHeader};

/// How much is asked of the source at once, in bytes.
const READ_BYTES: usize = 256 << 10;

/// Reads a file of frames. Holds at most a little more than twice the largest frame that really came.
#[derive(Debug)]
pub struct FrameReader<R> {
    source: R,
    format: Format,
    version: u32,
    whole: bool,
    buf: Vec<u8>,
    /// The bytes read and not yet consumed are `buf[start..end]`.
    start: usize,
    end: usize,
    /// Where `buf[start]` is in the file.
    offset: u64,
    /// Damage was found here, and the search after it has consumed what follows.
    lost: Option<Lost>,
}

/// Where a reader was lost.
#[derive(Debug, Clone, Copy)]
struct Lost {
    offset: u64,
    what: &'static str,
    /// Bytes from `offset` to the end of the file, or up to where something valid was found.
    bytes: u64,
    next_valid: Option<u64>,
}

/// A frame, borrowed from the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRef<'a> {
    /// Its kind, 1 to [`super::MAX_KIND`].
    pub kind: u32,
    /// Where it begins, in bytes from the start of the file.
    pub offset: u64,
    /// Its payload.
    pub payload: &'a [u8],
}

/// What comes next in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next<'a> {
    /// A frame.
    Frame(FrameRef<'a>),
    /// The file ends where a frame ends.
    End,
    /// The file has a torn tail.
    Torn {
        /// Where the tail begins: the file is good up to here.
        offset: u64,
        /// Bytes from there to the end of the file.
        bytes: u64,
    },
}

impl<R: Read> FrameReader<R> {
    /// Opens a file: reads and checks its header.
    pub fn open(mut source: R, format: Format) -> Result<Self, FrameError> {
        let mut header = [0; FILE_HEADER_BYTES];
        let mut have = 0;
        while have < header.len() {
            match read(&mut source, &mut header[have..])? {
                0 => return Err(FrameError::HeaderShort { bytes: have as u64 }),
                n => have += n,
            }
        }
        let version = format.parse_header(&header)?;
        Ok(Self::resume(source, format, version, FILE_HEADER_BYTES as u64))
    }

    /// Goes on in a file of the given version whose header was checked before. `source` stands at `offset`, where a frame
    /// begins.
    pub fn resume(source: R, format: Format, version: u32, offset: u64) -> Self {
        Self {
            source,
            format,
            version,
            whole: false,
            buf: Vec::new(),
            start: 0,
            end: 0,
            offset,
            lost: None,
        }
    }

    /// Says that the file is whole (closed in order), or that it may have a torn tail (the default).
    pub fn set_whole(&mut self, whole: bool) {
        self.whole = whole;
    }

    /// The file's format version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Where the next frame begins, in bytes from the start of the file; where damage was found, the damaged one.
    pub fn offset(&self) -> u64 {
        self.lost.map_or(self.offset, |lost| lost.offset)
    }

    /// Whether damage was found and the search after it has consumed the file. To go on when such a file has grown, open
    /// it again and [`FrameReader::resume`].
    pub fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// The next frame.
    #[allow(clippy::should_implement_trait)] // it lends its buffer
    pub fn next(&mut self) -> Result<Next<'_>, FrameError> {
        if let Some(lost) = self.lost {
            return self.fate(lost);
        }
        let have = self.fill(FRAME_HEADER_BYTES)?;
        if have == 0 {
            return Ok(Next::End);
        }
        if have < FRAME_HEADER_BYTES {
            return self.torn(self.offset, have as u64, "the file ends inside a frame's header");
        }
        let Some(header) = FrameHeader::decode(&self.buf[self.start..self.end], self.offset) else {
            return self.damaged("a frame's header is damaged");
        };
        if header.length > self.format.max_payload {
            let (offset, length, max) = (self.offset, header.length as u64, self.format.max_payload);
            return Err(FrameError::TooLarge { offset, length, max });
        }
        let size = FRAME_HEADER_BYTES + header.length as usize;
        let have = self.fill(size)?;
        if have < size {
            return self.torn(self.offset, have as u64, "the file ends inside a frame");
        }
        let payload = self.start + FRAME_HEADER_BYTES..self.start + size;
        if crc32c::crc32c(&self.buf[payload.clone()]) != header.payload_crc {
            return self.damaged("a frame's payload does not match its CRC");
        }
        let offset = self.offset;
        self.consume(size);
        Ok(Next::Frame(FrameRef {
            kind: header.kind,
            offset,
            payload: &self.buf[payload],
        }))
    }

    fn torn(&self, offset: u64, bytes: u64, what: &'static str) -> Result<Next<'static>, FrameError> {
        if self.whole {
            return Err(FrameError::Corrupt {
                offset,
                what,
                next_valid: None,
            });
        }
        Ok(Next::Torn { offset, bytes })
    }

    /// The frame at `offset` is damaged: searches what comes after it for a valid header.
    fn damaged(&mut self, what: &'static str) -> Result<Next<'static>, FrameError> {
        let offset = self.offset;
        if self.whole {
            return Err(FrameError::Corrupt {
                offset,
                what,
                next_valid: None,
            });
        }
        self.consume(1);
        while self.fill(READ_BYTES)? >= FRAME_HEADER_BYTES {
            let window = &self.buf[self.start..self.end];
            let last = window.len() - FRAME_HEADER_BYTES;
            for at in 0..=last {
                let here = self.offset + at as u64;
                let valid =
                    FrameHeader::decode(&window[at..], here).is_some_and(|h| h.length <= self.format.max_payload);
                if valid {
                    return self.fate(Lost {
                        offset,
                        what,
                        bytes: here - offset,
                        next_valid: Some(here),
                    });
                }
            }
            self.consume(last + 1);
        }
        let bytes = self.offset + (self.end - self.start) as u64 - offset;
        self.fate(Lost {
            offset,
            what,
            bytes,
            next_valid: None,
        })
    }

    fn fate(&mut self, lost: Lost) -> Result<Next<'static>, FrameError> {
        self.lost = Some(lost);
        let Lost {
            offset,
            what,
            bytes,
            next_valid,
        } = lost;
        match next_valid {
            Some(_) => Err(FrameError::Corrupt {
                offset,
                what,
                next_valid,
            }),
            None => self.torn(offset, bytes, what),
        }
    }

    fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        self.offset += bytes as u64;
    }

    /// Reads until `want` bytes are there or the source has no more for now. Returns how many there are. The buffer grows
    /// with what really comes, not with what is wanted.
    fn fill(&mut self, want: usize) -> Result<usize, FrameError> {
        while self.end - self.start < want {
            if self.end == self.buf.len() {
                if self.start > 0 {
                    self.buf.copy_within(self.start..self.end, 0);
                    self.end -= self.start;
                    self.start = 0;
                } else {
                    let more = self.buf.len().max(READ_BYTES);
                    self.buf.resize(self.buf.len() + more, 0);
                }
            }
            match read(&mut self.source, &mut self.buf[self.end..])? {
                0 => break,
                n => self.end += n,
            }
        }
        Ok(self.end - self.start)
    }
}

fn read(source: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(into) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
