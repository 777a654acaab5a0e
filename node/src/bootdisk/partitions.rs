//! Partition tables: GPT (UEFI specification 2.10, section 5.3), MBR with logical partitions, and none.
//!
//! Invariants: no partition ends beyond the disk, and no two overlap: what a table says against that is refused.

use std::io;

use super::contents::{self, Contents};
use super::refusal::Refusal;
use super::window::Window;

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Bytes of a table of GPT's, at most: eight times what tools make.
const MAX_TABLE: u64 = 8 * 128 * 128;
/// Logical partitions, at most.
const MAX_LOGICAL: usize = 60;
/// `SD_GPT_ROOT_X86_64` of the Discoverable Partitions Specification.
const ROOT_X86_64: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";

/// A partition, or the whole disk.
pub struct Partition {
    /// Its number, from 1; 0: the whole disk is one file system.
    pub number: u32,
    /// What the kernel calls it by (`root=PARTUUID=`); without one it is the whole disk.
    pub uuid: Option<String>,
    /// The table says that it is a root file system for x86-64.
    pub is_root: bool,
    /// Where it lies.
    pub window: Window,
    /// What it holds.
    pub contents: Contents,
}

impl Partition {
    /// For people.
    pub fn name(&self) -> String {
        match self.number {
            0 => "the whole of it (no partition table)".into(),
            number => format!("partition {number}"),
        }
    }

    /// What the kernel's command line names it by.
    pub fn root_word(&self) -> String {
        self.uuid
            .as_ref()
            .map_or_else(|| "root=/dev/vda".into(), |uuid| format!("root=PARTUUID={uuid}"))
    }
}

/// A partition as a table has it.
struct Entry {
    number: u32,
    uuid: String,
    is_root: bool,
    /// In sectors.
    first: u64,
    /// See above.
    sectors: u64,
}

/// The partitions of a disk, in the order of their numbers.
pub fn of(disk: &Window) -> Result<Vec<Partition>, Refusal> {
    let unreadable = |error: io::Error| Refusal::new("the disk", format!("it cannot be read: {error}"));
    let begin = disk
        .bytes_at::<1024>(0)
        .map_err(|_| Refusal::new("the disk", "it is too small to have a partition table or a file system"))?;
    let entries = if &begin[512..520] == b"EFI PART" {
        gpt(disk, &begin[512..])?
    } else {
        let contents = contents::of(disk).map_err(unreadable)?;
        if begin[510..512] != [0x55, 0xaa] || !matches!(contents, Contents::Unknown { .. }) {
            let whole = Partition {
                number: 0,
                uuid: None,
                is_root: false,
                window: disk.clone(),
                contents,
            };
            return Ok(vec![whole]);
        }
        mbr(disk, &begin[..512])?
    };
    check_apart(&entries)?;
    let partition = |entry: Entry| {
        let place = entry.first.checked_mul(SECTOR).zip(entry.sectors.checked_mul(SECTOR));
        let window = place
            .and_then(|(start, bytes)| disk.part(start, bytes))
            .ok_or_else(|| {
                let why = format!(
                    "the partition table has it end beyond the disk, which has {} bytes",
                    disk.bytes()
                );
                Refusal::new(format!("partition {}", entry.number), why)
                    .or("is the image cut off? Copy it anew, or mend the table (`sfdisk --verify IMAGE`)")
            })?;
        Ok(Partition {
            number: entry.number,
            uuid: Some(entry.uuid),
            is_root: entry.is_root,
            contents: contents::of(&window).map_err(unreadable)?,
            window,
        })
    };
    entries.into_iter().map(partition).collect()
}

fn check_apart(entries: &[Entry]) -> Result<(), Refusal> {
    let mut by_place: Vec<&Entry> = entries.iter().collect();
    by_place.sort_by_key(|entry| entry.first);
    for pair in by_place.windows(2) {
        if pair[0].first.saturating_add(pair[0].sectors) > pair[1].first {
            let at = format!("partitions {} and {}", pair[0].number, pair[1].number);
            return Err(Refusal::new(at, "they overlap")
                .or("mend the partition table (`sfdisk --verify IMAGE` tells what is wrong)"));
        }
    }
    Ok(())
}

fn damaged(why: impl Into<String>) -> Refusal {
    Refusal::new("the partition table", why)
        .or("is the image cut off? Copy it anew, or mend the table (`sgdisk --verify IMAGE`, `sfdisk --verify IMAGE`)")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let part = bytes.get(at..at + 4).and_then(|part| part.try_into().ok());
    u32::from_le_bytes(part.unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// As the kernel and udev write it: the first three fields are little-endian.
fn guid(bytes: &[u8]) -> String {
    let rest = bytes[8..16].iter().fold(0, |rest, byte| rest << 8 | u64::from(*byte));
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        u32_at(bytes, 0),
        u32_at(bytes, 4) & 0xffff,
        u32_at(bytes, 4) >> 16,
        rest >> 48,
        rest & 0xffff_ffff_ffff
    )
}

/// `header`: the sector with the primary header.
fn gpt(disk: &Window, header: &[u8]) -> Result<Vec<Entry>, Refusal> {
    let size = u32_at(header, 12) as usize;
    if !(92..=512).contains(&size) {
        return Err(damaged(format!("its header says that it has {size} bytes")));
    }
    let mut summed = header[..size].to_vec();
    summed[16..20].fill(0);
    if crc32fast::hash(&summed) != u32_at(header, 16) {
        return Err(damaged("the checksum of its header (GPT) is wrong"));
    }
    let (count, bytes) = (u64::from(u32_at(header, 80)), u64::from(u32_at(header, 84)));
    if bytes < 128 || count * bytes > MAX_TABLE {
        return Err(damaged(format!("it has {count} entries of {bytes} bytes")));
    }
    let mut table = vec![0; (count * bytes) as usize];
    let read = u64_at(header, 72)
        .checked_mul(SECTOR)
        .ok_or_else(|| io::Error::other("it lies nowhere"))
        .and_then(|at| disk.read(at, &mut table));
    read.map_err(|error| damaged(format!("its entries cannot be read: {error}")))?;
    if crc32fast::hash(&table) != u32_at(header, 88) {
        return Err(damaged("the checksum of its entries (GPT) is wrong"));
    }
    let mut entries = Vec::new();
    for (number, entry) in (1..).zip(table.chunks_exact(bytes as usize)) {
        if entry[..16].iter().all(|byte| *byte == 0) {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let Some(sectors) = last.checked_sub(first).and_then(|sectors| sectors.checked_add(1)) else {
            return Err(damaged(format!("partition {number} ends before it begins")));
        };
        entries.push(Entry {
            number,
            uuid: guid(&entry[16..32]),
            is_root: guid(entry) == ROOT_X86_64,
            first,
            sectors,
        });
    }
    Ok(entries)
}

/// What an entry of an MBR says: its type, first sector (from a place that depends on the type) and sectors.
fn slots(sector: &[u8]) -> [(u8, u64, u64); 4] {
    [446, 462, 478, 494].map(|at| {
        let place = |offset| u64::from(u32_at(sector, at + offset));
        (sector[at + 4], place(8), place(12))
    })
}

fn is_extended(kind: u8) -> bool {
    matches!(kind, 0x05 | 0x0f | 0x85)
}

/// `sector`: the first one.
fn mbr(disk: &Window, sector: &[u8]) -> Result<Vec<Entry>, Refusal> {
    let signature = u32_at(sector, 440);
    let entry = |number: u32, first, sectors| Entry {
        number,
        uuid: format!("{signature:08x}-{number:02x}"),
        is_root: false,
        first,
        sectors,
    };
    let mut entries = Vec::new();
    let mut extended = None;
    for (number, (kind, first, sectors)) in (1..).zip(slots(sector)) {
        match kind {
            _ if sectors == 0 => {}
            0 => {}
            0xee => {
                return Err(damaged(
                    "it is GPT's, whose header is not in the second sector of 512 bytes",
                ));
            }
            kind if is_extended(kind) => extended = Some(first),
            _ => entries.push(entry(number, first, sectors)),
        }
    }
    let Some(base) = extended else { return Ok(entries) };
    let mut at = base;
    for number in 5.. {
        // A chain that leads back into itself has no end.
        if number as usize >= 5 + MAX_LOGICAL {
            return Err(damaged(format!("it has more than {MAX_LOGICAL} logical partitions")));
        }
        let read = at.checked_mul(SECTOR).map(|at| disk.bytes_at::<512>(at));
        let sector = match read {
            Some(Ok(sector)) if sector[510..] == [0x55, 0xaa] => sector,
            Some(Err(error)) => return Err(damaged(format!("logical partition {number} cannot be read: {error}"))),
            _ => {
                return Err(damaged(format!(
                    "there is none for logical partition {number} at sector {at}"
                )));
            }
        };
        let [(kind, first, sectors), (next_kind, next, _), ..] = slots(&sector);
        if kind != 0 && sectors != 0 {
            entries.push(entry(number, at + first, sectors));
        }
        if !is_extended(next_kind) {
            break;
        }
        at = base + next;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests;
