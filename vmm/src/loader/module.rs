//! A module as the kernel has it in its memory when it finishes it: the file's ELF header, and the section headers, whose
//! addresses are by then where the sections are (`kernel/module/main.c`, `move_module`). No layout of the kernel's own is needed.
//!
//! The headers are the guest's: nothing in them is believed but within bounds.

use thiserror::Error;

use super::elf::{EM_X86_64, SHF_ALLOC, SHF_EXECINSTR, SHT_NOBITS, u16_at, u32_at, u64_at};

/// Bytes of the ELF header.
pub const HEADER: usize = 64;
/// Bytes of a section header.
const SECTION: usize = 64;
/// `ET_REL`: what a module's file is.
const RELOCATABLE: u16 = 1;
/// Most bytes of code in a module, all sections together. The largest drivers have some 10 MiB.
pub const MOST_CODE: u64 = 64 << 20;

/// A stretch of a module's code, by its virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// Where it begins.
    pub address: u64,
    /// Its bytes.
    pub size: u64,
}

/// Why a module's headers are not followed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NoModule {
    /// It is no module's.
    #[error("its ELF header is not one of an x86-64 module")]
    Header,
    /// A section that cannot be.
    #[error("a section of {size:#x} bytes at {address:#x} wraps around the address space")]
    Wraps {
        /// Where it begins.
        address: u64,
        /// Its bytes.
        size: u64,
    },
    /// More code than any module has.
    #[error("it has more than {MOST_CODE} bytes of code")]
    TooLarge,
}

/// How many bytes of section headers belong to this ELF header: up to 4 MiB.
pub fn table_bytes(header: &[u8; HEADER]) -> Result<usize, NoModule> {
    let count = usize::from(u16_at(header, 60));
    let is_module = header.starts_with(b"\x7fELF\x02\x01")
        && u16_at(header, 16) == RELOCATABLE
        && u16_at(header, 18) == EM_X86_64
        && usize::from(u16_at(header, 58)) == SECTION;
    if is_module && count > 0 {
        Ok(count * SECTION)
    } else {
        Err(NoModule::Header)
    }
}

/// The code that section headers name: what is in memory and executed.
pub fn code(table: &[u8]) -> Result<Vec<Code>, NoModule> {
    let mut found = Vec::new();
    let mut total = 0u64;
    for header in table.chunks_exact(SECTION) {
        let wanted = SHF_ALLOC | SHF_EXECINSTR;
        let (address, size) = (u64_at(header, 16), u64_at(header, 32));
        if u64_at(header, 8) & wanted != wanted || u32_at(header, 4) == SHT_NOBITS || size == 0 {
            continue;
        }
        if address.checked_add(size).is_none() {
            return Err(NoModule::Wraps { address, size });
        }
        total = total.saturating_add(size);
        if total > MOST_CODE {
            return Err(NoModule::TooLarge);
        }
        found.push(Code { address, size });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(count: u16) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        header[16..20].copy_from_slice(&[1, 0, 62, 0]);
        header[58..60].copy_from_slice(&64u16.to_le_bytes());
        header[60..62].copy_from_slice(&count.to_le_bytes());
        header
    }

    fn section(kind: u32, flags: u64, address: u64, size: u64) -> [u8; SECTION] {
        let mut section = [0xff; SECTION];
        section[4..8].copy_from_slice(&kind.to_le_bytes());
        section[8..16].copy_from_slice(&flags.to_le_bytes());
        section[16..24].copy_from_slice(&address.to_le_bytes());
        section[32..40].copy_from_slice(&size.to_le_bytes());
        section
    }

    const AT: u64 = 0xffff_ffff_c000_0000;

    #[test]
    fn code_is_what_is_loaded_and_executed() {
        let table = [
            section(0, 0, 0, 0),
            section(1, 6, AT, 100),
            // Data; code that is not loaded; code of no bytes; zeroes.
            section(1, 3, AT + 0x1000, 100),
            section(1, 4, AT + 0x2000, 100),
            section(1, 6, AT + 0x3000, 0),
            section(SHT_NOBITS, 6, AT + 0x4000, 100),
            // `.altinstr_replacement`, with another flag.
            section(1, 0x16, AT + 0x5000, 3),
        ];
        let expected = [(AT, 100), (AT + 0x5000, 3)].map(|(address, size)| Code { address, size });
        assert_eq!(table_bytes(&header(7)), Ok(7 * SECTION));
        assert_eq!(code(&table.concat()).unwrap(), expected);
        assert_eq!(code(&table.concat()[..SECTION * 2 - 1]).unwrap(), [], "cut short");
    }

    #[test]
    fn what_is_no_module_is_refused() {
        for at in [0, 3, 4, 5, 16, 18, 58] {
            let mut bad = header(1);
            bad[at] ^= 1;
            assert_eq!(table_bytes(&bad), Err(NoModule::Header), "{at}");
        }
        assert_eq!(table_bytes(&header(0)), Err(NoModule::Header));
        assert_eq!(
            table_bytes(&header(u16::MAX)),
            Ok(0xffff * SECTION),
            "the most there can be"
        );
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let of = |sections: &[(u64, u64)]| {
            let headers = sections.iter().map(|(address, size)| section(1, 6, *address, *size));
            code(&headers.collect::<Vec<_>>().concat())
        };
        assert!(of(&[(AT, MOST_CODE)]).is_ok());
        assert_eq!(of(&[(AT, MOST_CODE + 1)]), Err(NoModule::TooLarge));
        assert_eq!(of(&[(AT, MOST_CODE), (AT, 1)]), Err(NoModule::TooLarge));
        assert_eq!(of(&[(0, u64::MAX)]), Err(NoModule::TooLarge));
        assert_eq!(of(&[(0, 1 << 63), (0, 1 << 63)]), Err(NoModule::TooLarge));
        let wraps = NoModule::Wraps {
            address: u64::MAX,
            size: 2,
        };
        assert_eq!(of(&[(u64::MAX, 2)]), Err(wraps));
    }
}
