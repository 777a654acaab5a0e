//! The guest's page tables, walked by us: for instructions that we execute and for debuggers. Reads only, sets no
//! accessed or dirty bits. Intel SDM volume 3, chapter 4: 4-level paging; the modes that a 64-bit kernel is in.

use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestRam;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const CR0_PAGING: u64 = 1 << 31;
const CR0_WRITE_PROTECT: u64 = 1 << 16;
const CR4_LA57: u64 = 1 << 12;

/// Who accesses, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// A store.
    pub write: bool,
    /// From ring 3.
    pub user: bool,
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTranslation {
    /// The guest's tables do not allow it: #PF with this error code.
    Fault(u32),
    /// The tables lie outside memory, or the paging mode is not walked here.
    Unsupported,
}

/// The guest physical address of a linear one.
pub fn translate(ram: &GuestRam, sregs: &kvm_sregs, address: u64, wanted: Wanted) -> Result<u64, NoTranslation> {
    if sregs.cr0 & CR0_PAGING == 0 {
        return Ok(address);
    }
    if sregs.efer & 0x400 == 0 || sregs.cr4 & CR4_LA57 != 0 {
        return Err(NoTranslation::Unsupported);
    }
    let code = |present: bool| u32::from(present) | u32::from(wanted.write) << 1 | u32::from(wanted.user) << 2;
    let mut table = sregs.cr3 & ADDRESS;
    let (mut writable, mut user) = (true, true);
    for level in (0..4).rev() {
        let shift = 12 + 9 * level;
        let at = table + (address >> shift & 0x1ff) * 8;
        let entry: u64 = ram.read_obj(GuestAddress(at)).map_err(|_| NoTranslation::Unsupported)?;
        if entry & PRESENT == 0 {
            return Err(NoTranslation::Fault(code(false)));
        }
        writable &= entry & WRITABLE != 0;
        user &= entry & USER != 0;
        if level == 0 || (entry & LARGE != 0 && level < 3) {
            let allowed = (user || !wanted.user)
                && (writable || !wanted.write || (!wanted.user && sregs.cr0 & CR0_WRITE_PROTECT == 0));
            if !allowed {
                return Err(NoTranslation::Fault(code(true)));
            }
            let offset = (1u64 << shift) - 1;
            return Ok(entry & ADDRESS & !offset | address & offset);
        }
        table = entry & ADDRESS;
    }
    Err(NoTranslation::Unsupported)
}
