//! Digests of disks: over a whole file, or over its chunks, which can be kept up while the disk is written.

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};
use lockstep_proto::Identity;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// Largest chunk whose digests are read.
const MAX_CHUNK: u32 = 16 << 20;

/// Of one chunk.
pub fn chunk_digest(data: &[u8]) -> [u8; 16] {
    xxh3_128(data).to_be_bytes()
}

/// Of a disk, by those of its chunks.
pub fn digest_of_chunks(chunks: &[[u8; 16]]) -> [u8; 16] {
    xxh3_128(chunks.as_flattened()).to_be_bytes()
}

/// Of a disk in a file, made as `identity` says.
pub fn digest_of_disk(path: &Path, identity: &Identity) -> Result<[u8; 16]> {
    match identity.disk_digest_chunk {
        0 => digest_of(path),
        chunk if chunk > MAX_CHUNK => {
            bail!("the log's digests are of chunks of {chunk} bytes, which no program writes")
        }
        chunk => {
            let mut digests = Vec::new();
            read_pieces(path, chunk as usize, |piece| digests.push(chunk_digest(piece)))?;
            Ok(digest_of_chunks(&digests))
        }
    }
}

/// xxh3-128 of a file.
pub fn digest_of(path: &Path) -> Result<[u8; 16]> {
    let mut hasher = Xxh3::new();
    read_pieces(path, 1 << 20, |piece| hasher.update(piece))?;
    Ok(hasher.digest128().to_be_bytes())
}

/// Reads a file in pieces of this size; the last one may be shorter.
fn read_pieces(path: &Path, bytes: usize, mut take: impl FnMut(&[u8])) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut buffer = vec![0; bytes];
    let mut filled = 0;
    loop {
        match io::Read::read(&mut file, &mut buffer[filled..]) {
            Ok(0) if filled == 0 => return Ok(()),
            Ok(0) => {
                take(&buffer[..filled]);
                return Ok(());
            }
            Ok(len) => filled += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
        if filled == bytes {
            take(&buffer);
            filled = 0;
        }
    }
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
        assert_eq!(named(0).unwrap(), xxh3_128(&data).to_be_bytes());
        let digests: Vec<_> = data.chunks(4096).map(chunk_digest).collect();
        assert_eq!((digests.len(), named(4096).unwrap()), (3, digest_of_chunks(&digests)));
        assert_ne!(named(4096).unwrap(), named(8192).unwrap());
        named(u32::MAX).unwrap_err();
    }
}
