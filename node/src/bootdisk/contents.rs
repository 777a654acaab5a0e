//! What a partition holds, by its magic.

use std::io;

use super::window::Window;

/// Bytes from the beginning that say what it is.
const HEAD: u64 = 0x1_0048;

/// What a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing that is known; `blank`: all zeroes.
    Unknown {
        /// Its beginning is all zeroes.
        blank: bool,
    },
    /// ext2, ext3 or ext4, which is read.
    Ext,
    /// FAT: an EFI system partition, mostly. Passed over.
    Fat,
    /// Swap. Passed over.
    Swap,
    /// Something that is not read, with its name.
    Foreign(&'static str),
}

/// Where a magic stands, the magic, and whose it is.
const MAGICS: &[(usize, &[u8], Contents)] = &[
    (0, b"LUKS\xba\xbe", Contents::Foreign("LUKS (encrypted)")),
    (0, b"XFSB", Contents::Foreign("xfs")),
    (0x1_0040, b"_BHRfS_M", Contents::Foreign("btrfs")),
    (0x200, b"LABELONE", Contents::Foreign("an LVM physical volume")),
    (0, b"LABELONE", Contents::Foreign("an LVM physical volume")),
    (
        0x1000,
        b"\xfc\x4e\x2b\xa9",
        Contents::Foreign("a member of a RAID (md)"),
    ),
    (0, b"\xfc\x4e\x2b\xa9", Contents::Foreign("a member of a RAID (md)")),
    (0x400, b"\x10\x20\xf5\xf2", Contents::Foreign("f2fs")),
    (0x400, b"\xe2\xe1\xf5\xe0", Contents::Foreign("erofs")),
    (0, b"hsqs", Contents::Foreign("squashfs")),
    (0x8001, b"CD001", Contents::Foreign("an ISO 9660 image")),
    (3, b"NTFS    ", Contents::Foreign("NTFS")),
    (3, b"-FVE-FS-", Contents::Foreign("BitLocker (encrypted)")),
    (0xff6, b"SWAPSPACE2", Contents::Swap),
    (0x36, b"FAT", Contents::Fat),
    (0x52, b"FAT", Contents::Fat),
    // Last: what else stands beside it says more.
    (0x438, b"\x53\xef", Contents::Ext),
];

/// What it holds.
pub fn of(window: &Window) -> io::Result<Contents> {
    let mut head = vec![0; window.bytes().min(HEAD) as usize];
    window.read(0, &mut head)?;
    let found = MAGICS
        .iter()
        .find(|(at, magic, _)| head.get(*at..at + magic.len()) == Some(magic));
    Ok(found.map_or_else(
        || Contents::Unknown {
            blank: head.iter().all(|byte| *byte == 0),
        },
        |(.., contents)| *contents,
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn each_is_known_by_its_magic() {
        for (at, magic, contents) in MAGICS {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 20).unwrap();
            file.write_all_at(magic, *at as u64).unwrap();
            let window = Window::whole(file, 1 << 20).unwrap();
            assert_eq!(of(&window).unwrap(), *contents, "{magic:?}");
        }
        let file = tempfile::tempfile().unwrap();
        file.set_len(512).unwrap();
        let blank = Window::whole(file.try_clone().unwrap(), 1 << 20).unwrap();
        assert_eq!(of(&blank).unwrap(), Contents::Unknown { blank: true });
        file.write_all_at(b"text", 0).unwrap();
        let other = Window::whole(file, 1 << 20).unwrap();
        assert_eq!(of(&other).unwrap(), Contents::Unknown { blank: false });
    }
}
