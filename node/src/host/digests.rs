//! Digests of a disk's chunks. Those of zeroes take no room: a thin disk's are as many as what it has in it.

use std::ops::Range;
use std::sync::LazyLock;

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::chunks::CHUNK;

/// Chunks whose digests lie together.
const GROUP: usize = 1024;

/// Of one chunk: xxh3-128, big-endian.
pub type Digest = [u8; 16];

/// Of a whole chunk of zeroes.
pub static ZEROES: LazyLock<Digest> = LazyLock::new(|| chunk_digest(&vec![0; CHUNK as usize]));

/// Of one chunk.
pub fn chunk_digest(data: &[u8]) -> Digest {
    xxh3_128(data).to_be_bytes()
}

/// Of all chunks of a disk, to begin with of zeroes.
#[derive(Clone, Debug)]
pub struct Digests {
    count: u64,
    /// `None`: zeroes, all of them.
    groups: Vec<Option<Box<[Digest]>>>,
}

impl Digests {
    /// Of so many chunks.
    pub fn new(count: u64) -> Self {
        Self {
            count,
            groups: vec![None; count.div_ceil(GROUP as u64) as usize],
        }
    }

    /// Of this chunk; `None`: there is none with this number.
    pub fn get(&self, chunk: u64) -> Option<Digest> {
        let group = self.groups.get((chunk / GROUP as u64) as usize)?.as_deref();
        let digest = group.map_or(*ZEROES, |group| group[(chunk % GROUP as u64) as usize]);
        (chunk < self.count).then_some(digest)
    }

    /// Whether this is a chunk, a whole one, and zeroes.
    pub fn is_zeroes(&self, chunk: u64) -> bool {
        self.get(chunk) == Some(*ZEROES)
    }

    /// This chunk's is `digest`.
    pub fn set(&mut self, chunk: u64, digest: Digest) {
        let Some(group) = self.groups.get_mut((chunk / GROUP as u64) as usize) else {
            return;
        };
        if group.is_some() || digest != *ZEROES {
            let group = group.get_or_insert_with(|| vec![*ZEROES; GROUP].into());
            group[(chunk % GROUP as u64) as usize] = digest;
        }
    }

    /// These chunks are zeroes, whole ones.
    pub fn set_zeroes(&mut self, chunks: Range<u64>) {
        let mut at = chunks.start;
        while at < chunks.end.min(self.count) {
            let index = at / GROUP as u64;
            let (first, past) = (index * GROUP as u64, (index + 1) * GROUP as u64);
            let end = chunks.end.min(past);
            if let Some(group) = self.groups.get_mut(index as usize) {
                if at == first && end == past {
                    *group = None;
                } else if let Some(group) = group {
                    group[(at - first) as usize..(end - first) as usize].fill(*ZEROES);
                }
            }
            at = end;
        }
    }

    /// Over all of them, in order.
    pub fn total(&self) -> Digest {
        let mut hasher = Xxh3::new();
        let zeroes = vec![*ZEROES; GROUP];
        let mut left = self.count as usize;
        for group in &self.groups {
            let group = group.as_deref().unwrap_or(&zeroes);
            let here = left.min(GROUP);
            hasher.update(group[..here].as_flattened());
            left -= here;
        }
        hasher.digest128().to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_take_no_room_and_count_as_if_they_were_there() {
        let count = 3 * GROUP as u64 + 7;
        let zero = *ZEROES;
        assert_eq!(zero, chunk_digest(&vec![0; CHUNK as usize]));
        let mut digests = Digests::new(count);
        let mut plain = vec![zero; count as usize];
        let check = |digests: &Digests, plain: &[Digest]| {
            assert_eq!(digests.total(), chunk_digest(plain.as_flattened()));
            assert!((0..count).all(|at| digests.get(at) == Some(plain[at as usize])));
            assert!((0..count).all(|at| digests.is_zeroes(at) == (plain[at as usize] == zero)));
        };
        check(&digests, &plain);
        for at in [0, GROUP as u64 + 3, 2 * GROUP as u64 - 1, count - 1] {
            digests.set(at, [at as u8; 16]);
            plain[at as usize] = [at as u8; 16];
        }
        digests.set(5, zero);
        check(&digests, &plain);
        assert_eq!(digests.groups.iter().filter(|group| group.is_some()).count(), 3);
        // A part of one group, the whole of another, and beyond the end.
        digests.set_zeroes(1..2 * GROUP as u64);
        digests.set_zeroes(count - 1..count + 5000);
        plain[1..].fill(zero);
        check(&digests, &plain);
        assert!(digests.groups[1].is_none());
        digests.set(count + GROUP as u64, [1; 16]);
        assert_eq!((digests.get(count), digests.is_zeroes(count)), (None, false));
        assert_eq!(Digests::new(0).total(), chunk_digest(&[]));
    }
}
