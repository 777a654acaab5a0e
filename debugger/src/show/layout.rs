//! Where members lie in a program's structures, by its DWARF.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use anyhow::{Result, bail};
use gimli::{AttributeValue, EndianSlice, EntriesTreeNode, LittleEndian, Unit, UnitOffset};
use object::{Object, ObjectSection};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// A member of a structure: the names of both.
pub type Member = (&'static str, &'static str);

/// Where members lie, in bytes from the structure's beginning.
pub type Offsets = HashMap<Member, u64>;

/// Structures without a name in each other that are looked into.
const MOST_DEPTH: u32 = 8;
/// Members that are looked at in all, lest structures within each other double again and again.
const MOST_MEMBERS: u32 = 1_000_000;

/// The sections of a file's DWARF; one that is missing or cannot be unpacked is empty.
pub fn sections<'a>(file: &object::File<'a>) -> Result<gimli::DwarfSections<Cow<'a, [u8]>>> {
    let load = |id: gimli::SectionId| -> Result<Cow<'a, [u8]>, gimli::Error> {
        let section = file.section_by_name(id.name());
        Ok(section
            .and_then(|section| section.uncompressed_data().ok())
            .unwrap_or_default())
    };
    Ok(gimli::DwarfSections::load(load)?)
}

/// Finds those of the members that there are. Members of structures and unions without a name count as the outer structure's.
pub fn offsets(file: &object::File<'_>, wanted: &[Member]) -> Result<Offsets> {
    let sections = sections(file)?;
    let dwarf = sections.borrow(|section| EndianSlice::new(section, LittleEndian));
    let mut search = Search {
        dwarf: &dwarf,
        wanted,
        missing: wanted.iter().map(|member| member.0).collect(),
        found: Offsets::new(),
        looks: 0,
    };
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        if search.missing.is_empty() {
            break;
        }
        search.unit(&dwarf.unit(header)?)?;
    }
    Ok(search.found)
}

/// A member: its name, its place, and its type where that is in the same unit.
type Found<'a> = (Option<Slice<'a>>, u64, Option<UnitOffset>);

struct Search<'d, 'a> {
    dwarf: &'d gimli::Dwarf<Slice<'a>>,
    wanted: &'d [Member],
    /// Structures that were not seen.
    missing: BTreeSet<&'static str>,
    found: Offsets,
    /// Members that were looked at.
    looks: u32,
}

impl<'a> Search<'_, 'a> {
    fn unit(&mut self, unit: &Unit<Slice<'a>>) -> Result<()> {
        let mut entries = unit.entries();
        let mut structures = Vec::new();
        while let Some((_, entry)) = entries.next_dfs()? {
            if entry.tag() != gimli::DW_TAG_structure_type || entry.attr_value(gimli::DW_AT_declaration)?.is_some() {
                continue;
            }
            let Some(value) = entry.attr_value(gimli::DW_AT_name)? else {
                continue;
            };
            let name = self.dwarf.attr_string(unit, value)?;
            if let Some(structure) = self.missing.iter().find(|structure| structure.as_bytes() == &*name) {
                structures.push((*structure, entry.offset()));
            }
        }
        for (structure, offset) in structures {
            if self.members(unit, structure, offset, 0, 0)? {
                self.missing.remove(structure);
            }
        }
        Ok(())
    }

    /// Whether some of the members were found in the structure at `offset`, which lies `base` bytes behind the one with the name.
    fn members(
        &mut self,
        unit: &Unit<Slice<'a>>,
        structure: &'static str,
        offset: UnitOffset,
        base: u64,
        depth: u32,
    ) -> Result<bool> {
        let mut tree = unit.entries_tree(Some(offset))?;
        let mut children = tree.root()?.children();
        let mut found = false;
        while let Some(child) = children.next()? {
            self.looks += 1;
            if self.looks > MOST_MEMBERS {
                bail!("its structures have more than {MOST_MEMBERS} members");
            }
            let Some((name, at, kind)) = self.member(unit, &child)? else {
                continue;
            };
            let at = base.wrapping_add(at);
            match (name, kind) {
                (Some(name), _) => {
                    let is = |member: &&Member| member.0 == structure && member.1.as_bytes() == &*name;
                    if let Some(member) = self.wanted.iter().find(is) {
                        self.found.entry(*member).or_insert(at);
                        found = true;
                    }
                }
                (None, Some(kind)) if depth < MOST_DEPTH => {
                    found |= self.members(unit, structure, kind, at, depth + 1)?;
                }
                (None, _) => {}
            }
        }
        Ok(found)
    }

    /// What this is, if it is a member with a fixed place.
    fn member(
        &self,
        unit: &Unit<Slice<'a>>,
        node: &EntriesTreeNode<'_, '_, '_, Slice<'a>>,
    ) -> Result<Option<Found<'a>>> {
        let entry = node.entry();
        if entry.tag() != gimli::DW_TAG_member {
            return Ok(None);
        }
        let at = match entry.attr_value(gimli::DW_AT_data_member_location)? {
            // A member of a union has none.
            None => 0,
            // An expression is of a member without a fixed place.
            Some(AttributeValue::Exprloc(_)) => return Ok(None),
            Some(value) => match value.udata_value() {
                Some(at) => at,
                None => return Ok(None),
            },
        };
        let name = match entry.attr_value(gimli::DW_AT_name)? {
            Some(value) => Some(self.dwarf.attr_string(unit, value)?),
            None => None,
        };
        let kind = match entry.attr_value(gimli::DW_AT_type)? {
            Some(AttributeValue::UnitRef(offset)) => Some(offset),
            _ => None,
        };
        Ok(Some((name, at, kind)))
    }
}
