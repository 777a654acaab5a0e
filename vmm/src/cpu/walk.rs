//! The guest's page tables, walked by us: for instructions that we execute and for debuggers. Reads only, sets no
//! accessed or dirty bits. Intel SDM volume 3, chapter 4: 4-level paging; the modes that a 64-bit kernel is in.

use kvm_bindings::kvm_sregs;
use lockstep_proto::quantity::PageNumber;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::{GuestRam, Memory};

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

/// Whether 4-level paging has so many bytes at an address: the upper bits repeat bit 47 (Intel SDM volume 1, 3.3.7.1).
pub fn is_canonical(address: u64, bytes: usize) -> bool {
    let is = |address: u64| (address << 16).cast_signed() >> 16 == address.cast_signed();
    let last = address.checked_add((bytes as u64).saturating_sub(1));
    last.is_some_and(|last| is(address) && is(last))
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

/// A stretch of virtual memory that lies in one piece of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where it begins, canonical.
    pub address: u64,
    /// Where that is.
    pub physical: u64,
    /// Bytes.
    pub length: u64,
}

/// Everything in RAM that the tables map, ascending, at most `limit` stretches. Without paging, RAM as it is; of modes that
/// are not walked here, nothing.
pub fn mappings(memory: &Memory, sregs: &kvm_sregs, limit: usize) -> Vec<Mapping> {
    let mut found = Found {
        memory,
        list: Vec::new(),
        limit,
        looks: MAX_LOOKS,
    };
    if sregs.cr0 & CR0_PAGING == 0 {
        for index in memory.indices() {
            let at = memory.frame(index).address();
            found.add(at, at, PAGE);
        }
    } else if sregs.efer & 0x400 != 0 && sregs.cr4 & CR4_LA57 == 0 {
        found.table(sregs.cr3 & ADDRESS, 3, 0);
    }
    found.list
}

const PAGE: u64 = 4096;
/// Tables and pages that are looked at, at most: tables may name each other in circles.
const MAX_LOOKS: u64 = 1 << 26;

struct Found<'a> {
    memory: &'a Memory,
    list: Vec<Mapping>,
    limit: usize,
    looks: u64,
}

impl Found<'_> {
    fn table(&mut self, table: u64, level: u32, base: u64) {
        let shift = 12 + 9 * level;
        for index in 0..512u64 {
            if self.list.len() >= self.limit || self.looks == 0 {
                return;
            }
            self.looks -= 1;
            let Ok(entry) = self.memory.ram().read_obj::<u64>(GuestAddress(table + index * 8)) else {
                return;
            };
            if entry & PRESENT == 0 {
                continue;
            }
            let mut address = base | index << shift;
            if address >> 47 & 1 == 1 {
                address |= !0 << 48;
            }
            if level == 0 || (entry & LARGE != 0 && level < 3) {
                let size = 1u64 << shift;
                self.add(address, entry & ADDRESS & !(size - 1), size);
            } else {
                self.table(entry & ADDRESS, level - 1, address);
            }
        }
    }

    /// Adds what of this stretch is RAM; all in one step where all of it is.
    fn add(&mut self, address: u64, physical: u64, length: u64) {
        let (first, last) = (PageNumber::of(physical), PageNumber::of(physical + length - PAGE));
        let indices = (self.memory.index(first), self.memory.index(last));
        if let (Some(low), Some(high)) = indices
            && high.since(low) == last.since(first)
        {
            self.push(address, physical, length);
            return;
        }
        for page in (first.get()..=last.get()).map(PageNumber::new) {
            if self.looks == 0 {
                return;
            }
            self.looks -= 1;
            if self.memory.index(page).is_some() {
                self.push(address + page.since(first) * PAGE, page.address(), PAGE);
            }
        }
    }

    fn push(&mut self, address: u64, physical: u64, length: u64) {
        if let Some(before) = self.list.last_mut()
            && before.address + before.length == address
            && before.physical + before.length == physical
            && self.memory.index(PageNumber::of(physical))
                == self
                    .memory
                    .index(PageNumber::of(before.physical))
                    .map(|index| index.plus(before.length / PAGE))
        {
            before.length += length;
        } else if self.list.len() < self.limit {
            self.list.push(Mapping {
                address,
                physical,
                length,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = PRESENT | WRITABLE;

    fn paged(cr3: u64) -> kvm_sregs {
        kvm_sregs {
            cr0: CR0_PAGING,
            efer: 0x500,
            cr3,
            ..Default::default()
        }
    }

    #[test]
    fn stretches_are_joined_and_end_with_memory() {
        let memory = Memory::new(4 << 20).unwrap();
        let put = |at: u64, entry: u64| memory.ram().write_obj(entry, GuestAddress(at)).unwrap();
        // The last entry of each table, down to three pages of which two lie side by side; and a page of 2 MiB, after
        // which comes one that is no memory any more.
        put(0x1000 + 511 * 8, 0x2000 | ENTRY);
        put(0x2000 + 511 * 8, 0x3000 | ENTRY);
        put(0x3000, 0x4000 | ENTRY);
        put(0x3008, 0x20_0000 | ENTRY | LARGE);
        put(0x3010, 0x40_0000 | ENTRY | LARGE);
        put(0x4000, 0x8000 | ENTRY);
        put(0x4008, 0x9000 | ENTRY);
        put(0x4018, 0x7000 | ENTRY);
        let base = 0xffff_ffff_c000_0000;
        let found = mappings(&memory, &paged(0x1000), 100);
        let expected = [
            (base, 0x8000, 0x2000),
            (base + 0x3000, 0x7000, 0x1000),
            (base + 0x20_0000, 0x20_0000, 0x20_0000),
        ];
        let tuples: Vec<_> = found.iter().map(|m| (m.address, m.physical, m.length)).collect();
        assert_eq!(tuples, expected);
        for mapping in &found {
            let wanted = Wanted {
                write: false,
                user: false,
            };
            let at = mapping.address + mapping.length - 1;
            let end = mapping.physical + mapping.length - 1;
            assert_eq!(translate(memory.ram(), &paged(0x1000), at, wanted), Ok(end));
        }
        assert_eq!(mappings(&memory, &paged(0x1000), 1).len(), 1);
        let flat = mappings(&memory, &kvm_sregs::default(), 100);
        assert_eq!((flat.len(), flat[0].length), (1, 4 << 20));
    }

    #[test]
    fn canonical_addresses() {
        let last = 0x7fff_ffff_ffff;
        for (address, bytes, is) in [
            (0, 1, true),
            (last, 1, true),
            (last, 2, false),
            (last + 1, 1, false),
            (1 << 63, 1, false),
            (0xffff_7fff_ffff_ffff, 1, false),
            (0xffff_8000_0000_0000, 1 << 40, true),
            (u64::MAX, 1, true),
            (u64::MAX, 2, false),
        ] {
            assert_eq!(is_canonical(address, bytes), is, "{address:#x} {bytes}");
        }
    }

    #[test]
    fn tables_that_name_themselves_come_to_an_end() {
        let memory = Memory::new(1 << 20).unwrap();
        for index in 0..512 {
            // All of them: itself, and beyond memory as a large page.
            let entry = if index % 2 == 0 { 0x1000 } else { 0x4000_0000 | LARGE };
            memory
                .ram()
                .write_obj(entry | ENTRY, GuestAddress(0x1000 + index * 8))
                .unwrap();
        }
        assert!(mappings(&memory, &paged(0x1000), 1000).len() <= 1000);
    }
}
