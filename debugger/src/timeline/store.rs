//! The pages that checkpoints keep: each content once, compressed in memory, and beyond a bound in an unnamed file.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use lockstep_vmm::memory::{PAGE_SIZE, Page};
use xxhash_rust::xxh3::xxh3_128;

/// What a page costs beside its content.
const OVERHEAD: usize = 96;
/// The file may hold this many times what memory may.
const FILE_FACTOR: usize = 16;

/// A page in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageId(u32);

enum Data {
    Memory(Box<[u8]>),
    /// Uncompressed, at this many pages from the file's start.
    File(u64),
}

struct Slot {
    hash: u128,
    users: u32,
    data: Data,
}

struct Spill {
    file: File,
    free: Vec<u64>,
    used: u64,
}

/// Pages by content.
pub struct Store {
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    by_hash: HashMap<u128, u32>,
    memory: usize,
    limit: usize,
    spill: Option<Spill>,
}

impl Store {
    /// A store of `limit` bytes of memory, and an unnamed file in `spill` for more.
    pub fn new(limit: usize, spill: Option<&Path>) -> Result<Self> {
        let spill = match spill {
            None => None,
            Some(directory) => Some(Spill {
                file: tempfile::tempfile_in(directory)
                    .with_context(|| format!("cannot keep checkpoints in {}", directory.display()))?,
                free: Vec::new(),
                used: 0,
            }),
        };
        Ok(Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_hash: HashMap::new(),
            memory: 0,
            limit,
            spill,
        })
    }

    /// Bytes in memory and in the file.
    pub fn bytes(&self) -> (usize, usize) {
        let file = self
            .spill
            .as_ref()
            .map_or(0, |spill| spill.used - spill.free.len() as u64);
        (self.memory, file as usize * PAGE_SIZE)
    }

    /// Whether it holds more than it may, where its users keep `beside` bytes in memory, too.
    pub fn is_full(&self, beside: usize) -> bool {
        let (memory, file) = self.bytes();
        // What lies beside the pages has no place in the file.
        let over = memory + beside > self.limit;
        beside > self.limit || over && (self.spill.is_none() || file > self.limit.saturating_mul(FILE_FACTOR))
    }

    /// Keeps a page.
    pub fn insert(&mut self, page: &Page) -> Result<PageId> {
        let hash = xxh3_128(page);
        if let Some(&id) = self.by_hash.get(&hash)
            && let Some(Some(slot)) = self.slots.get_mut(id as usize)
        {
            slot.users += 1;
            return Ok(PageId(id));
        }
        let data = match &mut self.spill {
            Some(spill) if self.memory > self.limit => Data::File(spill.put(page)?),
            _ => Data::Memory(lz4_flex::block::compress(page).into_boxed_slice()),
        };
        if let Data::Memory(bytes) = &data {
            self.memory += bytes.len() + OVERHEAD;
        }
        let slot = Some(Slot { hash, users: 1, data });
        let id = if let Some(id) = self.free.pop() {
            self.slots[id as usize] = slot;
            id
        } else {
            self.slots.push(slot);
            self.slots.len() as u32 - 1
        };
        self.by_hash.insert(hash, id);
        Ok(PageId(id))
    }

    /// Lets go of a page that was kept once.
    pub fn release(&mut self, PageId(id): PageId) {
        let Some(Some(slot)) = self.slots.get_mut(id as usize) else {
            return;
        };
        slot.users -= 1;
        if slot.users > 0 {
            return;
        }
        self.by_hash.remove(&slot.hash);
        match (&slot.data, &mut self.spill) {
            (Data::Memory(bytes), _) => self.memory -= bytes.len() + OVERHEAD,
            (Data::File(at), Some(spill)) => spill.free.push(*at),
            (Data::File(_), None) => {}
        }
        self.slots[id as usize] = None;
        self.free.push(id);
    }

    /// A page's content.
    pub fn read(&self, PageId(id): PageId, page: &mut Page) -> Result<()> {
        let slot = self.slots.get(id as usize).and_then(Option::as_ref);
        match slot.map(|slot| &slot.data) {
            Some(Data::Memory(bytes)) => {
                let length = lz4_flex::block::decompress_into(bytes, page).context("a kept page is damaged")?;
                anyhow::ensure!(length == PAGE_SIZE, "a kept page is damaged");
            }
            Some(Data::File(at)) => {
                let spill = self.spill.as_ref().context("the pages' file is gone")?;
                spill
                    .file
                    .read_exact_at(page, at * PAGE_SIZE as u64)
                    .context("cannot read a kept page")?;
            }
            None => anyhow::bail!("a page that is not kept is asked for"),
        }
        Ok(())
    }
}

impl Spill {
    fn put(&mut self, page: &Page) -> Result<u64> {
        let at = self.free.pop().unwrap_or_else(|| {
            self.used += 1;
            self.used - 1
        });
        self.file
            .write_all_at(page, at * PAGE_SIZE as u64)
            .context("cannot write a page of a checkpoint; give --checkpoint-dir a directory with room")?;
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(seed: u32) -> Page {
        let mut page = [0; PAGE_SIZE];
        for (index, byte) in page.iter_mut().enumerate() {
            *byte = (index as u32).wrapping_mul(seed).wrapping_add(seed >> 3) as u8;
        }
        page[..4].copy_from_slice(&seed.to_le_bytes());
        page
    }

    fn content(store: &Store, id: PageId) -> Page {
        let mut page = [0; PAGE_SIZE];
        store.read(id, &mut page).unwrap();
        page
    }

    #[test]
    fn a_content_is_kept_once_and_as_long_as_somebody_wants_it() {
        let mut store = Store::new(1 << 20, None).unwrap();
        let first = store.insert(&page(7)).unwrap();
        let bytes = store.bytes();
        let second = store.insert(&page(7)).unwrap();
        assert_eq!((first, store.bytes()), (second, bytes));
        store.release(first);
        assert_eq!(content(&store, second), page(7));
        store.release(second);
        assert_eq!(store.bytes(), (0, 0));
        let mut gone = [0; PAGE_SIZE];
        assert!(store.read(second, &mut gone).is_err());
    }

    #[test]
    fn what_memory_may_not_hold_goes_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(10_000, Some(dir.path())).unwrap();
        let ids: Vec<_> = (0..64).map(|seed| store.insert(&page(seed)).unwrap()).collect();
        let (memory, file) = store.bytes();
        assert!((10_000..20_000).contains(&memory) && file > 0, "{memory} {file}");
        assert!(!store.is_full(0) && !store.is_full(10_000), "the file has room");
        assert!(store.is_full(10_001), "but for pages alone");
        for (seed, id) in (0..).zip(&ids) {
            assert_eq!(content(&store, *id), page(seed));
        }
        for id in ids {
            store.release(id);
        }
        assert_eq!(store.bytes(), (0, 0));
        assert!(Store::new(10, None).unwrap().is_full(11));
    }
}
