//! Reading an ELF64 `vmlinux`: segments, sections and function symbols. By hand, because it is small and because the
//! file comes from outside: every offset is checked against the file before it is used.

use thiserror::Error;

/// Most program headers that are read.
const MAX_SEGMENTS: usize = 256;
/// Most section headers that are read.
const MAX_SECTIONS: usize = 65536;
/// Most executable sections that are looked at.
const MAX_CODE: usize = 1024;

const PT_LOAD: u32 = 1;
const SHT_SYMTAB: u32 = 2;
pub(super) const SHT_NOBITS: u32 = 8;
pub(super) const SHF_ALLOC: u64 = 2;
pub(super) const SHF_EXECINSTR: u64 = 4;
const PF_X: u32 = 1;
pub(super) const EM_X86_64: u16 = 62;
const STT_NOTYPE: u8 = 0;
const STT_FUNC: u8 = 2;
/// Bytes of a symbol.
const SYMBOL: usize = 24;

/// What is wrong with a kernel's ELF file.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ElfError {
    /// It does not begin as an ELF file.
    #[error("it does not begin with the ELF magic 7f 45 4c 46")]
    Magic,
    /// It is an ELF file for something else.
    #[error("it is not a 64-bit little-endian x86-64 executable (class {class}, data {data}, machine {machine})")]
    Machine {
        /// `EI_CLASS`.
        class: u8,
        /// `EI_DATA`.
        data: u8,
        /// `e_machine`.
        machine: u16,
    },
    /// A table or a segment lies outside the file.
    #[error(
        "its {what} (offset {offset:#x}, {size:#x} bytes) lies outside the file of {file:#x} bytes: is it cut short?"
    )]
    Outside {
        /// What lies outside.
        what: &'static str,
        /// Where it begins in the file.
        offset: u64,
        /// How long it says it is.
        size: u64,
        /// The file's size.
        file: u64,
    },
    /// A table's entries have an unknown size.
    #[error("its {what} has entries of {size} bytes, not {expected}")]
    EntrySize {
        /// Which table.
        what: &'static str,
        /// What the header says.
        size: u64,
        /// What it must be.
        expected: u64,
    },
    /// More entries than any kernel has.
    #[error("its {what} has {count} entries, more than {limit}")]
    TooMany {
        /// Which table.
        what: &'static str,
        /// What the header says.
        count: usize,
        /// What is accepted.
        limit: usize,
    },
    /// A segment that cannot be.
    #[error(
        "its segment {index} cannot be loaded: {why} (physical address {paddr:#x}, {filesz:#x} bytes in the file, {memsz:#x} in memory)"
    )]
    Segment {
        /// Its index.
        index: usize,
        /// What is wrong with it.
        why: &'static str,
        /// `p_paddr`.
        paddr: u64,
        /// `p_filesz`.
        filesz: u64,
        /// `p_memsz`.
        memsz: u64,
    },
    /// Nothing to load.
    #[error("it has no PT_LOAD segment")]
    NoSegments,
    /// The entry point lies in no segment.
    #[error("its entry point {entry:#x} lies in no loaded segment")]
    Entry {
        /// `e_entry`.
        entry: u64,
    },
}

/// A PT_LOAD segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// Its virtual address.
    pub vaddr: u64,
    /// Its physical address, where it is loaded.
    pub paddr: u64,
    /// How many bytes of it are in the file.
    pub filesz: u64,
    /// How many bytes of it are in memory; what the file lacks is zero.
    pub memsz: u64,
    /// Whether it may be executed.
    pub executable: bool,
}

/// A stretch of code: an executable section, or an executable segment of a file without section headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// The section's name.
    pub name: String,
    /// Where it begins in the file.
    pub offset: u64,
    /// How long it is.
    pub size: u64,
    /// The virtual address it is linked at.
    pub vaddr: u64,
    /// The physical address it is loaded at.
    pub paddr: u64,
    /// Virtual addresses in it at which a function begins, in ascending order, without repetition.
    pub functions: Vec<u64>,
}

/// Where the stretches of code were taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSource {
    /// From the section headers.
    Sections,
    /// The file has no section headers: whole executable segments, data in them included.
    Segments,
}

/// A parsed `vmlinux`.
#[derive(Clone, Debug)]
pub struct Vmlinux<'a> {
    file: &'a [u8],
    /// The physical entry point.
    pub entry: u64,
    /// What is loaded.
    pub segments: Vec<Segment>,
    /// The stretches of code in it.
    pub code: Vec<Code>,
    /// Where they were taken from.
    pub code_source: CodeSource,
    /// Whether function symbols were found.
    pub has_symbols: bool,
    /// The symbol table, and the names in it.
    symbols: (&'a [u8], &'a [u8]),
}

struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    addr: u64,
    offset: u64,
    size: u64,
    link: u32,
    entsize: u64,
}

impl<'a> Vmlinux<'a> {
    /// Parses `file`.
    pub fn parse(file: &'a [u8]) -> Result<Self, ElfError> {
        if !is_elf(file) {
            return Err(ElfError::Magic);
        }
        let header = part(file, "ELF header", 0, 64)?;
        let (class, data, machine) = (header[4], header[5], u16_at(header, 18));
        if class != 2 || data != 1 || machine != EM_X86_64 {
            return Err(ElfError::Machine { class, data, machine });
        }
        let segments = segments(file, header)?;
        let entry = entry(u64_at(header, 24), &segments)?;
        let sections = sections(file, header)?;
        let mut code = code_sections(file, header, &sections, &segments);
        if code.len() > MAX_CODE {
            return Err(ElfError::TooMany {
                what: "list of executable sections",
                count: code.len(),
                limit: MAX_CODE,
            });
        }
        let symbols = symbols(file, &sections)?;
        let mut code_source = CodeSource::Sections;
        let mut has_symbols = false;
        if code.is_empty() {
            code_source = CodeSource::Segments;
            code = segments
                .iter()
                .enumerate()
                .filter(|(_, s)| s.executable && s.filesz > 0)
                .map(|(index, s)| Code {
                    name: format!("segment {index}"),
                    offset: s.offset,
                    size: s.filesz,
                    vaddr: s.vaddr,
                    paddr: s.paddr,
                    functions: Vec::new(),
                })
                .collect();
        } else {
            has_symbols = functions(symbols.0, &mut code);
        }
        Ok(Self {
            file,
            entry,
            segments,
            code,
            code_source,
            has_symbols,
            symbols,
        })
    }

    /// The address of the function of this name, where there is exactly one.
    pub fn function(&self, name: &str) -> Option<u64> {
        let (table, names) = self.symbols;
        let mut found = None;
        for symbol in table.chunks_exact(SYMBOL) {
            let start = names.get(u32_at(symbol, 0) as usize..).unwrap_or(&[]);
            let is_name = start
                .strip_prefix(name.as_bytes())
                .is_some_and(|end| end.first() == Some(&0));
            if is_name && is_function(symbol) && found.replace(u64_at(symbol, 8)).is_some() {
                return None;
            }
        }
        found
    }

    /// A segment's bytes in the file.
    pub fn segment_bytes(&self, segment: &Segment) -> Result<&'a [u8], ElfError> {
        part(self.file, "segment", segment.offset, segment.filesz)
    }

    /// A stretch of code's bytes in the file.
    pub fn code_bytes(&self, code: &Code) -> Result<&'a [u8], ElfError> {
        part(self.file, "section", code.offset, code.size)
    }
}

/// Whether `file` begins as an ELF file does.
pub fn is_elf(file: &[u8]) -> bool {
    file.starts_with(b"\x7fELF")
}

fn segments(file: &[u8], header: &[u8]) -> Result<Vec<Segment>, ElfError> {
    let what = "program header table";
    let count = usize::from(u16_at(header, 56));
    if count > MAX_SEGMENTS {
        return Err(ElfError::TooMany {
            what,
            count,
            limit: MAX_SEGMENTS,
        });
    }
    if count == 0 {
        return Err(ElfError::NoSegments);
    }
    entry_size(what, u16_at(header, 54).into(), 56)?;
    let table = part(file, what, u64_at(header, 32), count as u64 * 56)?;
    let mut segments = Vec::with_capacity(count);
    for (index, h) in table.chunks_exact(56).enumerate() {
        if u32_at(h, 0) != PT_LOAD {
            continue;
        }
        let segment = Segment {
            offset: u64_at(h, 8),
            vaddr: u64_at(h, 16),
            paddr: u64_at(h, 24),
            filesz: u64_at(h, 32),
            memsz: u64_at(h, 40),
            executable: u32_at(h, 4) & PF_X != 0,
        };
        let Segment {
            paddr,
            filesz,
            memsz,
            vaddr,
            ..
        } = segment;
        let bad = |why| ElfError::Segment {
            index,
            why,
            paddr,
            filesz,
            memsz,
        };
        if filesz > memsz {
            return Err(bad("it is longer in the file than in memory"));
        }
        if paddr.checked_add(memsz).is_none() || vaddr.checked_add(memsz).is_none() {
            return Err(bad("it wraps around the address space"));
        }
        part(file, "segment", segment.offset, filesz)?;
        if segments
            .iter()
            .any(|s: &Segment| paddr < s.paddr + s.memsz && s.paddr < paddr + memsz)
        {
            return Err(bad("it overlaps another segment"));
        }
        if memsz > 0 {
            segments.push(segment);
        }
    }
    if segments.is_empty() {
        return Err(ElfError::NoSegments);
    }
    Ok(segments)
}

/// The physical entry point. Linux gives it as a physical address; a virtual one is translated.
fn entry(entry: u64, segments: &[Segment]) -> Result<u64, ElfError> {
    for s in segments {
        if entry.checked_sub(s.paddr).is_some_and(|d| d < s.memsz) {
            return Ok(entry);
        }
    }
    for s in segments {
        if let Some(distance) = entry.checked_sub(s.vaddr).filter(|d| *d < s.memsz) {
            return Ok(s.paddr + distance);
        }
    }
    Err(ElfError::Entry { entry })
}

fn sections(file: &[u8], header: &[u8]) -> Result<Vec<Section>, ElfError> {
    let what = "section header table";
    let offset = u64_at(header, 40);
    let mut count = usize::from(u16_at(header, 60));
    if offset == 0 {
        return Ok(Vec::new());
    }
    entry_size(what, u16_at(header, 58).into(), 64)?;
    if count == 0 {
        // More sections than the header's field holds: the first section header's size counts them.
        let first = part(file, what, offset, 64)?;
        count = usize::try_from(u64_at(first, 32)).unwrap_or(usize::MAX);
    }
    if count > MAX_SECTIONS {
        return Err(ElfError::TooMany {
            what,
            count,
            limit: MAX_SECTIONS,
        });
    }
    let table = part(file, what, offset, count as u64 * 64)?;
    Ok(table
        .chunks_exact(64)
        .map(|h| Section {
            name: u32_at(h, 0),
            kind: u32_at(h, 4),
            flags: u64_at(h, 8),
            addr: u64_at(h, 16),
            offset: u64_at(h, 24),
            size: u64_at(h, 32),
            link: u32_at(h, 40),
            entsize: u64_at(h, 56),
        })
        .collect())
}

/// The executable sections that are loaded, with the sections' own index in place of the functions.
fn code_sections(file: &[u8], header: &[u8], sections: &[Section], segments: &[Segment]) -> Vec<Code> {
    let mut names_index = usize::from(u16_at(header, 62));
    if names_index == 0xffff {
        names_index = sections.first().map_or(0, |s| s.link as usize);
    }
    let names = sections
        .get(names_index)
        .and_then(|s| part(file, "names", s.offset, s.size).ok())
        .unwrap_or(&[]);
    sections
        .iter()
        .filter(|s| s.flags & (SHF_ALLOC | SHF_EXECINSTR) == SHF_ALLOC | SHF_EXECINSTR)
        .filter(|s| s.kind != SHT_NOBITS && s.size > 0)
        .filter_map(|s| {
            let end = s.offset.checked_add(s.size)?;
            let home = segments
                .iter()
                .find(|g| s.offset >= g.offset && end <= g.offset + g.filesz)?;
            Some(Code {
                name: name_at(names, s.name),
                offset: s.offset,
                size: s.size,
                vaddr: s.addr,
                paddr: home.paddr + (s.offset - home.offset),
                functions: Vec::new(),
            })
        })
        .collect()
}

/// The symbol table and its names, empty where there are none.
fn symbols<'a>(file: &'a [u8], sections: &[Section]) -> Result<(&'a [u8], &'a [u8]), ElfError> {
    let what = "symbol table";
    let Some(table) = sections.iter().find(|s| s.kind == SHT_SYMTAB) else {
        return Ok((&[], &[]));
    };
    entry_size(what, table.entsize, SYMBOL as u64)?;
    let names = sections.get(table.link as usize);
    let names = names.and_then(|s| part(file, "names", s.offset, s.size).ok());
    Ok((part(file, what, table.offset, table.size)?, names.unwrap_or(&[])))
}

fn is_function(symbol: &[u8]) -> bool {
    matches!(symbol[4] & 0xf, STT_FUNC | STT_NOTYPE)
}

/// Sorts the function symbols into the stretches of code. Returns whether there were any.
fn functions(symbols: &[u8], code: &mut [Code]) -> bool {
    let mut found = false;
    for symbol in symbols.chunks_exact(SYMBOL).filter(|symbol| is_function(symbol)) {
        let value = u64_at(symbol, 8);
        for c in code.iter_mut() {
            if value.checked_sub(c.vaddr).is_some_and(|d| d < c.size) {
                c.functions.push(value);
                found = true;
            }
        }
    }
    for c in code {
        c.functions.sort_unstable();
        c.functions.dedup();
    }
    found
}

fn entry_size(what: &'static str, size: u64, expected: u64) -> Result<(), ElfError> {
    if size == expected {
        Ok(())
    } else {
        Err(ElfError::EntrySize { what, size, expected })
    }
}

fn part<'a>(file: &'a [u8], what: &'static str, offset: u64, size: u64) -> Result<&'a [u8], ElfError> {
    let outside = || ElfError::Outside {
        what,
        offset,
        size,
        file: file.len() as u64,
    };
    let end = offset.checked_add(size).ok_or_else(outside)?;
    let (start, end) = (usize::try_from(offset), usize::try_from(end));
    let (Ok(start), Ok(end)) = (start, end) else {
        return Err(outside());
    };
    file.get(start..end).ok_or_else(outside)
}

fn name_at(names: &[u8], offset: u32) -> String {
    let rest = names.get(offset as usize..).unwrap_or(&[]);
    let end = rest.iter().take(64).position(|b| *b == 0).unwrap_or(rest.len().min(64));
    String::from_utf8_lossy(&rest[..end]).into_owned()
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    if let Some(from) = bytes.get(at..at + N) {
        array.copy_from_slice(from);
    }
    array
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}
