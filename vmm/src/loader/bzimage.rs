//! Getting the `vmlinux` out of a bzImage, on our side: the guest would need half a minute of emulated ring-0 code for
//! it, and the code that is loaded must be rewritten before it runs.
//!
//! The payload is the compressed `vmlinux`, and behind it (with every compression but gzip, whose last field it is
//! anyway) four bytes with the unpacked size.

use std::io::Read;

use thiserror::Error;

/// Largest unpacked kernel that is accepted.
pub const MAX_UNPACKED: usize = 512 << 20;

const MAGIC_OFFSET: usize = 0x202;
const VERSION_OFFSET: usize = 0x206;
const SETUP_SECTS_OFFSET: usize = 0x1f1;
const PAYLOAD_OFFSET_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH_OFFSET: usize = 0x24c;
const FIRST_VERSION_WITH_PAYLOAD: u16 = 0x0208;
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
/// Memory that the xz decoder may use: the kernel is packed with a dictionary of up to 128 MiB.
const XZ_MEMORY: u64 = 256 << 20;

/// Why no `vmlinux` comes out of a bzImage.
#[derive(Debug, Error)]
pub enum BzImageError {
    /// It is no bzImage.
    #[error("it does not have a boot header (\"HdrS\" at offset 0x202)")]
    Magic,
    /// It is too old.
    #[error("its boot protocol is {}.{:02}; a payload that can be found takes 2.08 (Linux 2.6.26) or later", .0 >> 8, .0 & 0xff)]
    Version(u16),
    /// The payload is outside the file.
    #[error(
        "its payload ({length:#x} bytes at {offset:#x}) lies outside the file of {file:#x} bytes: is it cut short?"
    )]
    Outside {
        /// Where the payload begins in the file.
        offset: u64,
        /// How long it says it is.
        length: u64,
        /// The file's size.
        file: u64,
    },
    /// A compression that is known but not unpacked here.
    #[error(
        "its payload is compressed with {0}, which is not supported: give the vmlinux, or build the kernel with gzip, xz, zstd or lz4"
    )]
    Unsupported(&'static str),
    /// A compression that is not known.
    #[error("its payload begins with {0:02x?}, which is no compression known here: give the vmlinux")]
    Unknown(Vec<u8>),
    /// It says that it unpacks to more than any kernel.
    #[error("it says that it unpacks to {size} bytes, more than {MAX_UNPACKED}")]
    TooLarge {
        /// What it says.
        size: u64,
    },
    /// It does not unpack.
    #[error("its {compression} payload does not unpack: {why}")]
    Corrupt {
        /// How it is compressed.
        compression: Compression,
        /// What the decoder says.
        why: String,
    },
    /// It unpacks to another size than it says.
    #[error(
        "its {compression} payload unpacks to {unpacked} bytes, not to the {declared} that it says: is it damaged?"
    )]
    Size {
        /// How it is compressed.
        compression: Compression,
        /// How much came out (one more than declared where there would have been more).
        unpacked: usize,
        /// What the payload's last four bytes say.
        declared: usize,
    },
}

/// How a payload is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all: an ELF file.
    None,
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
    /// LZ4, in the legacy frame format.
    Lz4,
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        })
    }
}

/// Whether `file` has a boot header.
pub fn is_bzimage(file: &[u8]) -> bool {
    file.get(MAGIC_OFFSET..MAGIC_OFFSET + 4) == Some(b"HdrS")
}

/// Unpacks the payload of a bzImage.
pub fn unpack(file: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let (compression, packed) = payload(file)?;
    if compression == Compression::None {
        return Ok(packed.to_vec());
    }
    let tail = packed.len().saturating_sub(4);
    let declared = match packed.get(tail..).map(<[u8; 4]>::try_from) {
        Some(Ok(size)) => u32::from_le_bytes(size),
        _ => {
            return Err(BzImageError::Corrupt {
                compression,
                why: "it is shorter than its size field".into(),
            });
        }
    };
    let declared = usize::try_from(declared)
        .ok()
        .filter(|size| *size <= MAX_UNPACKED)
        .ok_or(BzImageError::TooLarge { size: declared.into() })?;
    // gzip's own last field is the size; with the others it stands behind the compressed data.
    let data = if compression == Compression::Gzip {
        packed
    } else {
        &packed[..tail]
    };
    let corrupt = |why: String| BzImageError::Corrupt { compression, why };
    let unpacked = match compression {
        Compression::None => Ok(data.to_vec()),
        Compression::Gzip => bounded(flate2::read::GzDecoder::new(data), declared),
        Compression::Xz => liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0)
            .map_err(|e| e.to_string())
            .and_then(|stream| bounded(liblzma::read::XzDecoder::new_stream(data, stream), declared)),
        Compression::Zstd => zstd::stream::read::Decoder::with_buffer(data)
            .map_err(|e| e.to_string())
            .and_then(|decoder| bounded(decoder.single_frame(), declared)),
        Compression::Lz4 => lz4_legacy(data, declared),
    }
    .map_err(corrupt)?;
    if unpacked.len() == declared {
        Ok(unpacked)
    } else {
        Err(BzImageError::Size {
            compression,
            unpacked: unpacked.len(),
            declared,
        })
    }
}

/// The payload as it stands in the file, and how it is compressed.
fn payload(file: &[u8]) -> Result<(Compression, &[u8]), BzImageError> {
    if !is_bzimage(file) {
        return Err(BzImageError::Magic);
    }
    let outside = |offset: u64, length: u64| BzImageError::Outside {
        offset,
        length,
        file: file.len() as u64,
    };
    let Some(header) = file.get(..PAYLOAD_LENGTH_OFFSET + 4) else {
        return Err(outside(0, PAYLOAD_LENGTH_OFFSET as u64 + 4));
    };
    let version = u16::from_le_bytes([header[VERSION_OFFSET], header[VERSION_OFFSET + 1]]);
    if version < FIRST_VERSION_WITH_PAYLOAD {
        return Err(BzImageError::Version(version));
    }
    let field = |at: usize| {
        u64::from(u32::from_le_bytes([
            header[at],
            header[at + 1],
            header[at + 2],
            header[at + 3],
        ]))
    };
    let setup_sects = match header[SETUP_SECTS_OFFSET] {
        0 => 4,
        n => u64::from(n),
    };
    let offset = (setup_sects + 1) * 512 + field(PAYLOAD_OFFSET_OFFSET);
    let length = field(PAYLOAD_LENGTH_OFFSET);
    let range = usize::try_from(offset).ok().zip(usize::try_from(offset + length).ok());
    let packed = range
        .and_then(|(from, to)| file.get(from..to))
        .ok_or_else(|| outside(offset, length))?;
    let compression = match packed {
        [0x7f, b'E', b'L', b'F', ..] => Compression::None,
        [0x1f, 0x8b | 0x9e, ..] => Compression::Gzip,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        [0x02, 0x21, 0x4c, 0x18, ..] => Compression::Lz4,
        [0x5d, 0, 0, ..] => return Err(BzImageError::Unsupported("lzma")),
        [b'B', b'Z', b'h', ..] => return Err(BzImageError::Unsupported("bzip2")),
        [0x89, b'L', b'Z', b'O', ..] => return Err(BzImageError::Unsupported("lzo")),
        other => return Err(BzImageError::Unknown(other.iter().take(8).copied().collect())),
    };
    Ok((compression, packed))
}

/// Reads to the end, but at most one byte more than `declared`.
fn bounded(reader: impl Read, declared: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    match reader.take(declared as u64 + 1).read_to_end(&mut out) {
        Ok(_) => Ok(out),
        Err(e) => Err(format!("{e} (after {} bytes)", out.len())),
    }
}

/// LZ4's legacy frames: the magic, then blocks of a 32-bit length and that many bytes, each unpacking to at most 8 MiB.
fn lz4_legacy(mut data: &[u8], declared: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut block = vec![0; LZ4_LEGACY_BLOCK.min(declared.saturating_add(1))];
    while !data.is_empty() && out.len() <= declared {
        let Some((field, rest)) = data.split_first_chunk::<4>() else {
            return Err(format!("{} bytes are left over behind the last block", data.len()));
        };
        data = rest;
        if *field == LZ4_LEGACY_MAGIC {
            continue;
        }
        let length = u32::from_le_bytes(*field) as usize;
        let Some((packed, rest)) = data.split_at_checked(length) else {
            return Err(format!("a block of {length} bytes, but {} are left", data.len()));
        };
        data = rest;
        let size = lz4_flex::block::decompress_into(packed, &mut block).map_err(|e| e.to_string())?;
        out.extend_from_slice(&block[..size]);
    }
    Ok(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;

    /// A bzImage around a payload, as far as it matters here.
    pub(crate) fn wrap(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 512 * 5 + 16];
        file[0x1f1] = 4;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        file[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        file.extend_from_slice(payload);
        file.extend_from_slice(&[0xee; 100]);
        file
    }

    fn with_size(mut packed: Vec<u8>, size: usize) -> Vec<u8> {
        packed.extend_from_slice(&(size as u32).to_le_bytes());
        packed
    }

    fn content() -> Vec<u8> {
        let mut x = 1u32;
        (0..9_000_000)
            .map(|i: u32| {
                x = x.wrapping_mul(1664525).wrapping_add(1013904223);
                if i % 4096 < 3000 {
                    (i >> 8) as u8
                } else {
                    (x >> 24) as u8
                }
            })
            .collect()
    }

    fn pack(compression: Compression, content: &[u8]) -> Vec<u8> {
        match compression {
            Compression::None => content.to_vec(),
            Compression::Gzip => {
                let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                e.write_all(content).unwrap();
                e.finish().unwrap()
            }
            Compression::Xz => {
                let mut e = liblzma::write::XzEncoder::new(Vec::new(), 0);
                e.write_all(content).unwrap();
                with_size(e.finish().unwrap(), content.len())
            }
            Compression::Zstd => with_size(zstd::encode_all(content, 1).unwrap(), content.len()),
            Compression::Lz4 => {
                let mut out = LZ4_LEGACY_MAGIC.to_vec();
                for chunk in content.chunks(LZ4_LEGACY_BLOCK) {
                    let packed = lz4_flex::block::compress(chunk);
                    out.extend_from_slice(&(packed.len() as u32).to_le_bytes());
                    out.extend_from_slice(&packed);
                }
                with_size(out, content.len())
            }
        }
    }

    const ALL: [Compression; 4] = [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4];

    #[test]
    fn each_compression_is_unpacked() {
        let content = content();
        for compression in ALL {
            let file = wrap(&pack(compression, &content));
            assert!(is_bzimage(&file));
            assert!(unpack(&file).unwrap() == content, "{compression}");
        }
    }

    #[test]
    fn an_uncompressed_payload_is_taken_as_it_is() {
        assert_eq!(unpack(&wrap(b"\x7fELF and more")).unwrap(), b"\x7fELF and more");
    }

    #[test]
    fn a_wrong_or_enormous_size_is_refused() {
        let content = vec![7; 100_000];
        for compression in ALL {
            let good = pack(compression, &content);
            for size in [0, 1, 99_999, 100_001, u32::MAX] {
                let mut bad = good.clone();
                let at = bad.len() - 4;
                bad[at..].copy_from_slice(&size.to_le_bytes());
                let error = unpack(&wrap(&bad)).expect_err("a wrong size");
                if size == u32::MAX {
                    assert!(matches!(error, BzImageError::TooLarge { .. }), "{compression}: {error}");
                }
            }
        }
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let content = vec![7; 10_000];
        for compression in ALL {
            let good = wrap(&pack(compression, &content));
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 0x55;
                if let Ok(out) = unpack(&bad) {
                    assert!(out.len() <= MAX_UNPACKED);
                }
                let _ = unpack(&good[..at]);
            }
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (magic, name) in [
            (&b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff"[..], "lzma"),
            (b"BZh91AY&SY", "bzip2"),
            (b"\x89LZO\0\r\n\x1a\n", "lzo"),
        ] {
            let error = unpack(&wrap(magic)).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("vmlinux"), "{error}");
        }
        let error = unpack(&wrap(b"\x01\x02\x03\x04")).unwrap_err();
        assert!(matches!(error, BzImageError::Unknown(_)), "{error}");
    }

    #[test]
    fn an_old_boot_protocol_is_refused() {
        let mut file = wrap(b"\x7fELF");
        file[0x206..0x208].copy_from_slice(&0x0207u16.to_le_bytes());
        let error = unpack(&file).unwrap_err().to_string();
        assert!(error.contains("2.07"), "{error}");
        assert!(matches!(unpack(b"MZ"), Err(BzImageError::Magic)));
    }
}
