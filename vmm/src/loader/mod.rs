//! Loading a Linux kernel into guest memory, by the 64-bit boot protocol, with its clock and random-number reads
//! replaced by traps.
//!
//! Takes a `vmlinux` or a bzImage (which is unpacked here, not in the guest). What the loader writes is a function of
//! its arguments alone, so that every replica begins with the same memory.

pub mod boot_params;
pub mod bzimage;
pub mod cmdline;
pub mod elf;
pub mod features;
pub mod finalize;
pub mod kallsyms;
pub mod layout;
pub mod module;
pub mod rewrite;
pub mod sweep;
pub mod trap;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Range;

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::acpi::{self, Tables};
use crate::memory::GuestRam;
use boot_params::Kind;
use bzimage::BzImageError;
use elf::{ElfError, Vmlinux};
use rewrite::{Finding, RewriteReport};

/// What the vCPU's set-up needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// RIP at the start: the kernel's 64-bit entry point, a physical address.
    pub entry: u64,
    /// RSI at the start.
    pub boot_params: u64,
    /// RSP at the start.
    pub rsp: u64,
    /// CR3 at the start: 4 GiB mapped one to one.
    pub page_table: u64,
    /// The GDT's base.
    pub gdt_base: u64,
    /// The GDT's limit.
    pub gdt_limit: u16,
    /// CS at the start: 64-bit, base 0.
    pub code_selector: u16,
    /// DS, ES, FS, GS and SS at the start: base 0.
    pub data_selector: u16,
    /// Where the command line stands, its terminating zero not included.
    pub command_line: Range<u64>,
    /// Where the initrd stands.
    pub initrd: Option<Range<u64>>,
    /// What was replaced in the kernel, and what is worth a warning.
    pub rewrites: RewriteReport,
    /// Where the lowest segment of the kernel begins.
    pub kernel_start: u64,
    /// Where the kernel, its zeroed data included, ends.
    pub kernel_end: u64,
}

/// Why a kernel was not loaded. Guest memory may have been written to.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernel is of no known kind.
    #[error(
        "the kernel is neither an ELF vmlinux nor a bzImage (it begins with {0:02x?}): give a vmlinux, or a bzImage for x86-64"
    )]
    Format(Vec<u8>),
    /// The bzImage does not unpack.
    #[error("the kernel is a bzImage, but {0}")]
    BzImage(#[from] BzImageError),
    /// The vmlinux is not one.
    #[error("the kernel's vmlinux cannot be used: {0}")]
    Elf(#[from] ElfError),
    /// Guest memory is laid out as no machine has it.
    #[error(
        "guest memory cannot be used: {what} ({start:#x}-{end:#x}); it must begin at 0 with at least 2 MiB and leave out c0000000-100000000"
    )]
    Ram {
        /// What is wrong.
        what: &'static str,
        /// Start of the region that it is about.
        start: u64,
        /// Its end.
        end: u64,
    },
    /// A kernel's segment has no memory under it.
    #[error(
        "the kernel's segment at {start:#x}-{end:#x} does not lie in guest memory at or above 1 MiB: give the guest more memory, or link the kernel for another address"
    )]
    KernelOutside {
        /// Where it begins.
        start: u64,
        /// Where it ends.
        end: u64,
    },
    /// The initrd does not fit.
    #[error(
        "the initrd of {size} bytes does not fit between the kernel's end at {kernel_end:#x} and {limit:#x}: give the guest more memory or make the initrd smaller"
    )]
    InitrdTooLarge {
        /// Its size.
        size: u64,
        /// Where the kernel ends.
        kernel_end: u64,
        /// Where it must end.
        limit: u64,
    },
    /// The command line does not fit.
    #[error(
        "the kernel command line has {length} bytes; the kernel takes {}",
        cmdline::MAX_LENGTH
    )]
    CommandLineTooLong {
        /// Its length.
        length: usize,
    },
    /// The command line has a zero in it.
    #[error("the kernel command line has a zero byte at offset {0}: remove it")]
    CommandLineZero(usize),
    /// The kernel has instructions that would make it nondeterministic and that have no trap.
    #[error("the kernel has {} instruction(s) that read the clock or random numbers in a form that cannot be trapped, the first at {first}: build it without them", .all.len())]
    Unrewritable {
        /// The first.
        first: Finding,
        /// All of them.
        all: Vec<Finding>,
    },
    /// Guest memory could not be written.
    #[error("guest memory could not be written at {address:#x}: {source}")]
    Memory {
        /// Where.
        address: u64,
        /// What vm-memory says.
        source: vm_memory::GuestMemoryError,
    },
}

/// The `vmlinux` in a kernel's file: the file itself, or what a bzImage has packed.
pub fn vmlinux(kernel: &[u8]) -> Result<Cow<'_, [u8]>, LoadError> {
    if elf::is_elf(kernel) {
        Ok(Cow::Borrowed(kernel))
    } else if bzimage::is_bzimage(kernel) {
        Ok(Cow::Owned(bzimage::unpack(kernel)?))
    } else {
        Err(LoadError::Format(kernel.iter().take(8).copied().collect()))
    }
}

/// Loads `kernel`, `initrd` and everything that the kernel is handed into `ram`, which the kernel then owns.
///
/// `cmdline` is used as it is ([`cmdline::compose`] makes it); `boot_seed` seeds the kernel's random numbers and must
/// come from the log. `guarded`: accesses to CR4 are trapped too ([`crate::machine::Machine::guard_programs`]).
/// `acpi`: the tables that the kernel finds.
pub fn load(
    ram: &GuestRam,
    kernel: &[u8],
    initrd: Option<&[u8]>,
    cmdline: &str,
    boot_seed: &[u8; 32],
    guarded: bool,
    acpi: Option<&Tables>,
) -> Result<Loaded, LoadError> {
    let vmlinux = vmlinux(kernel)?;
    let kernel = Vmlinux::parse(&vmlinux)?;
    let usable = usable_ram(ram)?;
    check_command_line(cmdline)?;

    let kernel_start = kernel.segments.iter().map(|s| s.paddr).min().unwrap_or(0);
    let kernel_end = kernel.segments.iter().map(|s| s.paddr + s.memsz).max().unwrap_or(0);
    for s in &kernel.segments {
        let (start, end) = (s.paddr, s.paddr + s.memsz);
        let fits = usable.iter().any(|(from, len)| start >= *from && end <= from + len);
        if start < layout::HIGH_MEMORY || end > layout::HOLE_START || !fits {
            return Err(LoadError::KernelOutside { start, end });
        }
    }
    let initrd = match initrd {
        Some(bytes) if !bytes.is_empty() => Some((place_initrd(bytes.len() as u64, &usable, kernel_end)?, bytes)),
        _ => None,
    };
    let (sites, rewrites) = rewrite::scan(&kernel, guarded)?;
    if let Some(first) = rewrites.unsupported.first() {
        return Err(LoadError::Unrewritable {
            first: first.clone(),
            all: rewrites.unsupported.clone(),
        });
    }

    for s in &kernel.segments {
        write(ram, s.paddr, kernel.segment_bytes(s)?)?;
        zero(ram, s.paddr + s.filesz, s.memsz - s.filesz)?;
    }
    for site in &sites {
        write(ram, site.paddr, &site.replacement)?;
    }
    if let Some((range, bytes)) = &initrd {
        write(ram, range.start, bytes)?;
    }
    let initrd = initrd.map(|(range, _)| range);
    for (index, entry) in layout::GDT_ENTRIES.iter().enumerate() {
        write(ram, layout::GDT + index as u64 * 8, &entry.to_le_bytes())?;
    }
    write(ram, layout::PML4, &boot_params::page_tables())?;
    write(ram, layout::SETUP_DATA, &boot_params::setup_data(boot_seed))?;
    write(ram, layout::COMMAND_LINE, cmdline.as_bytes())?;
    let command_line = layout::COMMAND_LINE..layout::COMMAND_LINE + cmdline.len() as u64;
    write(ram, command_line.end, &[0])?;
    let mut map: Vec<_> = usable.iter().map(|(start, len)| (*start, *len, Kind::Ram)).collect();
    if let Some(acpi) = acpi {
        map.splice(1..1, place_acpi(ram, acpi)?);
    }
    let params = boot_params::BootParams {
        map: &map,
        rsdp: acpi.map(|_| acpi::TABLES),
        command_line: cmdline.len() as u32,
        initrd: initrd.as_ref().map(|r| (r.start as u32, (r.end - r.start) as u32)),
    };
    write(ram, layout::BOOT_PARAMS, &params.to_bytes())?;

    Ok(Loaded {
        entry: kernel.entry,
        boot_params: layout::BOOT_PARAMS,
        rsp: layout::STACK_TOP,
        page_table: layout::PML4,
        gdt_base: layout::GDT,
        gdt_limit: layout::GDT_LIMIT,
        code_selector: layout::CODE_SELECTOR,
        data_selector: layout::DATA_SELECTOR,
        command_line,
        initrd,
        rewrites,
        kernel_start,
        kernel_end,
    })
}

/// The memory map that the kernel is given, as (start, length): guest memory without the legacy hole below 1 MiB.
fn usable_ram(ram: &GuestRam) -> Result<Vec<(u64, u64)>, LoadError> {
    let mut regions: Vec<(u64, u64)> = Vec::new();
    for region in ram.iter() {
        let (start, len) = (region.start_addr().0, region.len());
        let end = start.saturating_add(len);
        if start < layout::HOLE_END && end > layout::HOLE_START {
            return Err(LoadError::Ram {
                what: "a region reaches into the hole for devices",
                start,
                end,
            });
        }
        match regions.last_mut() {
            Some(last) if last.0 + last.1 == start => last.1 += len,
            _ => regions.push((start, len)),
        }
    }
    let (start, len) = regions.first().copied().unwrap_or((0, 0));
    if start != 0 || len < 2 * layout::HIGH_MEMORY {
        return Err(LoadError::Ram {
            what: "its first region is not at 0, or too small",
            start,
            end: start + len,
        });
    }
    let mut usable = vec![
        (0, layout::LOW_MEMORY_END),
        (layout::HIGH_MEMORY, len - layout::HIGH_MEMORY),
    ];
    usable.extend_from_slice(&regions[1..]);
    // Two are the ACPI tables'.
    if let Some((start, len)) = usable.get(boot_params::MAX_E820 - 2) {
        return Err(LoadError::Ram {
            what: "it has too many regions",
            start: *start,
            end: start + len,
        });
    }
    Ok(usable)
}

fn check_command_line(line: &str) -> Result<(), LoadError> {
    if line.len() > cmdline::MAX_LENGTH {
        return Err(LoadError::CommandLineTooLong { length: line.len() });
    }
    match line.bytes().position(|b| b == 0) {
        Some(at) => Err(LoadError::CommandLineZero(at)),
        None => Ok(()),
    }
}

/// Writes the tables into the legacy hole, where the kernel has no memory; their place in its memory map.
fn place_acpi(ram: &GuestRam, acpi: &Tables) -> Result<[(u64, u64, Kind); 2], LoadError> {
    write(ram, acpi::STATE, &acpi.state)?;
    write(ram, acpi::TABLES, &acpi.tables)?;
    let pages = |bytes: &[u8]| (bytes.len() as u64).next_multiple_of(layout::PAGE);
    Ok([
        (acpi::STATE, pages(&acpi.state), Kind::Nvs),
        (acpi::TABLES, pages(&acpi.tables), Kind::Acpi),
    ])
}

/// As high as there is memory below the limit, above the kernel.
fn place_initrd(size: u64, usable: &[(u64, u64)], kernel_end: u64) -> Result<Range<u64>, LoadError> {
    let mut limit = 0;
    for (start, len) in usable.iter().rev() {
        let end = (start + len).min(layout::INITRD_LIMIT);
        if *start >= end {
            continue;
        }
        limit = limit.max(end);
        let floor = (*start).max(kernel_end).max(layout::HIGH_MEMORY);
        let at = end.checked_sub(size).map(|at| at & !(layout::PAGE - 1));
        if let Some(at) = at.filter(|at| *at >= floor) {
            return Ok(at..at + size);
        }
    }
    Err(LoadError::InitrdTooLarge {
        size,
        kernel_end,
        limit,
    })
}

fn write(ram: &GuestRam, address: u64, bytes: &[u8]) -> Result<(), LoadError> {
    ram.write_slice(bytes, GuestAddress(address))
        .map_err(|source| LoadError::Memory { address, source })
}

fn zero(ram: &GuestRam, address: u64, len: u64) -> Result<(), LoadError> {
    static ZEROES: [u8; 65536] = [0; 65536];
    let mut done = 0;
    while done < len {
        let now = (len - done).min(ZEROES.len() as u64);
        write(ram, address + done, &ZEROES[..now as usize])?;
        done += now;
    }
    Ok(())
}
