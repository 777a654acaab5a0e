//! What `vmlinux` tells of a Linux guest: symbols, and the layout of structures from its DWARF.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use gimli::{AttributeValue, EndianSlice, LittleEndian, Unit};
use lockstep_proto::Identity;
use object::{Object, ObjectSection, ObjectSymbol};

use super::view::View;
use crate::symbols::check_kernel;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Members of structures that are asked for: (structure, member).
const WANTED: [(&str, &str); 8] = [
    ("task_struct", "comm"),
    ("task_struct", "pid"),
    ("task_struct", "tgid"),
    ("task_struct", "tasks"),
    ("task_struct", "mm"),
    ("task_struct", "__state"),
    ("task_struct", "real_parent"),
    ("list_head", "next"),
];

/// Bytes of `linux_banner` that are compared.
const BANNER: u64 = 64;

/// A kernel.
pub struct Kernel {
    path: PathBuf,
    symbols: HashMap<String, u64>,
    /// Functions by address.
    functions: Vec<(u64, String)>,
    offsets: HashMap<(&'static str, &'static str), u64>,
    /// Where the kernel's version text lies, and its bytes.
    banner: Option<(u64, Vec<u8>)>,
    /// The recording's identity has this kernel's digest.
    is_sure: bool,
}

impl Kernel {
    /// Reads `vmlinux`, which must be the recorded kernel.
    pub fn read(path: &Path, identity: &Identity) -> Result<Self> {
        let bytes = check_kernel(path, identity)?;
        let file = object::File::parse(&*bytes).with_context(|| format!("{} is no ELF file", path.display()))?;
        let mut symbols = HashMap::new();
        let mut functions = Vec::new();
        for symbol in file.symbols() {
            let Ok(name) = symbol.name() else { continue };
            if symbol.kind() == object::SymbolKind::Text {
                functions.push((symbol.address(), name.to_owned()));
            }
            symbols.insert(name.to_owned(), symbol.address());
        }
        functions.sort();
        let banner = symbols.get("linux_banner").and_then(|&address| {
            let bytes = file
                .sections()
                .find_map(|section| section.data_range(address, BANNER).ok()?)?;
            Some((address, bytes.to_vec()))
        });
        Ok(Self {
            banner,
            is_sure: !identity.kernel_digest.is_empty(),
            path: path.to_owned(),
            symbols,
            functions,
            offsets: offsets(&file).with_context(|| format!("the DWARF of {} is damaged", path.display()))?,
        })
    }

    /// Where a recording began with a snapshot, nothing names its kernel: then the guest's memory must.
    pub fn check(&self, view: &View<'_>) -> Result<()> {
        if self.is_sure {
            return Ok(());
        }
        let (address, text) = self
            .banner
            .as_ref()
            .with_context(|| format!("{} is no Linux kernel", self.path.display()))?;
        let mut here = vec![0; text.len()];
        view.read(*address, &mut here)
            .context("the guest's kernel is not there yet, or another one")?;
        if here != *text {
            bail!(
                "{} is not the kernel that runs here: give the vmlinux of the recording's kernel",
                self.path.display()
            );
        }
        Ok(())
    }

    /// The address of a symbol.
    pub fn symbol(&self, name: &str) -> Option<u64> {
        self.symbols.get(name).copied()
    }

    /// `name+0x12`, and the offset alone.
    pub fn function(&self, address: u64) -> Option<(&str, u64)> {
        let after = self.functions.partition_point(|entry| entry.0 <= address);
        let (start, name) = self.functions.get(after.checked_sub(1)?)?;
        // Beyond the largest function there is no code of this name any more.
        (address - start < 1 << 16).then_some((name, address - start))
    }

    /// All functions, by address.
    pub fn functions(&self) -> &[(u64, String)] {
        &self.functions
    }

    /// Where a member lies in its structure.
    pub fn offset(&self, structure: &'static str, member: &'static str) -> Result<u64> {
        let Some(&offset) = self.offsets.get(&(structure, member)) else {
            bail!(
                "{} has no DWARF that tells of {structure}.{member}: build the kernel with CONFIG_DEBUG_INFO",
                self.path.display()
            );
        };
        Ok(offset)
    }
}

fn offsets(file: &object::File<'_>) -> Result<HashMap<(&'static str, &'static str), u64>> {
    let load = |id: gimli::SectionId| -> Result<std::borrow::Cow<'_, [u8]>, gimli::Error> {
        let section = file.section_by_name(id.name());
        Ok(section
            .and_then(|section| section.uncompressed_data().ok())
            .unwrap_or_default())
    };
    let sections = gimli::DwarfSections::load(load)?;
    let dwarf = sections.borrow(|section| EndianSlice::new(section, LittleEndian));
    let mut found = HashMap::new();
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        if found.len() == WANTED.len() {
            break;
        }
        let unit = dwarf.unit(header)?;
        read_unit(&dwarf, &unit, &mut found)?;
    }
    Ok(found)
}

fn read_unit<'a>(
    dwarf: &gimli::Dwarf<Slice<'a>>,
    unit: &Unit<Slice<'a>>,
    found: &mut HashMap<(&'static str, &'static str), u64>,
) -> Result<()> {
    let mut entries = unit.entries();
    let mut depth = 0i64;
    // The structure that is being read, and its depth.
    let mut inside: Option<(&'static str, i64)> = None;
    while let Some((delta, entry)) = entries.next_dfs()? {
        depth += delta as i64;
        if inside.is_some_and(|(_, at)| depth <= at) {
            inside = None;
        }
        let name = || -> Result<Option<String>> {
            let Some(value) = entry.attr_value(gimli::DW_AT_name)? else {
                return Ok(None);
            };
            Ok(Some(dwarf.attr_string(unit, value)?.to_string_lossy().into_owned()))
        };
        match entry.tag() {
            gimli::DW_TAG_structure_type if entry.attr_value(gimli::DW_AT_declaration)?.is_none() => {
                let Some(name) = name()? else { continue };
                if let Some((structure, _)) = WANTED.iter().find(|(structure, _)| *structure == name) {
                    inside = Some((structure, depth));
                }
            }
            gimli::DW_TAG_member => {
                let Some((structure, at)) = inside else { continue };
                if depth != at + 1 {
                    continue;
                }
                let Some(name) = name()? else { continue };
                let wanted = WANTED.iter().find(|entry| entry.0 == structure && entry.1 == name);
                let offset = match entry.attr_value(gimli::DW_AT_data_member_location)? {
                    // Anything else is an expression, for members of no fixed place.
                    Some(AttributeValue::Exprloc(_)) | None => None,
                    Some(value) => value.udata_value(),
                };
                if let (Some(wanted), Some(offset)) = (wanted, offset) {
                    found.insert(*wanted, offset);
                }
            }
            _ => {}
        }
    }
    Ok(())
}
