//! The one framing of everything that is persisted: log segments, their indexes, snapshots.
//!
//! ```text
//! file   = header frame*
//! header = magic [8]  version u32  crc u32                    crc: CRC32C of magic and version
//! frame  = kind u32  length u32  payload_crc u32  crc u32  payload [length]
//! ```
//!
//! All numbers little-endian. `payload_crc` is the CRC32C of the payload. `crc` is the CRC32C of the frame's offset in the
//! file (u64) and the three fields before it.
//!
//! Why the header has a CRC of its own: a damaged length would otherwise look like a frame that the end of the file cuts
//! off, and a reader would take good data behind it for a torn tail. Why the offset is in it: a frame is valid in its own
//! place only. A log inside a log (a guest that downloads one: network frames are stored as they are) is never taken for
//! frames of the outer one, and a block that the file system put in the wrong place is found.
//!
//! The file header's layout is the same in all versions. What follows is as the version says.

mod reader;
mod writer;

use std::io;

use thiserror::Error;

pub use reader::{FrameReader, FrameRef, Next};
pub use writer::FrameWriter;

/// Bytes of the file header.
pub const FILE_HEADER_BYTES: usize = 16;

/// Bytes of a frame before its payload.
pub const FRAME_HEADER_BYTES: usize = 16;

/// Frame kinds are 1 to this. Few bits set make a header cheap to rule out when one is searched for.
pub const MAX_KIND: u32 = 0xffff;

/// One kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// The first eight bytes of the file.
    pub magic: [u8; 8],
    /// The version that is written, N.
    pub version: u32,
    /// The oldest version that is read: N-1 where there is one, else N.
    pub min_version: u32,
    /// Largest payload of a frame, in bytes. Checked before anything is allocated.
    pub max_payload: u32,
}

impl Format {
    /// The file header of this format's version.
    pub fn header(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut header = [0; FILE_HEADER_BYTES];
        header[..8].copy_from_slice(&self.magic);
        header[8..12].copy_from_slice(&self.version.to_le_bytes());
        let crc = crc32c::crc32c(&header[..12]);
        header[12..].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// The version in a file header.
    pub fn parse_header(&self, header: &[u8; FILE_HEADER_BYTES]) -> Result<u32, FrameError> {
        let found: [u8; 8] = std::array::from_fn(|i| header[i]);
        if found != self.magic {
            return Err(FrameError::Magic {
                expected: self.magic,
                found,
            });
        }
        if crc32c::crc32c(&header[..12]) != word(header, 12) {
            return Err(FrameError::HeaderDamaged);
        }
        let version = word(header, 8);
        if !(self.min_version..=self.version).contains(&version) {
            return Err(FrameError::Version {
                found: version,
                min: self.min_version,
                max: self.version,
            });
        }
        Ok(version)
    }
}

/// A frame's header.
#[derive(Debug, Clone, Copy)]
struct FrameHeader {
    kind: u32,
    length: u32,
    payload_crc: u32,
}

impl FrameHeader {
    fn crc(self, offset: u64) -> u32 {
        let mut covered = [0; 20];
        covered[..8].copy_from_slice(&offset.to_le_bytes());
        covered[8..12].copy_from_slice(&self.kind.to_le_bytes());
        covered[12..16].copy_from_slice(&self.length.to_le_bytes());
        covered[16..].copy_from_slice(&self.payload_crc.to_le_bytes());
        crc32c::crc32c(&covered)
    }

    fn encode(self, offset: u64) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes[12..].copy_from_slice(&self.crc(offset).to_le_bytes());
        bytes
    }

    /// The header at `offset`, if it is one. `bytes` has [`FRAME_HEADER_BYTES`] at least.
    fn decode(bytes: &[u8], offset: u64) -> Option<Self> {
        let kind = word(bytes, 0);
        if kind == 0 || kind > MAX_KIND {
            return None;
        }
        let header = Self {
            kind,
            length: word(bytes, 4),
            payload_crc: word(bytes, 8),
        };
        (header.crc(offset) == word(bytes, 12)).then_some(header)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// Why frames could not be read or written. Offsets are bytes from the start of the file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The operating system refused.
    #[error("input or output failed: {0}")]
    Io(#[from] io::Error),
    /// Another kind of file.
    #[error(
        "it starts with \"{}\" and not with \"{}\"; is this the right file?",
        found.escape_ascii(), expected.escape_ascii()
    )]
    Magic {
        /// What the file has to start with.
        expected: [u8; 8],
        /// What it starts with.
        found: [u8; 8],
    },
    /// The file header's CRC does not match.
    #[error("its first 16 bytes are damaged; restore it from a copy")]
    HeaderDamaged,
    /// The file ends inside its header.
    #[error("it ends after {bytes} bytes, inside its header of 16; nothing was written to it")]
    HeaderShort {
        /// How long it is, in bytes.
        bytes: u64,
    },
    /// A version that this program does not read.
    #[error(
        "it has format version {found}, and this program reads {min} to {max}; use the program that wrote it, or a newer one"
    )]
    Version {
        /// The file's version.
        found: u32,
        /// The oldest that is read.
        min: u32,
        /// The newest that is read.
        max: u32,
    },
    /// Damage that is not a torn tail.
    #[error("{what}{}", .next_valid.map(|at| format!(" (and there is a valid frame after it, at offset {at})")).unwrap_or_default())]
    Corrupt {
        /// Where the damaged frame begins.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
        /// Where a valid frame begins that shows that this is not the file's tail.
        next_valid: Option<u64>,
    },
    /// A frame larger than the format allows, with a valid header.
    #[error("a frame of {length} bytes where the format allows {max}")]
    TooLarge {
        /// Where the frame begins, or would have begun.
        offset: u64,
        /// Its payload, in bytes.
        length: u64,
        /// The format's bound, in bytes.
        max: u32,
    },
    /// A frame kind of 0 or above [`MAX_KIND`] was to be written.
    #[error("{0} is not a frame kind; kinds are 1 to 65535")]
    Kind(u32),
}

#[cfg(test)]
mod tests;
