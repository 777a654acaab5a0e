//! The memory itself and its KVM slots.

use std::sync::{Arc, Weak};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use lockstep_proto::quantity::{PageIndex, PageNumber};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{DirtyWatch, GuestRam};

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;
/// One page's content.
pub type Page = [u8; PAGE_SIZE];

/// Where the hole for devices begins; memory beyond it goes on at 4 GiB.
const HOLE_START: u64 = 0xc000_0000;
const HOLE_END: u64 = 0x1_0000_0000;
/// Least and most memory of a guest, in bytes.
const MIN_MEMORY: u64 = 1 << 20;
/// Most memory of a guest: the 256 GiB that one dirty log collection still handles in a millisecond or so.
pub const MAX_MEMORY: u64 = 256 << 30;

/// What can go wrong with guest memory.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The size is out of range.
    #[error("guest memory of {0} bytes is not possible: give a multiple of 4096 between 1 MiB and 256 GiB")]
    Size(u64),
    /// The host refused the mapping.
    #[error("cannot map {bytes} bytes of guest memory: {cause}; give the guest less memory or free some")]
    Map {
        /// What was asked for.
        bytes: u64,
        /// The host's answer.
        cause: String,
    },
    /// KVM refused.
    #[error("KVM: {what} failed: {cause}")]
    Kvm {
        /// The call.
        what: &'static str,
        /// Its error.
        cause: std::io::Error,
    },
    /// A page from outside does not lie in guest memory.
    #[error("page {:#x} is outside guest memory", .frame.get())]
    Frame {
        /// Its number.
        frame: PageNumber,
    },
}

/// Guest memory with its slots.
pub struct Memory {
    ram: GuestRam,
    /// First frame and number of pages of each region, ascending.
    regions: Vec<(PageNumber, u64)>,
    bytes: u64,
    /// Told of every page that a collection finds, for as long as somebody holds them.
    watches: Vec<Weak<DirtyWatch>>,
}

impl Memory {
    /// Maps `bytes` of zeroed memory.
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        if !(MIN_MEMORY..=MAX_MEMORY).contains(&bytes) || !bytes.is_multiple_of(PAGE_SIZE as u64) {
            return Err(MemoryError::Size(bytes));
        }
        Self::map(bytes)
    }

    /// The same for any number of pages: a scripted machine has few.
    pub(crate) fn map(bytes: u64) -> Result<Self, MemoryError> {
        let low = bytes.min(HOLE_START);
        let mut ranges = vec![(GuestAddress(0), low as usize)];
        if bytes > low {
            ranges.push((GuestAddress(HOLE_END), (bytes - low) as usize));
        }
        let ram = GuestRam::from_ranges(&ranges).map_err(|cause| MemoryError::Map {
            bytes,
            cause: cause.to_string(),
        })?;
        let regions = ranges
            .iter()
            .map(|&(start, len)| (PageNumber::of(start.0), len as u64 / PAGE_SIZE as u64))
            .collect();
        Ok(Self {
            ram,
            regions,
            bytes,
            watches: Vec::new(),
        })
    }

    /// The memory as devices and the loader see it.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The same memory, for another thread to read while the guest runs.
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            ram: self.ram.clone(),
            regions: self.regions.clone(),
            bytes: self.bytes,
            watches: Vec::new(),
        }
    }

    /// From now on, collections tell the returned watch what they find, until it is dropped.
    pub fn start_watch(&mut self) -> Arc<DirtyWatch> {
        self.watches.retain(|watch| watch.strong_count() > 0);
        let watch = Arc::new(DirtyWatch::new(self.page_count()));
        self.watches.push(Arc::downgrade(&watch));
        watch
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of pages.
    pub fn page_count(&self) -> u64 {
        self.bytes / PAGE_SIZE as u64
    }

    /// Its pages, ascending.
    pub fn indices(&self) -> impl Iterator<Item = PageIndex> + use<> {
        (0..self.page_count()).map(PageIndex::new)
    }

    /// The number after its last page's: all that lies in memory is below.
    pub fn end(&self) -> PageNumber {
        let last = self.regions.last();
        last.map_or(PageNumber::FIRST, |(first, count)| first.plus(*count))
    }

    /// Number of the page with this index.
    pub fn frame(&self, index: PageIndex) -> PageNumber {
        let mut rest = index.get();
        for &(first, count) in &self.regions {
            if rest < count {
                return first.plus(rest);
            }
            rest -= count;
        }
        PageNumber::new(u64::MAX)
    }

    /// Index of the page with this number.
    pub fn index(&self, frame: PageNumber) -> Option<PageIndex> {
        let mut before = PageIndex::new(0);
        for &(first, count) in &self.regions {
            if frame >= first && frame.since(first) < count {
                return Some(before.plus(frame.since(first)));
            }
            before = before.plus(count);
        }
        None
    }

    /// Reads a page. A frame outside memory reads as zeroes; callers take frames from [`Memory::frame`] or the dirty log.
    pub fn read_page(&self, frame: PageNumber, page: &mut Page) {
        if self.ram.read_slice(page, GuestAddress(frame.address())).is_err() {
            page.fill(0);
        }
    }

    /// Writes a page that came from outside.
    pub fn write_page(&self, frame: PageNumber, page: &[u8]) -> Result<(), MemoryError> {
        if self.index(frame).is_none() || page.len() != PAGE_SIZE {
            return Err(MemoryError::Frame { frame });
        }
        self.ram
            .write_slice(page, GuestAddress(frame.address()))
            .map_err(|_| MemoryError::Frame { frame })
    }

    fn slots(&self) -> impl Iterator<Item = kvm_userspace_memory_region> + '_ {
        self.ram
            .iter()
            .enumerate()
            .map(|(slot, region)| kvm_userspace_memory_region {
                slot: slot as u32,
                flags: KVM_MEM_LOG_DIRTY_PAGES,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            })
    }

    /// Gives the memory to a VM.
    pub fn attach(&self, vm: &VmFd) -> Result<(), MemoryError> {
        crate::sys::slots::set(vm, self.slots()).map_err(|cause| MemoryError::Kvm {
            what: "KVM_SET_USER_MEMORY_REGION",
            cause,
        })
    }

    /// Deletes and re-creates the slots, so that a KVM with shadow page tables notices what userspace wrote into the
    /// guest's page tables. Empties KVM's dirty log: collect before.
    pub fn reset_slots(&self, vm: &VmFd) -> Result<(), MemoryError> {
        let gone = self.slots().map(|slot| kvm_userspace_memory_region {
            memory_size: 0,
            flags: 0,
            ..slot
        });
        crate::sys::slots::set(vm, gone).map_err(|cause| MemoryError::Kvm {
            what: "KVM_SET_USER_MEMORY_REGION (delete)",
            cause,
        })?;
        self.attach(vm)
    }

    /// The frames written since the last collection, by the guest or by us, ascending; empties both logs.
    pub fn collect_dirty(&self, vm: &VmFd) -> Result<Vec<PageNumber>, MemoryError> {
        self.collect(|slot, bytes| {
            vm.get_dirty_log(slot, bytes).map_err(|cause| MemoryError::Kvm {
                what: "KVM_GET_DIRTY_LOG",
                cause: cause.into(),
            })
        })
    }

    /// The same where no KVM runs the guest, and all writes are ours.
    pub(crate) fn collect_own(&self) -> Vec<PageNumber> {
        self.collect(|_, _| Ok::<_, std::convert::Infallible>(Vec::new()))
            .unwrap_or_else(|never| match never {})
    }

    /// `kvm`: the dirty log of a slot with so many bytes, a bit for each page.
    fn collect<E>(&self, kvm: impl Fn(u32, usize) -> Result<Vec<u64>, E>) -> Result<Vec<PageNumber>, E> {
        let mut frames = Vec::new();
        for (slot, region) in self.ram.iter().enumerate() {
            let first = PageNumber::of(region.start_addr().0);
            let kvm = kvm(slot as u32, region.len() as usize)?;
            let own = region.get_mmap().bitmap().get_and_reset();
            for word in 0..kvm.len().max(own.len()) {
                let bits = |log: &[u64]| log.get(word).copied().unwrap_or(0);
                let mut bits = bits(&kvm) | bits(&own);
                while bits != 0 {
                    frames.push(first.plus(word as u64 * 64 + u64::from(bits.trailing_zeros())));
                    bits &= bits - 1;
                }
            }
        }
        for watch in self.watches.iter().filter_map(Weak::upgrade) {
            for index in frames.iter().filter_map(|frame| self.index(*frame)) {
                watch.mark(index);
            }
        }
        Ok(frames)
    }
}
