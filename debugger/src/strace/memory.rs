//! The guest's memory as a system call sees it.

use crate::quote::quoted;

/// Bytes of a buffer that are shown.
const MOST_BYTES: usize = 32;
/// Bytes of a path: Linux has none that is longer.
const MOST_TEXT: usize = 4096;

/// Memory by virtual address.
pub trait Memory {
    /// Reads as much of `data` as there is; returns how many bytes.
    fn read(&self, address: u64, data: &mut [u8]) -> usize;
}

/// So many bytes, if they are there.
pub fn bytes<const N: usize>(memory: &dyn Memory, address: u64) -> Option<[u8; N]> {
    let mut found = [0; N];
    (address != 0 && memory.read(address, &mut found) == N).then_some(found)
}

/// 32 bits in a structure; 0 behind its end.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}

/// 64 bits in a structure; 0 behind its end.
pub fn double(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

/// `NULL`, or the address.
pub fn pointer(address: u64) -> String {
    if address == 0 {
        "NULL".into()
    } else {
        format!("{address:#x}")
    }
}

/// A path in the guest's memory.
pub fn text(memory: &dyn Memory, address: u64) -> String {
    text_up_to(memory, address, MOST_TEXT)
}

/// A word of a command line.
pub fn short_text(memory: &dyn Memory, address: u64) -> String {
    text_up_to(memory, address, MOST_BYTES)
}

fn text_up_to(memory: &dyn Memory, address: u64, most: usize) -> String {
    if address == 0 {
        return "NULL".into();
    }
    let mut found = Vec::new();
    while found.len() < most {
        // Up to the end of the page: the next one may not be there.
        let at = address.wrapping_add(found.len() as u64);
        let mut piece = vec![0; (0x1000 - (at & 0xfff) as usize).min(most - found.len())];
        let length = memory.read(at, &mut piece);
        let end = piece[..length].iter().position(|&byte| byte == 0);
        found.extend(&piece[..end.unwrap_or(length)]);
        if end.is_some() {
            return quoted(&found, false);
        }
        if length < piece.len() {
            // A text that leaves memory is none.
            return pointer(address);
        }
    }
    let has_more = bytes::<1>(memory, address.wrapping_add(most as u64)) != Some([0]);
    quoted(&found, has_more)
}

/// Bytes in the guest's memory.
pub fn buffer(memory: &dyn Memory, address: u64, length: u64) -> String {
    if address == 0 {
        return "NULL".into();
    }
    let mut found = vec![0; length.min(MOST_BYTES as u64) as usize];
    if memory.read(address, &mut found) < found.len() {
        return pointer(address);
    }
    quoted(&found, length > MOST_BYTES as u64)
}
