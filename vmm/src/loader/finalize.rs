//! The place in a guest kernel where it finishes a module, and the trap there.
//!
//! `module_finalize(hdr, sechdrs, me)` of `arch/x86/kernel/module.c` is called once for each module, when its sections are where they
//! stay and relocated, and before any of its code runs or is patched. It begins, as every function with enough variables
//! does, by pushing registers; the PUSH of one of R12 to R15 has two bytes (`41 54` to `41 57`), as many as the trap:
//!
//! | instruction | bytes | port access |
//! | --- | --- | --- |
//! | `push` of register n, 12 to 15 | `E7 A0+n` | `out 0xA0+n, eax` |
//!
//! Unlike the traps of [`super::trap`] it is one at its own address alone, which is part of the machine's
//! configuration: everywhere else such an access is an ordinary one. The machine does the PUSH's work.

use std::ops::RangeInclusive;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use super::elf::{ElfError, Vmlinux};
use super::kallsyms::Kallsyms;
use super::trap::OUT_IMM8_EAX;
use crate::memory::GuestRam;

/// The function.
const FUNCTION: &str = "module_finalize";
/// How much of its beginning is looked at.
const BEGINNING: u64 = 64;
/// The port that register 0 would have.
const PORT: u8 = 0xa0;
/// The registers whose PUSH has two bytes.
const REGISTERS: RangeInclusive<u8> = 12..=15;

/// Where the trap stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its virtual address.
    pub vaddr: u64,
    /// Where that is in guest memory.
    pub paddr: u64,
    /// The register that is pushed there.
    pub reg: u8,
}

/// Why there is no place.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NoPlace {
    /// The kernel has symbols, and no such function: it takes no modules.
    #[error("the kernel takes no modules")]
    NoModules,
    /// Nothing says where the function is.
    #[error("the kernel has neither symbols nor a table of them (CONFIG_KALLSYMS) that is known here")]
    NoSymbols,
    /// The function begins in another way.
    #[error("`module_finalize` at {0:#x} does not begin with a PUSH of R12 to R15")]
    Beginning(u64),
    /// A part of the file lies elsewhere than it says.
    #[error(transparent)]
    Elf(#[from] ElfError),
}

/// The place in a `vmlinux`.
pub fn find_in(vmlinux: &[u8]) -> Result<Place, NoPlace> {
    find(&Vmlinux::parse(vmlinux)?)
}

/// The place in a kernel.
pub fn find(kernel: &Vmlinux<'_>) -> Result<Place, NoPlace> {
    let function = function(kernel)?;
    let refused = || NoPlace::Beginning(function);
    let inside = |code: &&super::elf::Code| function.checked_sub(code.vaddr).is_some_and(|d| d < code.size);
    let code = kernel.code.iter().find(inside).ok_or_else(refused)?;
    let from = (function - code.vaddr) as usize;
    let to = (code.size.min(from as u64 + BEGINNING)) as usize;
    let beginning = kernel.code_bytes(code)?.get(from..to).ok_or_else(refused)?;
    let (offset, reg) = push(beginning, function).ok_or_else(refused)?;
    Ok(Place {
        vaddr: function + offset as u64,
        paddr: code.paddr + (from + offset) as u64,
        reg,
    })
}

/// The function's address, by the ELF file's symbols (of which some may be gone) or the kernel's own table.
fn function(kernel: &Vmlinux<'_>) -> Result<u64, NoPlace> {
    if let Some(function) = kernel.function(FUNCTION) {
        return Ok(function);
    }
    let is_kernel = |address: u64| {
        let segments = kernel.segments.iter();
        // Data of each CPU is linked at 0.
        let mut segments = segments.filter(|segment| segment.vaddr > 0);
        segments.any(|segment| address.checked_sub(segment.vaddr).is_some_and(|d| d < segment.memsz))
    };
    for segment in &kernel.segments {
        if let Some(table) = Kallsyms::find(kernel.segment_bytes(segment)?, is_kernel) {
            return table.function(FUNCTION).ok_or(NoPlace::NoModules);
        }
    }
    Err(if kernel.has_symbols {
        NoPlace::NoModules
    } else {
        NoPlace::NoSymbols
    })
}

/// Where the first PUSH of two bytes is, if everything before it leaves the arguments where they are.
fn push(code: &[u8], vaddr: u64) -> Option<(usize, u8)> {
    let mut decoder = Decoder::with_ip(64, code, vaddr, DecoderOptions::NONE);
    let mut begun = false;
    while decoder.can_decode() {
        let at = decoder.position();
        let instruction = decoder.decode();
        if let (Mnemonic::Push, [0x41, second, ..]) = (instruction.mnemonic(), &code[at..])
            && instruction.len() == 2
            && let Some(reg) = second.checked_sub(0x50 - 8).filter(|reg| REGISTERS.contains(reg))
        {
            return Some((at, reg));
        }
        if !keeps_arguments(&instruction, begun) {
            return None;
        }
        begun |= !matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Endbr64);
    }
    None
}

/// Whether an instruction of a function's beginning changes neither RDI nor RSI nor the way that is gone.
fn keeps_arguments(instruction: &Instruction, begun: bool) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Nop | Mnemonic::Endbr64 => true,
        // `__fentry__`, which the kernel makes a NOP of. It keeps all registers.
        Mnemonic::Call => !begun && instruction.op0_kind() == OpKind::NearBranch64,
        Mnemonic::Push => instruction.op0_kind() == OpKind::Register,
        Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsxd | Mnemonic::Lea | Mnemonic::Xor => {
            let target = instruction.op0_register().full_register();
            let kept = [Register::RDI, Register::RSI, Register::RSP];
            instruction.op0_kind() == OpKind::Register && target.is_gpr64() && !kept.contains(&target)
        }
        _ => false,
    }
}

/// The trap of a PUSH of this register.
pub fn trap(reg: u8) -> [u8; 2] {
    [OUT_IMM8_EAX, PORT + reg]
}

/// The register whose PUSH an access to this port may stand for.
pub fn register_of(port: u16) -> Option<u8> {
    let reg = u8::try_from(port).ok()?.checked_sub(PORT)?;
    REGISTERS.contains(&reg).then_some(reg)
}

/// Puts the trap into a kernel that has been loaded.
pub fn plant(ram: &GuestRam, place: &Place) -> Result<(), super::LoadError> {
    ram.write_slice(&trap(place.reg), GuestAddress(place.paddr))
        .map_err(|source| super::LoadError::Memory {
            address: place.paddr,
            source,
        })
}

#[cfg(test)]
mod tests;
