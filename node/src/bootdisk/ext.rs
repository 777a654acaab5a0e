//! ext2, ext3 and ext4, read by `ext4-view`, which replays the journal in memory and writes nothing.
//!
//! That crate trusts some sizes that a file system names: they are looked at here before it sees them, so that what is made
//! up to harm takes neither more memory than its journal may have, nor a panic for an answer. How long it may take says who
//! calls.

use std::io;

use ext4_view::{Ext4, Ext4Error, File};

use super::refusal::{GIVE_FILES, Refusal};
use super::tree::{FileSystem, Node};
use super::window::Window;

/// log2 of the largest block, less 10: 64 KiB, the largest that ext4 has.
const MAX_BLOCK_EXPONENT: u32 = 6;
/// Block groups: 128 TiB of blocks of 4 KiB.
const MAX_GROUPS: u64 = 1 << 20;
/// Bytes of a journal that is replayed; mkfs makes none that is larger.
const MAX_JOURNAL: u64 = 1 << 30;
/// Bytes of a file that are read at once.
const PIECE: u64 = 1 << 20;
/// The journal's inode.
const JOURNAL_INODE: u32 = 8;
/// Bytes of a symbolic link's target: less than a page.
const MAX_LINK: u64 = 4095;
/// Names in a directory.
const MAX_NAMES: usize = 100_000;
/// Of `s_feature_incompat`: the journal is to be replayed.
const RECOVERY: u32 = 4;
/// Of `s_feature_incompat`: block group descriptors are larger.
const IS_64BIT: u32 = 0x80;

/// A file system.
pub struct Ext {
    system: Ext4,
    /// Its partition, for people.
    name: String,
}

impl Ext {
    /// Opens it; `name` is its partition's, for people.
    pub fn open(window: &Window, name: &str) -> Result<Self, Refusal> {
        check(window).map_err(|why| damaged(name, why))?;
        let system = Ext4::load(Box::new(window.clone())).map_err(|error| refused(name, "", &error))?;
        Ok(Self {
            system,
            name: name.into(),
        })
    }

    /// Gives `each` a regular file of `bytes` bytes, piece by piece, for as long as it wants more.
    pub fn copy(&self, path: &str, bytes: u64, each: &mut dyn FnMut(Vec<u8>) -> bool) -> Result<(), Refusal> {
        let mut file = self.system.open(path).map_err(|error| self.refused(path, &error))?;
        let mut left = bytes;
        while left > 0 {
            let mut data = vec![0; left.min(PIECE) as usize];
            self.fill(path, &mut file, &mut data)?;
            left -= data.len() as u64;
            if !each(data) {
                break;
            }
        }
        Ok(())
    }

    fn fill(&self, path: &str, file: &mut File, data: &mut [u8]) -> Result<(), Refusal> {
        let mut filled = 0;
        while filled < data.len() {
            match file.read_bytes(&mut data[filled..]) {
                Ok(0) => {
                    let why = format!("{path} ends before its {} bytes", file.metadata().len());
                    return Err(damaged(&self.name, why));
                }
                Ok(read) => filled += read,
                Err(error) => return Err(self.refused(path, &error)),
            }
        }
        Ok(())
    }

    fn refused(&self, path: &str, error: &Ext4Error) -> Refusal {
        refused(&self.name, path, error)
    }
}

impl FileSystem for Ext {
    fn look(&self, path: &str) -> Result<Option<Node>, Refusal> {
        let metadata = match self.system.symlink_metadata(path) {
            Err(Ext4Error::NotFound | Ext4Error::NotADirectory | Ext4Error::MalformedPath) => return Ok(None),
            found => found.map_err(|error| self.refused(path, &error))?,
        };
        Ok(Some(if metadata.is_dir() {
            Node::Directory
        } else if metadata.is_symlink() {
            if metadata.len() > MAX_LINK {
                return Err(damaged(
                    &self.name,
                    format!("{path} is a symbolic link of {} bytes", metadata.len()),
                ));
            }
            let target = self
                .system
                .read_link(path)
                .map_err(|error| self.refused(path, &error))?;
            let target = target
                .to_str()
                .map_err(|_| damaged(&self.name, format!("{path} leads to what is not UTF-8")))?;
            Node::Link(target.into())
        } else if metadata.file_type().is_regular_file() {
            Node::File(metadata.len())
        } else {
            Node::Other
        }))
    }

    fn names(&self, path: &str) -> Result<Vec<String>, Refusal> {
        let entries = self.system.read_dir(path).map_err(|error| self.refused(path, &error))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| self.refused(path, &error))?;
            if names.len() == MAX_NAMES {
                return Err(damaged(&self.name, format!("{path} has more than {MAX_NAMES} names")));
            }
            if let Ok(name) = entry.file_name().as_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, Refusal> {
        let mut file = self.system.open(path).map_err(|error| self.refused(path, &error))?;
        let bytes = file.metadata().len();
        if bytes > limit {
            return Err(Refusal::new(
                path,
                format!("it has {bytes} bytes, and may have {limit}"),
            ));
        }
        let mut data = vec![0; bytes as usize];
        self.fill(path, &mut file, &mut data)?;
        Ok(data)
    }
}

fn damaged(name: &str, why: impl std::fmt::Display) -> Refusal {
    Refusal::new(name, format!("its file system (ext4) is damaged: {why}")).or(format!(
        "let e2fsck mend it (losetup -fP IMAGE; e2fsck -f on the partition), or {GIVE_FILES}"
    ))
}

fn refused(name: &str, path: &str, error: &Ext4Error) -> Refusal {
    let at = if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path} in {name}")
    };
    match error {
        Ext4Error::Corrupt(_) => damaged(name, format!("{path} {error}").trim_start()),
        Ext4Error::Incompatible(_) => {
            Refusal::new(at, format!("its file system has features that are not read: {error}")).or(format!(
                "mount and unmount it, so that its journal is empty; or {GIVE_FILES}"
            ))
        }
        Ext4Error::Encrypted => Refusal::new(at, "it is encrypted"),
        error => Refusal::new(at, format!("it cannot be read: {error}")),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(bytes[at]) | u64::from(bytes[at + 1]) << 8
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    (u16_at(bytes, at) | u16_at(bytes, at + 2) << 16) as u32
}

/// Looks at what the superblock says of sizes (Linux, Documentation/filesystems/ext4: super, group_descr, inodes).
fn check(window: &Window) -> Result<(), String> {
    let read = |error: io::Error| error.to_string();
    let block = window.bytes_at::<1024>(1024).map_err(read)?;
    let field = |at| u64::from(u32_at(&block, at));
    let exponent = u32_at(&block, 0x18);
    if exponent > MAX_BLOCK_EXPONENT {
        return Err(format!("blocks of 2^{} bytes", u64::from(exponent) + 10));
    }
    let block_bytes = 1024 << exponent;
    let features = u32_at(&block, 0x60);
    let wide = features & IS_64BIT != 0;
    let blocks = field(4) | field(0x150) << 32;
    let bytes = blocks.checked_mul(block_bytes);
    if bytes.is_none_or(|bytes| bytes > window.bytes()) {
        return Err(format!(
            "it has {blocks} blocks of {block_bytes} bytes, and what it lies in {} bytes",
            window.bytes()
        ));
    }
    let groups = blocks.div_ceil(field(0x20).max(1));
    if groups > MAX_GROUPS {
        return Err(format!("{groups} block groups"));
    }
    if features & RECOVERY == 0 {
        return Ok(());
    }
    if u32_at(&block, 0xe0) != JOURNAL_INODE {
        return Err(format!("its journal is inode {}", u32_at(&block, 0xe0)));
    }
    let descriptors = if block_bytes == 1024 { 2048 } else { block_bytes };
    let descriptor = window.bytes_at::<64>(descriptors).map_err(read)?;
    let table = u64::from(u32_at(&descriptor, 8))
        | if wide {
            u64::from(u32_at(&descriptor, 0x28)) << 32
        } else {
            0
        };
    let place = table
        .checked_mul(block_bytes)
        .and_then(|at| at.checked_add(u64::from(JOURNAL_INODE - 1) * u16_at(&block, 0x58)))
        .ok_or("its inodes lie nowhere")?;
    let inode = window.bytes_at::<128>(place).map_err(read)?;
    let journal = u64::from(u32_at(&inode, 4)) | u64::from(u32_at(&inode, 0x6c)) << 32;
    if journal > MAX_JOURNAL {
        return Err(format!("its journal has {journal} bytes"));
    }
    Ok(())
}
