//! One digest of all guest memory that is cheap to keep: a sum of the pages' hashes.
//!
//! Each page contributes `xxh3_128(page || frame number)`; the total is their sum modulo 2^128, so a page that changes
//! costs one hash, whatever the size of memory. Equal memory gives equal totals on every host.

use lockstep_proto::quantity::PageNumber;
use xxhash_rust::xxh3::xxh3_128;

use super::{Memory, Page};

/// Hash of one page at one place.
pub fn page_hash(frame: PageNumber, page: &Page) -> u128 {
    let content = xxh3_128(page);
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(&content.to_le_bytes());
    bytes[16..].copy_from_slice(&frame.get().to_le_bytes());
    xxh3_128(&bytes)
}

/// The digest of all memory, kept page by page.
#[derive(Clone)]
pub struct MemoryDigest {
    pages: Vec<u128>,
    total: u128,
}

impl MemoryDigest {
    /// Hashes all of `memory`.
    pub fn of(memory: &Memory) -> Self {
        let mut page = [0; super::PAGE_SIZE];
        let mut pages = Vec::with_capacity(memory.page_count() as usize);
        let mut total = 0u128;
        for index in memory.indices() {
            let frame = memory.frame(index);
            memory.read_page(frame, &mut page);
            let hash = page_hash(frame, &page);
            total = total.wrapping_add(hash);
            pages.push(hash);
        }
        Self { pages, total }
    }

    /// Takes the present content of `frame` into the digest and returns the page's hash.
    pub fn update(&mut self, memory: &Memory, frame: PageNumber) -> u128 {
        let mut page = [0; super::PAGE_SIZE];
        memory.read_page(frame, &mut page);
        let hash = page_hash(frame, &page);
        if let Some(slot) = memory
            .index(frame)
            .and_then(|index| self.pages.get_mut(index.get() as usize))
        {
            self.total = self.total.wrapping_sub(*slot).wrapping_add(hash);
            *slot = hash;
        }
        hash
    }

    /// The digest, 16 bytes big-endian.
    pub fn total(&self) -> [u8; 16] {
        self.total.to_be_bytes()
    }
}
