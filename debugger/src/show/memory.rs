//! Memory that was asked for by its address.

use std::fmt::Write;
use std::str::FromStr;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use vm_memory::{Bytes, GuestAddress};

use super::view::View;
use crate::replay::hex;
use crate::timeline::read_virtual;

/// Bytes that are shown of one place, at most.
const MAX_LENGTH: usize = 16 << 20;

/// An address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Virtual(u64),
    Physical(u64),
}

/// A number, decimal or with 0x.
fn number(text: &str) -> Result<u64> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| anyhow::anyhow!("`{text}` is no number: give it like 4096 or 0x1000"))
}

/// A length in bytes.
pub fn length(text: &str) -> Result<usize> {
    let length = number(text)?;
    ensure!(
        (1..=MAX_LENGTH as u64).contains(&length),
        "{length} bytes cannot be shown: give 1 to {MAX_LENGTH}; export-memory has all of it"
    );
    Ok(length as usize)
}

impl FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text.strip_prefix("phys:") {
            Some(physical) => Self::Physical(number(physical)?),
            None => Self::Virtual(number(text)?),
        })
    }
}

/// What is there.
pub struct Dump {
    place: Place,
    wanted: usize,
    bytes: Vec<u8>,
}

impl Dump {
    /// Reads it; what is not there is missing at the end.
    pub fn of(view: &View<'_>, place: Place, length: usize) -> Self {
        let mut bytes = vec![0; length];
        let have = match place {
            Place::Virtual(address) => read_virtual(view.ram, &view.sregs, address, &mut bytes),
            Place::Physical(address) => view.ram.read(&mut bytes, GuestAddress(address)).unwrap_or(0),
        };
        bytes.truncate(have);
        Self {
            place,
            wanted: length,
            bytes,
        }
    }

    pub fn json(&self) -> Value {
        let (space, address) = match self.place {
            Place::Virtual(address) => ("virtual", address),
            Place::Physical(address) => ("physical", address),
        };
        json!({
            "space": space,
            "address": format!("{address:#x}"),
            "wanted": self.wanted,
            "bytes": hex(&self.bytes),
        })
    }

    pub fn text(&self) -> String {
        let (prefix, start) = match self.place {
            Place::Virtual(address) => ("", address),
            Place::Physical(address) => ("phys:", address),
        };
        let mut out = String::new();
        for (index, line) in self.bytes.chunks(16).enumerate() {
            let codes: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            let shown: String = line
                .iter()
                .map(|&byte| if (32..127).contains(&byte) { byte as char } else { '.' })
                .collect();
            let address = start.wrapping_add(16 * index as u64);
            // A string takes all that is written.
            let _ = writeln!(out, "{prefix}{address:016x}  {:<47}  {shown}", codes.join(" "));
        }
        if self.bytes.len() < self.wanted {
            let at = start.wrapping_add(self.bytes.len() as u64);
            let _ = writeln!(out, "{prefix}{at:016x}  nothing is mapped here");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_lengths() {
        assert_eq!(
            "0xffffffff81000000".parse::<Place>().unwrap(),
            Place::Virtual(0xffff_ffff_8100_0000)
        );
        assert_eq!("phys:4096".parse::<Place>().unwrap(), Place::Physical(4096));
        for bad in ["", "phys:", "0x", "x", "-1", "phys:0xg"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
        assert_eq!(length("0x10").unwrap(), 16);
        assert!(length("0").is_err() && length("0x1000001").is_err());
    }
}
