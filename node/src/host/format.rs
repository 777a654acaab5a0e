//! Kinds of disk images that are no raw ones, by their magic: what a program would take for a disk's content, and destroy.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where a magic stands, the magic, and qemu-img's name of the format.
const FORMATS: &[(usize, &[u8], &str)] = &[
    // With its version: what a guest may well have at the beginning of a raw disk is not enough.
    (0, b"QFI\xfb\0\0\0\x01", "qcow"),
    (0, b"QFI\xfb\0\0\0\x02", "qcow2"),
    (0, b"QFI\xfb\0\0\0\x03", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0, b"QED\0", "qed"),
];

/// The format of an image that is not raw, as qemu-img calls it.
pub fn foreign(image: &File) -> io::Result<Option<&'static str>> {
    let mut head = [0; 512];
    let mut filled = 0;
    // What is shorter is no disk either, and is told of as such.
    while filled < head.len() {
        match image.read_at(&mut head[filled..], filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    let head = &head[..filled];
    let found = FORMATS
        .iter()
        .find(|(at, magic, _)| head.get(*at..at + magic.len()) == Some(magic));
    Ok(found.map(|(.., format)| *format))
}

/// Refuses an image that is not raw, with the command that makes a raw one of it.
pub fn check_raw(path: &Path, image: &File) -> io::Result<()> {
    let Some(format) = foreign(image)? else {
        return Ok(());
    };
    let path = path.display();
    Err(io::Error::other(format!(
        "it is a {format} image, and disks are raw ones. Convert it: qemu-img convert -f {format} -O raw {path} {path}.raw"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_raw_is_refused_with_the_command_that_converts_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.img");
        let with = |at: usize, magic: &[u8]| {
            let mut content = vec![0; 4096];
            content[at..at + magic.len()].copy_from_slice(magic);
            std::fs::write(&path, content).unwrap();
            check_raw(&path, &File::open(&path).unwrap())
        };
        for (at, magic, format) in FORMATS {
            let error = with(*at, magic).unwrap_err().to_string();
            let command = format!("qemu-img convert -f {format} -O raw {}", path.display());
            assert!(error.contains(&command), "{error}");
        }
        with(510, b"\x55\xaa").unwrap();
        with(0, b"QFI\xfb").unwrap();
        std::fs::write(&path, "").unwrap();
        check_raw(&path, &File::open(&path).unwrap()).unwrap();
    }
}
