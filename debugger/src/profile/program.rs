//! A program or library of the guest, as its ELF file tells of it: functions, and how stacks are unwound in it.
//!
//! The file is the guest's, or whoever's. What it says of sizes is looked at by the reader (`object`); how much is kept has bounds.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use object::elf::PT_LOAD;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SymbolKind};

/// Functions that are kept of a file.
const MOST_FUNCTIONS: usize = 2_000_000;
/// Segments of a file.
const MOST_SEGMENTS: usize = 1024;
/// A build id's bytes: 20, as linkers make them, or a few more.
const MOST_ID: usize = 64;
/// A function of which no size is known has so many bytes at most.
const MOST_CODE: u64 = 1 << 16;

/// A section: where it is linked to, and its bytes.
#[derive(Clone, Default)]
pub struct Section {
    /// Addresses.
    pub range: Range<u64>,
    /// What it has.
    pub data: Arc<[u8]>,
}

/// What unwinding needs.
#[derive(Clone, Default)]
pub struct Sections {
    /// `.text`.
    pub text: Option<Section>,
    /// `.eh_frame`.
    pub eh_frame: Option<Section>,
    /// `.eh_frame_hdr`.
    pub eh_frame_hdr: Option<Section>,
    /// Addresses of `.got`.
    pub got: Option<Range<u64>>,
}

struct Function {
    address: u64,
    size: u64,
    name: String,
}

struct Segment {
    offset: u64,
    address: u64,
    bytes: u64,
}

/// See above.
pub struct Program {
    functions: Vec<Function>,
    segments: Vec<Segment>,
    /// Where it is linked to, and its bytes.
    id: Option<(u64, Vec<u8>)>,
    /// See there.
    pub sections: Sections,
}

impl Program {
    /// Reads a file.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let elf = ElfFile64::<Endianness>::parse(bytes).context("it is no ELF file of 64 bits")?;
        let endian = elf.endian();
        let loaded = elf.elf_program_headers().iter();
        let segments: Vec<_> = loaded
            .filter(|header| header.p_type(endian) == PT_LOAD)
            .take(MOST_SEGMENTS)
            .map(|header| Segment {
                offset: header.p_offset(endian),
                address: header.p_vaddr(endian),
                bytes: header.p_filesz(endian),
            })
            .collect();
        ensure!(!segments.is_empty(), "it has nothing that is loaded");
        let section = |name: &str| {
            let found = elf.section_by_name(name)?;
            // What is compressed would be in no memory.
            let data = found.data().ok()?;
            let range = found.address()..found.address().checked_add(data.len() as u64)?;
            (!data.is_empty()).then(|| Section {
                range,
                data: data.into(),
            })
        };
        Ok(Self {
            functions: functions(&elf),
            segments,
            id: build_id(&elf),
            sections: Sections {
                text: section(".text"),
                eh_frame: section(".eh_frame"),
                eh_frame_hdr: section(".eh_frame_hdr"),
                got: section(".got").map(|got| got.range),
            },
        })
    }

    /// Where it is linked to what lies at `offset` of the file.
    pub fn linked(&self, offset: u64) -> Option<u64> {
        let within = |segment: &&Segment| offset.checked_sub(segment.offset).is_some_and(|at| at < segment.bytes);
        let segment = self.segments.iter().find(within)?;
        segment.address.checked_add(offset - segment.offset)
    }

    /// The addresses that it is linked to, from the first to the last.
    pub fn extent(&self) -> Range<u64> {
        let start = self.segments.iter().map(|segment| segment.address).min();
        let end = self
            .segments
            .iter()
            .map(|segment| segment.address.saturating_add(segment.bytes));
        start.unwrap_or(0)..end.max().unwrap_or(0)
    }

    /// The build id, and where it is linked to.
    pub fn id(&self) -> Option<(u64, &[u8])> {
        self.id.as_ref().map(|(at, id)| (*at, &**id))
    }

    /// Its code from a linked address on, at most so many bytes.
    pub fn code(&self, address: u64, most: usize) -> &[u8] {
        let Some(text) = &self.sections.text else { return &[] };
        let at = address
            .checked_sub(text.range.start)
            .and_then(|at| text.data.get(at as usize..));
        at.map_or(&[], |code| &code[..code.len().min(most)])
    }

    /// Whether it names any function.
    pub fn has_functions(&self) -> bool {
        !self.functions.is_empty()
    }

    /// The function that has the code linked to an address.
    pub fn function(&self, address: u64) -> Option<&str> {
        let after = self.functions.partition_point(|function| function.address <= address);
        let function = self.functions.get(after.checked_sub(1)?)?;
        let into = address - function.address;
        // Assembly often has no sizes.
        let size = if function.size == 0 { MOST_CODE } else { function.size };
        (into < size).then_some(&function.name)
    }

    /// Takes the functions of another file of the same program: one with its symbols.
    pub fn take_functions(&mut self, other: Self) {
        self.functions = other.functions;
    }
}

fn functions(elf: &ElfFile64<'_, Endianness>) -> Vec<Function> {
    let mut found: Vec<_> = elf
        .symbols()
        .chain(elf.dynamic_symbols())
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .filter_map(|symbol| {
            let name = symbol.name().ok().filter(|name| !name.is_empty())?;
            Some((symbol.address(), symbol.size(), name))
        })
        .take(MOST_FUNCTIONS)
        .collect();
    // Of several names the same one each time: that of known size before others.
    found.sort_unstable_by(|one, two| one.0.cmp(&two.0).then(two.1.cmp(&one.1)).then(one.2.cmp(two.2)));
    found.dedup_by_key(|function| function.0);
    let function = |(address, size, name): (u64, u64, &str)| Function {
        address,
        size,
        name: name.chars().take(1024).collect(),
    };
    found.into_iter().map(function).collect()
}

fn build_id(elf: &ElfFile64<'_, Endianness>) -> Option<(u64, Vec<u8>)> {
    let id = elf.build_id().ok()??;
    if id.is_empty() || id.len() > MOST_ID {
        return None;
    }
    let section = elf.section_by_name(".note.gnu.build-id")?;
    let data = section.data().ok()?;
    let at = data.windows(id.len()).position(|bytes| bytes == id)?;
    Some((section.address().checked_add(at as u64)?, id.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This test's own file: a program like another.
    fn own() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    #[test]
    fn functions_are_found_by_address() {
        let program = Program::parse(&own()).unwrap();
        assert!(program.has_functions() && program.sections.eh_frame.is_some());
        let text = program.sections.text.clone().unwrap();
        let named = text
            .range
            .clone()
            .step_by(4096)
            .filter(|at| program.function(*at).is_some())
            .count();
        assert!(named > 10, "{named}");
        assert_eq!(program.function(u64::MAX), None);
        assert_eq!(program.function(0), None);
        let extent = program.extent();
        assert!(extent.start <= text.range.start && text.range.end <= extent.end);
    }

    #[test]
    fn headers_that_lie_are_an_error_or_harmless() {
        let bytes = own();
        let bytes = &bytes[..bytes.len().min(1 << 20)];
        assert!(Program::parse(&[]).is_err());
        assert!(Program::parse(b"\x7fELF").is_err());
        // Every byte of the header and of the program headers, with the values that break arithmetic.
        for at in 4..64 + 56 * 8 {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = bytes.to_vec();
                bytes[at] = value;
                look(&bytes);
            }
        }
        // Eight bytes at a time: sizes and offsets beyond everything.
        for at in (24..64 + 56 * 8).step_by(8) {
            let mut bytes = bytes.to_vec();
            bytes[at..at + 8].fill(0xff);
            look(&bytes);
        }
    }

    fn look(bytes: &[u8]) {
        if let Ok(program) = Program::parse(bytes) {
            for offset in [0, 1, 0x1000, u64::MAX] {
                let linked = program.linked(offset);
                let _ = linked.and_then(|linked| program.function(linked));
            }
            let _ = (program.extent(), program.id());
        }
    }
}
