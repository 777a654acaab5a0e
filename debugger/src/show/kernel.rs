//! What `vmlinux` tells of a Linux guest: symbols, and the layout of structures from its DWARF.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lockstep_proto::Identity;
use object::{Object, ObjectSection, ObjectSymbol};

use super::layout::{Offsets, offsets};
use super::view::View;
use crate::vmlinux::Vmlinux;

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
    /// Variables by address, with their sizes.
    variables: Vec<(u64, u64, String)>,
    offsets: Offsets,
    /// Where the kernel's version text lies, and its bytes.
    banner: Option<(u64, Vec<u8>)>,
    /// The recording's identity has this kernel's digest.
    is_sure: bool,
}

impl Kernel {
    /// Reads a vmlinux, which is the recorded kernel's if the recording's identity tells which that is.
    pub fn of(vmlinux: &Vmlinux, identity: &Identity) -> Result<Self> {
        let Vmlinux { path, bytes, .. } = vmlinux;
        let file = object::File::parse(&**bytes).with_context(|| format!("{} is no ELF file", path.display()))?;
        let mut symbols = HashMap::new();
        let mut functions = Vec::new();
        let mut variables = Vec::new();
        for symbol in file.symbols() {
            let Ok(name) = symbol.name() else { continue };
            if symbol.kind() == object::SymbolKind::Text {
                functions.push((symbol.address(), name.to_owned()));
            }
            if symbol.kind() == object::SymbolKind::Data {
                variables.push((symbol.address(), symbol.size(), name.to_owned()));
            }
            symbols.insert(name.to_owned(), symbol.address());
        }
        functions.sort();
        variables.sort();
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
            variables,
            offsets: offsets(&file, &WANTED).with_context(|| format!("the DWARF of {} is damaged", path.display()))?,
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

    /// `name` or `name+0x12`, of a function or a variable that has this address.
    pub fn named(&self, address: u64) -> Option<String> {
        let after = self.variables.partition_point(|entry| entry.0 <= address);
        let variable = after.checked_sub(1).and_then(|index| self.variables.get(index));
        let (name, offset) = match variable {
            Some((start, size, name)) if address - start < *size => (name.as_str(), address - start),
            _ => self.function(address)?,
        };
        Some(if offset == 0 {
            name.to_owned()
        } else {
            format!("{name}+{offset:#x}")
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
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
