//! Whole disks, from file systems that mkfs.ext4 makes.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;

use tempfile::TempDir;

use super::made::{Gpt, MIB, ext4, put};
use super::*;

const MEMORY: u64 = 256 * MIB;

/// A directory with a guest's files in it, and images beside it.
struct Guest {
    directory: TempDir,
}

impl Guest {
    fn new() -> Self {
        let guest = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(guest.root().join("boot")).unwrap();
        guest
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// A kernel and an initrd with links to them.
    fn linked() -> Self {
        let guest = Self::new();
        let kernel: Vec<u8> = (0..3_000_000_u32).map(|byte| (byte % 251) as u8).collect();
        fs::write(guest.root().join("boot/vmlinuz-1"), kernel).unwrap();
        fs::write(guest.root().join("boot/initrd.img-1"), "initrd").unwrap();
        symlink("boot/vmlinuz-1", guest.root().join("vmlinuz")).unwrap();
        symlink("/boot/initrd.img-1", guest.root().join("initrd.img")).unwrap();
        guest
    }

    /// Makes an image of it all, or says that it cannot.
    fn make(&self, options: &[&str]) -> bool {
        ext4(&self.image(), &self.root(), 24, options)
    }

    fn open(&self) -> File {
        File::options().read(true).write(true).open(self.image()).unwrap()
    }

    fn found(&self) -> Result<Found, Refusal> {
        in_file(self.open(), MEMORY)
    }

    fn check(&self, found: &Found) {
        assert!(found.kernel == fs::read(self.root().join("boot/vmlinuz-1")).unwrap());
        assert_eq!(found.initrd.as_deref(), Some(&b"initrd"[..]));
    }
}

fn refusal(result: Result<Found, Refusal>) -> String {
    match result {
        Err(error) => error.to_string(),
        Ok(found) => panic!("{} is found", found.kernel_path),
    }
}

#[test]
fn a_disk_that_is_one_file_system_is_read_whatever_its_features() {
    for options in [
        &[][..],
        &["-O", "^has_journal,^metadata_csum,^64bit"],
        &["-O", "^extents,^64bit"],
        &["-b", "1024", "-I", "128", "-O", "^metadata_csum"],
        &["-b", "2048"],
    ] {
        let guest = Guest::linked();
        if !guest.make(options) {
            return;
        }
        let found = guest.found().unwrap();
        guest.check(&found);
        assert_eq!(found.words, "root=/dev/vda ro", "{options:?}");
        assert_eq!(found.kernel_path, "/boot/vmlinuz-1");
        let path = look_up(&guest.image(), MEMORY).unwrap();
        assert!(path == found);
    }
}

#[test]
fn partitions_are_looked_through_for_root_and_boot() {
    let guest = Guest::linked();
    if !guest.make(&[]) {
        return;
    }
    let boot = tempfile::tempdir().unwrap();
    fs::create_dir(boot.path().join("grub")).unwrap();
    fs::write(boot.path().join("vmlinuz-1"), "of /boot").unwrap();
    let boot_image = guest.directory.path().join("boot-image");
    assert!(ext4(&boot_image, boot.path(), 4, &[]));
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(64 * MIB).unwrap();
    let gpt = Gpt::new(&[
        (1, 2048, 2048 + 24 * 2048 - 1),
        (2, 30 * 2048, 34 * 2048 - 1),
        (3, 40 * 2048, 60 * 2048),
    ]);
    gpt.write(&disk);
    put(&disk, MIB, &guest.image());
    disk.write_all_at(b"XFSB", 40 * MIB).unwrap();
    let whole = in_file(disk.try_clone().unwrap(), MEMORY).unwrap();
    guest.check(&whole);
    assert!(whole.words.starts_with("root=PARTUUID=03020101-"), "{}", whole.words);
    // The same root without a kernel of its own: that is on the other partition.
    fs::remove_file(guest.root().join("boot/vmlinuz-1")).unwrap();
    fs::remove_file(guest.root().join("initrd.img")).unwrap();
    assert!(guest.make(&[]));
    put(&disk, MIB, &guest.image());
    put(&disk, 30 * MIB, &boot_image);
    let apart = in_file(disk.try_clone().unwrap(), MEMORY).unwrap();
    assert_eq!(apart.kernel, b"of /boot");
    assert!(
        apart.how.contains("root: partition 1, /boot: partition 2"),
        "{}",
        apart.how
    );
    // Two roots, and one that the table says is it.
    let gpt = Gpt::new(&[(1, 2048, 2048 + 24 * 2048 - 1), (3, 40 * 2048, 64 * 2048 - 1)]);
    gpt.write(&disk);
    let other = Guest::linked();
    assert!(other.make(&[]));
    put(&disk, 40 * MIB, &other.image());
    let error = refusal(in_file(disk.try_clone().unwrap(), MEMORY));
    assert!(
        error.contains("partition 1, partition 3") && error.contains("8304"),
        "{error}"
    );
    gpt.root(3).write(&disk);
    other.check(&in_file(disk, MEMORY).unwrap());
}

#[test]
fn what_is_not_read_is_refused_with_its_name() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 * MIB).unwrap();
    let error = refusal(in_file(file.try_clone().unwrap(), MEMORY));
    assert!(error.contains("blank"), "{error}");
    Gpt::new(&[(1, 2048, 4095), (2, 4096, 8191)]).write(&file);
    file.write_all_at(b"LUKS\xba\xbe", MIB).unwrap();
    file.write_all_at(b"_BHRfS_M", 2 * MIB + 0x1_0040).unwrap();
    let error = refusal(in_file(file, MEMORY));
    for said in [
        "partition 1 is LUKS",
        "partition 2 is btrfs",
        "/boot",
        "`kernel` and `initrd`",
    ] {
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn sizes_are_bounded_before_there_is_memory_for_them() {
    let guest = Guest::linked();
    let kernel = guest.root().join("boot/vmlinuz-1");
    File::options()
        .write(true)
        .open(&kernel)
        .unwrap()
        .set_len((512 << 20) + 1)
        .unwrap();
    if !guest.make(&[]) {
        return;
    }
    let error = refusal(guest.found());
    assert!(error.contains("/boot/vmlinuz-1: it has 536870913 bytes"), "{error}");
    let guest = Guest::linked();
    let initrd = guest.root().join("boot/initrd.img-1");
    File::options()
        .write(true)
        .open(initrd)
        .unwrap()
        .set_len(MEMORY + 1)
        .unwrap();
    assert!(guest.make(&[]));
    let error = refusal(guest.found());
    assert!(
        error.contains("initrd.img-1") && error.contains("memory-mib"),
        "{error}"
    );
}

#[test]
fn links_that_go_round_are_refused() {
    let guest = Guest::new();
    symlink("b", guest.root().join("vmlinuz")).unwrap();
    symlink("vmlinuz/../vmlinuz", guest.root().join("b")).unwrap();
    if guest.make(&[]) {
        assert!(refusal(guest.found()).contains("too many"));
    }
}

#[test]
fn a_reader_that_never_ends_or_panics_is_an_error() {
    let (forever, held) = bounded::<()>(0);
    let waits = move || {
        let _ = held.recv();
        Err(Refusal::new("", ""))
    };
    let error = refusal(within(Duration::from_millis(1), waits).unwrap());
    assert!(error.contains("could not be read in"), "{error}");
    drop(forever);
    let error = refusal(within(PATIENCE, || panic!("as a damaged file system might have it")).unwrap());
    assert!(error.contains("its reader failed"), "{error}");
}

/// Where the superblock has a field, and the checksum that covers it.
fn with_superblock(guest: &Guest, fields: &[(u64, u32)]) -> String {
    let file = guest.open();
    for (at, value) in fields {
        file.write_all_at(&value.to_le_bytes(), 1024 + at).unwrap();
    }
    refusal(guest.found())
}

#[test]
fn a_file_system_that_lies_about_its_sizes_is_refused() {
    for (fields, said) in [
        (&[(0x18, 21)][..], "blocks of 2^31"),
        (&[(0x18, u32::MAX)], "blocks of 2^"),
        (&[(4, u32::MAX)], "it has 4294967295 blocks"),
        (&[(0x150, u32::MAX)], "blocks of"),
        (&[(0x20, 0)], "group"),
        // The journal is to be replayed, and is another file, or larger than any.
        (&[(0x60, 0x2c6), (0xe0, 12)], "its journal is inode 12"),
    ] {
        let guest = Guest::linked();
        if !guest.make(&["-O", "^metadata_csum"]) {
            return;
        }
        let error = with_superblock(&guest, fields);
        assert!(error.contains(said) && error.contains("e2fsck"), "{said}: {error}");
    }
}

#[test]
fn a_file_system_that_is_cut_off_is_refused() {
    let guest = Guest::linked();
    if !guest.make(&[]) {
        return;
    }
    for bytes in [1024, 2048, 4096, 70_000, MIB, 20 * MIB] {
        guest.open().set_len(bytes).unwrap();
        refusal(guest.found());
    }
}

/// Bytes of a file system changed at random places, its superblock most of all: there is always an answer, and it is
/// never a panic, which `look_up` would survive and this does not.
#[test]
fn a_damaged_file_system_gives_an_answer() {
    let guest = Guest::linked();
    if !guest.make(&["-O", "^metadata_csum"]) {
        return;
    }
    let good = fs::read(guest.image()).unwrap();
    let used: Vec<usize> = (1024..good.len())
        .filter(|at| good[*at] != 0 && *at < 4 << 20)
        .collect();
    let mut state = 7_u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let (mut found, mut refused) = (0, 0);
    for _ in 0..400 {
        let changes: Vec<_> = (0..=random() % 4)
            .map(|_| {
                let at = if random() % 3 == 0 {
                    1024 + random() % 1024
                } else {
                    used[random() % used.len()]
                };
                (at, random() as u8)
            })
            .collect();
        let file = guest.open();
        for (at, value) in &changes {
            file.write_all_at(&[*value], *at as u64).unwrap();
        }
        match guest.found() {
            Ok(_) => found += 1,
            Err(_) => refused += 1,
        }
        for (at, _) in &changes {
            file.write_all_at(&good[*at..=*at], *at as u64).unwrap();
        }
    }
    assert!(found > 0 && refused > 0, "{found} {refused}");
}
