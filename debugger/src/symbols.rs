//! Symbols of a guest kernel, for addresses in reports.

use std::path::Path;

use anyhow::{Context, Result};
use lockstep_proto::Identity;
use object::elf::PT_LOAD;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSymbol, SymbolKind};

use crate::vmlinux::{Vmlinux, contents};

/// Symbols of a vmlinux, by address.
pub struct Symbols {
    /// Functions.
    sorted: Vec<(u64, String)>,
    /// Functions and data.
    all: Vec<(u64, String)>,
    /// Its segments: physical and virtual address, and length.
    segments: Vec<(u64, u64, u64)>,
}

impl Symbols {
    /// Of the recorded kernel: its vmlinux was given, which must be it, or else is looked for.
    pub fn load(given: Option<&Path>, identity: &Identity) -> Result<Option<Self>> {
        let found = Vmlinux::find(given, identity)?;
        found.map(|file| Self::parse(&file.path, &file.bytes)).transpose()
    }

    /// Of a vmlinux of which nothing says whether it is the right one.
    pub fn of(path: &Path) -> Result<Self> {
        Self::parse(path, &contents(path)?)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let no_elf = || format!("{} is no ELF file", path.display());
        let file = object::File::parse(bytes).with_context(no_elf)?;
        let of = |kinds: &[SymbolKind]| {
            let mut sorted: Vec<_> = file
                .symbols()
                .filter(|symbol| kinds.contains(&symbol.kind()))
                .filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?.to_owned())))
                .collect();
            sorted.sort();
            sorted
        };
        let elf = ElfFile64::<Endianness>::parse(bytes).with_context(no_elf)?;
        let endian = elf.endian();
        let loaded = elf.elf_program_headers().iter();
        let segments = loaded
            .filter(|segment| segment.p_type(endian) == PT_LOAD)
            .map(|segment| {
                (
                    segment.p_paddr(endian),
                    segment.p_vaddr(endian),
                    segment.p_memsz(endian),
                )
            });
        Ok(Self {
            sorted: of(&[SymbolKind::Text]),
            all: of(&[SymbolKind::Text, SymbolKind::Data]),
            segments: segments.collect(),
        })
    }

    /// `name+0x12` of what the kernel has at a physical address, if it runs where it was linked and the address lies in it.
    pub fn physical(&self, address: u64) -> Option<String> {
        let mut segments = self.segments.iter();
        let &(physical, linked, _) =
            segments.find(|(physical, _, length)| address.checked_sub(*physical).is_some_and(|at| at < *length))?;
        nearest(&self.all, linked.checked_add(address - physical)?)
    }

    /// `name+0x12`, if the address lies in the kernel's code.
    pub fn name(&self, address: u64) -> Option<String> {
        nearest(&self.sorted, address)
    }
}

fn nearest(sorted: &[(u64, String)], address: u64) -> Option<String> {
    let after = sorted.partition_point(|entry| entry.0 <= address);
    let (start, name) = sorted.get(after.checked_sub(1)?)?;
    // Beyond the largest function there is no code of this name any more.
    (address - start < 1 << 16).then(|| format!("{name}+{:#x}", address - start))
}
