//! Types of C: what they are called, and what their values look like.

use anyhow::Result;
use gimli::{AttributeValue, Unit, UnitOffset};

use super::{Dwarf, MOST_LINKS, Slice};

/// Enumerators that are kept of one type.
const MOST_NAMES: usize = 1024;
/// Bytes of a type's name.
const MOST_NAME: usize = 200;

/// What values of a type look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Void,
    Bool,
    Signed(usize),
    Unsigned(usize),
    /// Its size, and the names of its values.
    Enum(usize, Vec<(i64, String)>),
    /// The address of a text.
    Text,
    /// The address of code.
    Code,
    /// An address.
    Pointer,
    /// Of so many bytes, which are not looked into.
    Other(usize),
}

impl Kind {
    /// Bytes of a value.
    pub fn size(&self) -> usize {
        match self {
            Self::Void => 0,
            Self::Bool => 1,
            Self::Signed(size) | Self::Unsigned(size) | Self::Enum(size, _) | Self::Other(size) => *size,
            Self::Text | Self::Code | Self::Pointer => 8,
        }
    }
}

/// A type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Typed {
    /// As C writes it.
    pub name: String,
    pub kind: Kind,
}

impl Typed {
    pub fn void() -> Self {
        Self {
            name: "void".into(),
            kind: Kind::Void,
        }
    }
}

/// The type at an offset.
pub fn read<'a>(dwarf: &Dwarf<'a>, unit: &Unit<Slice<'a>>, at: UnitOffset) -> Result<Typed> {
    follow(dwarf, unit, Some(at), 0)
}

fn follow<'a>(dwarf: &Dwarf<'a>, unit: &Unit<Slice<'a>>, at: Option<UnitOffset>, depth: usize) -> Result<Typed> {
    let Some(at) = at else { return Ok(Typed::void()) };
    if depth == MOST_LINKS {
        return Ok(Typed {
            name: "...".into(),
            kind: Kind::Other(0),
        });
    }
    let entry = unit.entry(at)?;
    let name = match entry.attr_value(gimli::DW_AT_name)? {
        Some(value) => {
            let name = dwarf.attr_string(unit, value)?.to_string_lossy().into_owned();
            name.chars().take(MOST_NAME).collect()
        }
        None => String::new(),
    };
    let size = entry
        .attr_value(gimli::DW_AT_byte_size)?
        .and_then(|value| value.udata_value())
        .unwrap_or(0) as usize;
    let under = match entry.attr_value(gimli::DW_AT_type)? {
        Some(AttributeValue::UnitRef(offset)) => Some(offset),
        _ => None,
    };
    let inner = || follow(dwarf, unit, under, depth + 1);
    let anonymous = |word: &str| {
        if name.is_empty() {
            format!("{word} {{...}}")
        } else {
            format!("{word} {name}")
        }
    };
    Ok(match entry.tag() {
        gimli::DW_TAG_base_type => {
            let encoding = match entry.attr_value(gimli::DW_AT_encoding)? {
                Some(AttributeValue::Encoding(encoding)) => encoding,
                _ => gimli::DW_ATE_unsigned,
            };
            let kind = match encoding {
                _ if size > 8 => Kind::Other(size),
                gimli::DW_ATE_boolean => Kind::Bool,
                gimli::DW_ATE_signed | gimli::DW_ATE_signed_char => Kind::Signed(size),
                gimli::DW_ATE_unsigned | gimli::DW_ATE_unsigned_char => Kind::Unsigned(size),
                _ => Kind::Other(size),
            };
            Typed { name, kind }
        }
        gimli::DW_TAG_typedef => Typed {
            name,
            kind: inner()?.kind,
        },
        gimli::DW_TAG_const_type => qualified(inner()?, "const"),
        gimli::DW_TAG_volatile_type => qualified(inner()?, "volatile"),
        gimli::DW_TAG_restrict_type | gimli::DW_TAG_atomic_type => inner()?,
        gimli::DW_TAG_pointer_type => pointer(&inner()?),
        gimli::DW_TAG_subroutine_type => Typed {
            name: format!("{} ()", inner()?.name),
            kind: Kind::Code,
        },
        gimli::DW_TAG_array_type => Typed {
            name: format!("{} []", inner()?.name),
            kind: Kind::Other(size),
        },
        gimli::DW_TAG_enumeration_type => Typed {
            name: anonymous("enum"),
            kind: Kind::Enum(size, enumerators(dwarf, unit, at)?),
        },
        gimli::DW_TAG_structure_type => Typed {
            name: anonymous("struct"),
            kind: Kind::Other(size),
        },
        gimli::DW_TAG_union_type => Typed {
            name: anonymous("union"),
            kind: Kind::Other(size),
        },
        _ => Typed {
            name: if name.is_empty() { "?".into() } else { name },
            kind: Kind::Other(size),
        },
    })
}

fn qualified(typed: Typed, word: &str) -> Typed {
    let name = if typed.name.ends_with('*') {
        format!("{}{word}", typed.name)
    } else {
        format!("{word} {}", typed.name)
    };
    Typed { name, ..typed }
}

fn pointer(to: &Typed) -> Typed {
    if to.kind == Kind::Code {
        let name = match to.name.strip_suffix(" ()") {
            Some(result) => format!("{result} (*)()"),
            None => format!("{} *", to.name),
        };
        return Typed { name, kind: Kind::Code };
    }
    let star = if to.name.ends_with('*') { "*" } else { " *" };
    let is_text = to.kind == Kind::Signed(1) && to.name.ends_with("char") && !to.name.ends_with("signed char");
    Typed {
        name: format!("{}{star}", to.name),
        kind: if is_text { Kind::Text } else { Kind::Pointer },
    }
}

fn enumerators<'a>(dwarf: &Dwarf<'a>, unit: &Unit<Slice<'a>>, at: UnitOffset) -> Result<Vec<(i64, String)>> {
    let mut names = Vec::new();
    let mut tree = unit.entries_tree(Some(at))?;
    let mut children = tree.root()?.children();
    while let Some(child) = children.next()? {
        let entry = child.entry();
        let value = entry.attr_value(gimli::DW_AT_const_value)?;
        let value = value.and_then(|value| {
            value
                .sdata_value()
                .or_else(|| value.udata_value().map(u64::cast_signed))
        });
        if let (Some(value), Some(name)) = (value, entry.attr_value(gimli::DW_AT_name)?)
            && names.len() < MOST_NAMES
        {
            let name = dwarf.attr_string(unit, name)?;
            names.push((value, name.to_string_lossy().chars().take(MOST_NAME).collect()));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(name: &str, kind: Kind) -> Typed {
        Typed {
            name: name.into(),
            kind,
        }
    }

    #[test]
    fn types_are_called_as_in_c() {
        let text = pointer(&qualified(typed("char", Kind::Signed(1)), "const"));
        assert_eq!((text.name.as_str(), &text.kind), ("const char *", &Kind::Text));
        let texts = pointer(&text);
        assert_eq!((texts.name.as_str(), &texts.kind), ("const char **", &Kind::Pointer));
        assert_eq!(qualified(text, "const").name, "const char *const");
        // Bytes are no text.
        assert_eq!(pointer(&typed("signed char", Kind::Signed(1))).kind, Kind::Pointer);
        assert_eq!(pointer(&typed("unsigned char", Kind::Unsigned(1))).kind, Kind::Pointer);
        assert_eq!(pointer(&typed("struct char", Kind::Other(1))).kind, Kind::Pointer);
        assert_eq!(pointer(&Typed::void()).name, "void *");
        let function = pointer(&typed("int ()", Kind::Code));
        assert_eq!((function.name.as_str(), function.kind), ("int (*)()", Kind::Code));
    }
}
