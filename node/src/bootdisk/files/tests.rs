use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use super::*;
use crate::bootdisk::made::{self, Gpt, MIB};

fn pieces(disk: &Path, partition: Option<u32>, path: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let disk = File::open(disk).unwrap();
    read(disk, partition, path, &mut |piece| {
        pieces.push(piece);
        Ok(())
    })
    .map_err(|error| error.to_string())?;
    Ok(pieces)
}

/// A file's bytes, put together.
fn content(disk: &Path, partition: Option<u32>, path: &str) -> Vec<u8> {
    let pieces = pieces(disk, partition, path).unwrap();
    let mut content = Vec::new();
    for piece in &pieces[1..] {
        let Piece::Data(data) = piece else { panic!("{piece:?}") };
        content.extend_from_slice(data);
    }
    assert_eq!(pieces[0], Piece::File(content.len() as u64));
    content
}

/// A file system of 16 MiB, where there is mkfs.ext4.
fn made_in(home: &Path) -> Option<std::path::PathBuf> {
    let root = home.join("root");
    fs::create_dir_all(root.join("dir/empty")).unwrap();
    fs::write(root.join("dir/a\x1b[2J"), "escape").unwrap();
    let large: Vec<u8> = (0..3_000_001u32).map(|at| (at % 251) as u8).collect();
    fs::write(root.join("large"), large).unwrap();
    symlink("dir/../large", root.join("link")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    let image = home.join("image");
    made::ext4(&image, &root, 16, &["-O", "metadata_csum,64bit"]).then_some(image)
}

#[test]
fn a_directory_is_listed_and_a_file_comes_whole() {
    let home = tempfile::tempdir().unwrap();
    let Some(image) = made_in(home.path()) else { return };
    let expected: Vec<u8> = (0..3_000_001u32).map(|at| (at % 251) as u8).collect();
    for path in ["/large", "large", "/link", "//dir/./../link"] {
        assert!(content(&image, None, path) == expected, "{path}");
    }
    let listed = |path| match &pieces(&image, None, path).unwrap()[..] {
        [Piece::Directory(listed)] => listed.clone(),
        other => panic!("{other:?}"),
    };
    let names: Vec<_> = listed("/").into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["dangling", "dir", "large", "link", "lost+found"]);
    assert_eq!(listed("/")[2].1, Node::File(3_000_001));
    assert_eq!(listed("/")[3].1, Node::Link("dir/../large".into()));
    assert_eq!(listed("dir/empty"), []);
    assert_eq!(listed("dir")[0], ("a\x1b[2J".into(), Node::File(6)));
    for (path, why) in [
        ("/nothing", "there is nothing of that name"),
        ("/dangling", "there is nothing of that name"),
        ("/large/x", "there is nothing of that name"),
    ] {
        let error = pieces(&image, None, path).unwrap_err();
        assert!(error.contains(why) && !error.contains("Remedy"), "{path}: {error}");
    }
}

#[test]
fn of_several_file_systems_one_is_chosen_and_what_is_not_read_is_named() {
    let home = tempfile::tempdir().unwrap();
    let Some(image) = made_in(home.path()) else { return };
    let path = home.path().join("disk");
    let disk = File::create(&path).unwrap();
    disk.set_len(64 * MIB).unwrap();
    let part = |mib: u64| (mib * 2048, (mib + 16) * 2048 - 1);
    let entry = |number, mib| (number, part(mib).0, part(mib).1);
    Gpt::new(&[entry(1, 1), entry(2, 20), entry(3, 40)]).write(&disk);
    disk.write_all_at(b"XFSB", MIB).unwrap();
    made::put(&disk, 20 * MIB, &image);
    assert_eq!(content(&path, None, "/large").len(), 3_000_001);
    assert_eq!(content(&path, Some(2), "/large").len(), 3_000_001);
    let why = |number| pieces(&path, number, "/").unwrap_err();
    for (number, said) in [
        (1, "only ext4 is read"),
        (1, "partition 1 is xfs"),
        (3, "partition 3 is blank"),
        (7, "there is no partition 7"),
    ] {
        let error = why(Some(number));
        assert!(error.contains(said), "{number}: {error}");
    }
    made::put(&disk, 40 * MIB, &image);
    let error = why(None);
    assert!(
        error.contains("--partition") && error.contains("partition 3 is ext4"),
        "{error}"
    );
}

/// A disk that fails in a way of its own.
struct Broken(fn() -> io::Result<u64>);

impl ReadAt for Broken {
    fn size(&self) -> io::Result<u64> {
        (self.0)()
    }

    fn fill_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::Error::other("it is gone"))
    }
}

#[test]
fn a_disk_that_hangs_panics_or_cannot_be_read_is_told() {
    let hangs: fn() -> io::Result<u64> = || {
        loop {
            std::thread::park();
        }
    };
    let moment = Duration::from_millis(1);
    for (patience, size, said) in [
        (moment, hangs, "gave nothing"),
        (
            PATIENCE,
            || panic!("as a damaged file system might have it"),
            "its reader failed",
        ),
        (PATIENCE, || Ok(1 << 20), "it is too small"),
        (PATIENCE, || Err(io::Error::other("no size")), "no size"),
    ] {
        let error = within(patience, Broken(size), None, "/", &mut |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains(said), "{said}: {error}");
    }
}

#[test]
fn who_has_enough_ends_it() {
    let home = tempfile::tempdir().unwrap();
    let Some(image) = made_in(home.path()) else { return };
    let mut count = 0;
    let read = read(File::open(&image).unwrap(), None, "/large", &mut |_| {
        count += 1;
        bail!("full")
    });
    assert_eq!((read.unwrap_err().to_string().as_str(), count), ("full", 1));
}
