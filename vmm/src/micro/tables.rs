//! What the CPU reads of itself in memory: segment descriptors, gates, the TSS, page tables.
//!
//! Layouts: Intel SDM volume 3A, 3.4.5 (segments), 4.5 (4-level paging), 6.14.1 (gates), 7.7 (TSS).

use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::{GuestError, INTERRUPT_STACK, MEMORY_BYTES};
use crate::memory::{GuestRam, PAGE_SIZE};

pub(super) const KERNEL_CS: u16 = 0x10;
pub(super) const KERNEL_DS: u16 = 0x18;
/// Data segment of ring 3. The order is Linux's, so that STAR's two bases fit SYSCALL and SYSRET.
pub const USER_DS: u16 = 0x2b;
/// Code segment of ring 3.
pub const USER_CS: u16 = 0x33;
pub(super) const TSS_SELECTOR: u16 = 0x40;

pub(super) const GDT: u64 = 0x1000;
pub(super) const GDT_LIMIT: u16 = 10 * 8 - 1;
pub(super) const IDT: u64 = 0x2000;
pub(super) const IDT_LIMIT: u16 = 256 * 16 - 1;
pub(super) const TSS: u64 = 0x3000;
pub(super) const TSS_LIMIT: u32 = 0x67;

pub(super) const PML4: u64 = 0x8000;
const PDPT: u64 = 0x9000;
const PAGE_DIRECTORY: u64 = 0xa000;
const PAGE_TABLE: u64 = 0xb000;

/// Present, writable, user.
const OPEN: u64 = 0x07;
/// Accessed, dirty.
const TOUCHED: u64 = 0x60;

/// A page table entry that maps `physical`, open to all rings, accessed and dirty.
pub fn page_entry(physical: u64) -> u64 {
    physical | OPEN | TOUCHED
}

/// Where the page table entry for the virtual address `page` (below [`MEMORY_BYTES`]) stands.
pub fn page_entry_address(page: u64) -> u64 {
    PAGE_TABLE + page / PAGE_SIZE as u64 % 512 * 8
}

/// Writes GDT and TSS.
pub(super) fn write_segments(ram: &GuestRam) -> Result<(), GuestError> {
    ram.write_slice(gdt().as_bytes(), GuestAddress(GDT))?;
    ram.write_slice(&tss(), GuestAddress(TSS))?;
    Ok(())
}

/// Writes page tables for virtual = physical but for `mappings` (virtual page, physical page).
pub(super) fn write_pages(ram: &GuestRam, mappings: &[(u64, u64)], touched: bool) -> Result<(), GuestError> {
    let put = |at: u64, physical: u64| {
        let entry = if touched { page_entry(physical) } else { physical | OPEN };
        ram.write_obj(entry, GuestAddress(at))
    };
    put(PML4, PDPT)?;
    put(PDPT, PAGE_DIRECTORY)?;
    put(PAGE_DIRECTORY, PAGE_TABLE)?;
    for page in (0..MEMORY_BYTES).step_by(PAGE_SIZE) {
        put(page_entry_address(page), page)?;
    }
    for &(page, physical) in mappings {
        put(page_entry_address(page), physical)?;
    }
    Ok(())
}

/// Present, type, privilege and granularity in place.
fn gdt() -> [u64; 10] {
    let tss = u64::from(TSS_LIMIT) | TSS << 16 | 0x8b << 40;
    [
        0,
        0,
        0x00af_9b00_0000_ffff, // 0x10: ring 0, 64-bit code
        0x00cf_9300_0000_ffff, // 0x18: ring 0, data
        0x00cf_fb00_0000_ffff, // 0x20: ring 3, 32-bit code
        0x00cf_f300_0000_ffff, // 0x28: ring 3, data
        0x00af_fb00_0000_ffff, // 0x30: ring 3, 64-bit code
        0,
        tss, // 0x40, two entries; busy, as TR has it
        0,
    ]
}

/// A 64-bit interrupt gate to `target` that ring 3 may name.
pub(super) fn gate(target: u64) -> [u64; 2] {
    let low = target & 0xffff | u64::from(KERNEL_CS) << 16 | 0xee << 40 | (target >> 16 & 0xffff) << 48;
    [low, target >> 32]
}

/// RSP0, and an I/O map base beyond the limit (there is none).
fn tss() -> [u8; TSS_LIMIT as usize + 1] {
    let mut bytes = [0; TSS_LIMIT as usize + 1];
    bytes[4..12].copy_from_slice(&INTERRUPT_STACK.to_le_bytes());
    bytes[0x66..].copy_from_slice(&(TSS_LIMIT as u16 + 1).to_le_bytes());
    bytes
}
