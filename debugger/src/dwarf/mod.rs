//! What DWARF tells of a function: its parameters, where they are when it is entered, and what it returns.
//!
//! The file is given by whoever looks, and may be anything: nothing in it is followed without a bound.

mod types;
mod value;

use std::path::Path;

use anyhow::{Context, Result};
use gimli::{AttributeValue, Encoding, EndianSlice, LittleEndian, Unit, UnitOffset};

use crate::show::layout::sections;

pub use types::{Kind, Typed};
pub use value::{Entry, Shown};

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Dwarf<'a> = gimli::Dwarf<Slice<'a>>;
type Die<'a, 'unit> = gimli::DebuggingInformationEntry<'unit, 'unit, Slice<'a>>;

/// Parameters that are kept of a function.
const MOST_PARAMETERS: usize = 32;
/// Bytes of an expression that tells a place.
const MOST_CODE: usize = 256;
/// Entries that refer to each other for a name or a type.
const MOST_LINKS: usize = 8;

/// A function.
#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    pub parameters: Vec<Parameter>,
    /// What it returns.
    pub result: Typed,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    pub name: String,
    pub typed: Typed,
    /// Where it is when the function is entered; none where the compiler left it out.
    pub place: Option<Code>,
}

/// An expression of DWARF.
#[derive(Clone, Debug, PartialEq)]
pub struct Code {
    bytes: Vec<u8>,
    encoding: Encoding,
}

/// The function that begins at `address`. `None`: the file does not tell.
pub fn function(path: &Path, address: u64) -> Result<Option<Function>> {
    let damaged = || format!("the DWARF of {} is damaged", path.display());
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = object::File::parse(&*bytes).with_context(|| format!("{} is no ELF file", path.display()))?;
    let sections = sections(&file)?;
    let dwarf = sections.borrow(|section| EndianSlice::new(section, LittleEndian));
    find(&dwarf, address).with_context(damaged)
}

fn find(dwarf: &Dwarf<'_>, address: u64) -> Result<Option<Function>> {
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        let unit = dwarf.unit(header)?;
        let mut ranges = dwarf.unit_ranges(&unit)?;
        let mut has_it = false;
        while let Some(range) = ranges.next()? {
            has_it |= (range.begin..range.end).contains(&address);
        }
        if has_it && let Some(function) = in_unit(dwarf, &unit, address)? {
            return Ok(Some(function));
        }
    }
    Ok(None)
}

fn in_unit<'a>(dwarf: &Dwarf<'a>, unit: &Unit<Slice<'a>>, address: u64) -> Result<Option<Function>> {
    let mut entries = unit.entries();
    while let Some((_, entry)) = entries.next_dfs()? {
        if entry.tag() != gimli::DW_TAG_subprogram {
            continue;
        }
        let Some(low) = entry.attr_value(gimli::DW_AT_low_pc)? else {
            continue;
        };
        if dwarf.attr_address(unit, low)? == Some(address) {
            return read(dwarf, unit, entry.offset(), address).map(Some);
        }
    }
    Ok(None)
}

fn read<'a>(dwarf: &Dwarf<'a>, unit: &Unit<Slice<'a>>, at: UnitOffset, address: u64) -> Result<Function> {
    let mut tree = unit.entries_tree(Some(at))?;
    let root = tree.root()?;
    let result = typed(dwarf, unit, root.entry())?.unwrap_or_else(Typed::void);
    let mut parameters = Vec::new();
    let mut children = root.children();
    while let Some(child) = children.next()? {
        let entry = child.entry();
        if entry.tag() != gimli::DW_TAG_formal_parameter || parameters.len() == MOST_PARAMETERS {
            continue;
        }
        parameters.push(Parameter {
            name: name(dwarf, unit, entry)?.unwrap_or_else(|| "?".into()),
            typed: typed(dwarf, unit, entry)?.unwrap_or_else(Typed::void),
            place: place(dwarf, unit, entry, address)?,
        });
    }
    Ok(Function { parameters, result })
}

/// The value of an attribute, of the entry or of those that it was made from.
fn inherited<'a>(
    unit: &Unit<Slice<'a>>,
    entry: &Die<'a, '_>,
    attribute: gimli::DwAt,
) -> Result<Option<AttributeValue<Slice<'a>>>> {
    if let Some(value) = entry.attr_value(attribute)? {
        return Ok(Some(value));
    }
    let link = |entry: &Die<'a, '_>| -> Result<Option<UnitOffset>> {
        for link in [gimli::DW_AT_abstract_origin, gimli::DW_AT_specification] {
            // In another unit: only whole-program optimizers write that.
            if let Some(AttributeValue::UnitRef(offset)) = entry.attr_value(link)? {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    };
    let mut next = link(entry)?;
    for _ in 0..MOST_LINKS {
        let Some(offset) = next else { break };
        let entry = unit.entry(offset)?;
        if let Some(value) = entry.attr_value(attribute)? {
            return Ok(Some(value));
        }
        next = link(&entry)?;
    }
    Ok(None)
}

fn name<'a>(dwarf: &Dwarf<'a>, unit: &Unit<Slice<'a>>, entry: &Die<'a, '_>) -> Result<Option<String>> {
    let Some(value) = inherited(unit, entry, gimli::DW_AT_name)? else {
        return Ok(None);
    };
    Ok(Some(dwarf.attr_string(unit, value)?.to_string_lossy().into_owned()))
}

fn typed<'a>(dwarf: &Dwarf<'a>, unit: &Unit<Slice<'a>>, entry: &Die<'a, '_>) -> Result<Option<Typed>> {
    let Some(AttributeValue::UnitRef(offset)) = inherited(unit, entry, gimli::DW_AT_type)? else {
        return Ok(None);
    };
    types::read(dwarf, unit, offset).map(Some)
}

/// Where a parameter is when the instruction at `address` is next.
fn place<'a>(dwarf: &Dwarf<'a>, unit: &Unit<Slice<'a>>, entry: &Die<'a, '_>, address: u64) -> Result<Option<Code>> {
    let code = |expression: gimli::Expression<Slice<'a>>| {
        let bytes = expression.0.slice();
        (!bytes.is_empty() && bytes.len() <= MOST_CODE).then(|| Code {
            bytes: bytes.to_vec(),
            encoding: unit.encoding(),
        })
    };
    let Some(value) = entry.attr_value(gimli::DW_AT_location)? else {
        return Ok(None);
    };
    if let AttributeValue::Exprloc(expression) = value {
        return Ok(code(expression));
    }
    let Some(mut list) = dwarf.attr_locations(unit, value)? else {
        return Ok(None);
    };
    while let Some(entry) = list.next()? {
        if (entry.range.begin..entry.range.end).contains(&address) {
            return Ok(code(entry.data));
        }
    }
    Ok(None)
}
