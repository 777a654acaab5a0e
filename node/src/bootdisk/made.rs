//! Disks for tests: partition tables, and file systems made by mkfs.ext4 where it is there.

// A test that is skipped says so.
#![expect(clippy::print_stderr)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

/// Bytes.
pub const MIB: u64 = 1 << 20;

/// A partition table, right or wrong.
#[derive(Clone)]
pub struct Gpt {
    /// Number, first and last sector.
    pub entries: Vec<(usize, u64, u64)>,
    pub root: Option<usize>,
    pub count: u32,
    pub entry_bytes: u32,
    pub table: u64,
    pub header_bytes: u32,
    pub spoil_header: bool,
    pub spoil_entries: bool,
}

impl Gpt {
    pub fn new(entries: &[(usize, u64, u64)]) -> Self {
        Self {
            entries: entries.to_vec(),
            root: None,
            count: 128,
            entry_bytes: 128,
            table: 2,
            header_bytes: 92,
            spoil_header: false,
            spoil_entries: false,
        }
    }

    /// This one is a root file system's.
    pub fn root(mut self, number: usize) -> Self {
        self.root = Some(number);
        self
    }

    pub fn write(&self, file: &File) {
        let mut table = vec![0; 128 * 128];
        for (number, first, last) in &self.entries {
            let entry = &mut table[(number - 1) * 128..][..128];
            entry[..16].fill(0xaa);
            if self.root == Some(*number) {
                let kind = [0x4f68_bce3_u32.to_le_bytes(), [0xcd, 0xe8, 0xb1, 0x4d]].concat();
                entry[..8].copy_from_slice(&kind);
                entry[8..16].copy_from_slice(&[0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09]);
            }
            let name: Vec<u8> = (0..16)
                .map(|byte| if byte == 0 { *number as u8 } else { byte })
                .collect();
            entry[16..32].copy_from_slice(&name);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
        }
        let mut header = [0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[12..16].copy_from_slice(&self.header_bytes.to_le_bytes());
        header[72..80].copy_from_slice(&self.table.to_le_bytes());
        header[80..84].copy_from_slice(&self.count.to_le_bytes());
        header[84..88].copy_from_slice(&self.entry_bytes.to_le_bytes());
        header[88..92].copy_from_slice(&crc32fast::hash(&table).to_le_bytes());
        let sum = crc32fast::hash(&header[..92]) ^ u32::from(self.spoil_header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        table[0] ^= u8::from(self.spoil_entries);
        let mut first = [0; 512];
        (first[450], first[510], first[511]) = (0xee, 0x55, 0xaa);
        first[454] = 1;
        first[458..462].fill(0xff);
        file.write_all_at(&first, 0).unwrap();
        file.write_all_at(&header, 512).unwrap();
        file.write_all_at(&table, 1024).unwrap();
    }
}

/// Makes a file system of `mib` with what is in `directory`. False, and a word about it, where there is no mkfs.ext4.
pub fn ext4(path: &Path, directory: &Path, mib: u64, options: &[&str]) -> bool {
    let paths = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-d"])
        .arg(directory)
        .args(options)
        .arg(path)
        .arg(format!("{mib}M"))
        .env("PATH", paths)
        .output();
    match made {
        Err(error) => {
            eprintln!("SKIPPED: mkfs.ext4: {error}");
            false
        }
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            true
        }
    }
}

/// Puts a file's bytes into a disk.
pub fn put(disk: &File, at: u64, file: &Path) {
    disk.write_all_at(&std::fs::read(file).unwrap(), at).unwrap();
}
