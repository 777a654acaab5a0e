//! Digests of disks: over its chunks, which can be kept up while the disk is written and cost nothing where it has a hole, or,
//! as older programs made them, over a whole file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use lockstep_proto::Identity;
use xxhash_rust::xxh3::Xxh3;

use crate::host::digests::{Digest, chunk_digest};
use crate::host::holes::{Stretch, stretches};
use crate::host::size::bytes_of;

/// Largest chunk whose digests are read.
const MAX_CHUNK: u32 = 16 << 20;

/// Pieces in which a whole file is read.
const PIECE: u64 = 1 << 20;

/// Of a disk in a file, made as `identity` says.
pub fn digest_of_disk(path: &Path, identity: &Identity) -> Result<Digest> {
    let mut hasher = Xxh3::new();
    match identity.disk_digest_chunk {
        0 => {
            let zeroes = vec![0; PIECE as usize];
            read_pieces(path, PIECE, |piece| hasher.update(piece.unwrap_or(&zeroes)))?;
        }
        chunk if chunk > MAX_CHUNK => {
            bail!("the log's digests are of chunks of {chunk} bytes, which no program writes")
        }
        chunk => {
            let zeroes = chunk_digest(&vec![0; chunk as usize]);
            read_pieces(path, u64::from(chunk), |piece| {
                hasher.update(&piece.map_or(zeroes, chunk_digest));
            })?;
        }
    }
    Ok(hasher.digest128().to_be_bytes())
}

/// Reads a file in pieces of this size, of which the last one may be shorter. `None` is a whole piece of zeroes, in a hole: it
/// is not read.
fn read_pieces(path: &Path, piece: u64, mut take: impl FnMut(Option<&[u8]>)) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut read = || {
        let bytes = bytes_of(&file)?;
        let mut buffer = vec![0; piece as usize];
        for stretch in stretches(&file, piece, 0..bytes.div_ceil(piece))? {
            match stretch {
                Stretch::Holes(pieces) => pieces.for_each(|_| take(None)),
                Stretch::Data(pieces) => {
                    for at in pieces.map(|number| number * piece) {
                        let data = &mut buffer[..(bytes - at).min(piece) as usize];
                        file.read_exact_at(data, at)?;
                        take(Some(data));
                    }
                }
            }
        }
        std::io::Result::Ok(())
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_named_as_its_identity_says() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("disk");
        let data: Vec<u8> = (0..10_000u32).map(|at| (at % 251) as u8).collect();
        std::fs::write(&path, &data).unwrap();
        let named = |chunk| {
            let identity = Identity {
                disk_digest_chunk: chunk,
                ..Identity::default()
            };
            digest_of_disk(&path, &identity)
        };
        assert_eq!(named(0).unwrap(), chunk_digest(&data));
        let digests: Vec<_> = data.chunks(4096).map(chunk_digest).collect();
        let of_chunks = chunk_digest(digests.as_flattened());
        assert_eq!((digests.len(), named(4096).unwrap()), (3, of_chunks));
        assert_ne!(named(4096).unwrap(), named(8192).unwrap());
        named(u32::MAX).unwrap_err();
    }

    /// What is not read counts as if it were: a hole has the digest that written zeroes have.
    #[test]
    fn holes_are_zeroes_in_both_forms() {
        let home = tempfile::tempdir().unwrap();
        let (thin, full) = (home.path().join("thin"), home.path().join("full"));
        let mut data = vec![0; (5 << 20) + 512];
        data[(2 << 20) + 70_000] = 1;
        std::fs::write(&full, &data).unwrap();
        let file = File::create(&thin).unwrap();
        file.set_len(data.len() as u64).unwrap();
        file.write_all_at(&[1], (2 << 20) + 70_000).unwrap();
        let mut holes = 0;
        read_pieces(&thin, 1 << 16, |piece| holes += u32::from(piece.is_none())).unwrap();
        assert_eq!(holes, 79, "of 80 whole pieces");
        for disk_digest_chunk in [0, 1 << 16] {
            let identity = Identity {
                disk_digest_chunk,
                ..Identity::default()
            };
            let digest = |path| digest_of_disk(path, &identity).unwrap();
            assert_eq!(digest(&thin), digest(&full), "{disk_digest_chunk}");
        }
    }
}
