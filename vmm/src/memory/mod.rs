//! Guest memory: layout, KVM slots, dirty pages, digests.
//!
//! Invariant: every write of ours goes through [`GuestRam`] and so into its bitmap; every write of the guest is in KVM's
//! dirty log. A collection unites both and empties both.

pub mod digest;
mod ram;
mod watch;

pub use digest::{MemoryDigest, page_hash};
pub use ram::{MAX_MEMORY, Memory, MemoryError, PAGE_SIZE, Page};
pub use watch::DirtyWatch;

/// Guest memory with a dirty bitmap of our own writes.
pub type GuestRam = vm_memory::GuestMemoryMmap<vm_memory::bitmap::AtomicBitmap>;
