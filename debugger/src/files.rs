//! `lockstep-debug show --files`: what a guest's disk has at a position: the names in a directory, or a file.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use lockstep_node::bootdisk::Node;
use lockstep_node::bootdisk::files::{Piece, read};
use lockstep_node::host::disk::SharedImage;
use lockstep_node::out::{self, one_line};
use lockstep_node::{say, tell};
use serde_json::json;

use crate::whole::{Readers, Whole};

/// A file of zeroes takes no room in pieces of this size.
const PIECE: usize = 4096;

#[derive(Args)]
pub struct FilesOptions {
    /// Show what is at PATH of the guest's disk and nothing else: a directory lists itself, a file is copied (`--to`). The path is one
    /// of the file system on the disk (ext4), wherever the guest mounts it.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["mem", "tasks", "devices", "digest"])]
    files: Option<String>,
    /// The file to copy into. It must not exist. `-` is standard output.
    #[arg(long, value_name = "FILE", requires = "files")]
    to: Option<PathBuf>,
    /// The disk, from 0 on, where there are several.
    #[arg(long, value_name = "N", requires = "files")]
    disk: Option<usize>,
    /// The partition, where several have a file system.
    #[arg(long, value_name = "N", requires = "files")]
    partition: Option<u32>,
}

impl FilesOptions {
    /// Whether files are what is wanted.
    pub fn are_wanted(&self) -> bool {
        self.files.is_some()
    }

    /// Looks whether the copy can be made, before anything is replayed.
    pub fn check(&self, positions: usize) -> Result<()> {
        if self.files.is_none() {
            return Ok(());
        }
        ensure!(positions == 1, "--files shows one position: give --at once");
        if let Some(to) = self.to.as_deref().filter(|to| !out::is_stdout(to)) {
            ensure!(to.symlink_metadata().is_err(), "{} exists already", to.display());
        }
        Ok(())
    }

    /// Which of so many disks is meant.
    pub fn disk(&self, count: usize) -> Result<usize> {
        match (count, self.disk) {
            (0, _) => bail!("the machine has no disk"),
            (1, None) => Ok(0),
            (count, None) => bail!(
                "the machine has {count} disks: choose one with --disk, from 0 to {}",
                count - 1
            ),
            (count, Some(disk)) if disk >= count => bail!("the machine has no disk {disk}: it has {count}, from 0 on"),
            (_, Some(disk)) => Ok(disk),
        }
    }

    /// Shows what is there on `disk`.
    pub fn show(&self, disk: SharedImage, as_json: bool) -> Result<()> {
        let path = self.files.as_deref().unwrap_or("/");
        let mut copy: Option<Outgoing> = None;
        read(disk, self.partition, path, &mut |piece| {
            match piece {
                Piece::Directory(names) => {
                    ensure!(
                        self.to.is_none(),
                        "{path} is a directory: leave --to out, and it is listed"
                    );
                    list(&names, as_json);
                }
                Piece::File(bytes) => {
                    let to = self.to.as_deref().with_context(|| {
                        format!(
                            "{path} is a file of {bytes} bytes: say with --to where to copy it (`-` is standard output)"
                        )
                    })?;
                    copy = Some(Outgoing::begin(to)?);
                }
                Piece::Data(data) => {
                    let copy = copy
                        .as_mut()
                        .with_context(|| format!("{path} has bytes and is no file"))?;
                    copy.write(&data)?;
                }
            }
            Ok(())
        })?;
        copy.map_or(Ok(()), |copy| copy.end(path))
    }
}

fn list(names: &[(String, Node)], as_json: bool) {
    for (name, node) in names {
        let (kind, bytes, target) = match node {
            Node::Directory => ("directory", None, None),
            Node::File(bytes) => ("file", Some(*bytes), None),
            Node::Link(target) => ("link", None, Some(target)),
            Node::Other => ("other", None, None),
        };
        if as_json {
            say!(
                "{}",
                json!({ "name": name, "kind": kind, "bytes": bytes, "target": target })
            );
            continue;
        }
        let bytes = bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
        let target = target.map_or_else(String::new, |target| format!(" -> {}", one_line(target)));
        say!("{kind:<9} {bytes:>12}  {}{target}", one_line(name));
    }
}

/// A file on its way out of the guest's disk: it appears whole or not at all.
enum Outgoing {
    Out(u64),
    File { whole: Whole, bytes: u64 },
}

impl Outgoing {
    fn begin(to: &Path) -> Result<Self> {
        if out::is_stdout(to) {
            return Ok(Self::Out(0));
        }
        let whole = Whole::begin(to, Readers::User).with_context(|| format!("cannot write {}", to.display()))?;
        Ok(Self::File { whole, bytes: 0 })
    }

    fn write(&mut self, data: &[u8]) -> Result<()> {
        match self {
            Self::Out(bytes) => {
                out::Out.write_all(data)?;
                *bytes += data.len() as u64;
            }
            Self::File { whole, bytes } => {
                write_thin(whole.file(), data).with_context(|| format!("cannot write {}", whole.place().display()))?;
                *bytes += data.len() as u64;
            }
        }
        Ok(())
    }

    fn end(self, path: &str) -> Result<()> {
        let (shown, bytes) = match self {
            Self::Out(bytes) => {
                out::Out.flush()?;
                ("standard output".to_owned(), bytes)
            }
            Self::File { mut whole, bytes } => {
                let to = whole.place().display().to_string();
                let cannot = || format!("cannot write {to}");
                whole.file().set_len(bytes).with_context(cannot)?;
                whole.end_new().with_context(cannot)?;
                (to, bytes)
            }
        };
        tell!("{}: {bytes} bytes of {}", shown, one_line(path));
        Ok(())
    }
}

/// Writes at where the file stands, zeroes as holes; its length is set at the end.
fn write_thin(file: &mut File, data: &[u8]) -> std::io::Result<()> {
    for piece in data.chunks(PIECE) {
        if piece.iter().all(|&byte| byte == 0) {
            file.seek(SeekFrom::Current(piece.len() as i64))?;
        } else {
            file.write_all(piece)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_thin_and_appears_whole_where_nothing_is() {
        let home = tempfile::tempdir().unwrap();
        let to = home.path().join("copy");
        let mut expected = vec![0; 3 << 20];
        expected[5000] = 1;
        let mut copy = Outgoing::begin(&to).unwrap();
        for piece in expected.chunks(1 << 20) {
            copy.write(piece).unwrap();
        }
        assert!(!to.exists());
        copy.end("/a").unwrap();
        assert!(std::fs::read(&to).unwrap() == expected);
        let taken = lockstep_node::host::size::allocated(&File::open(&to).unwrap()).unwrap();
        assert!(taken < 1 << 20, "{taken}");
        Outgoing::begin(&to).unwrap().end("/a").unwrap_err();
        assert!(std::fs::read(&to).unwrap() == expected);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_disk_is_named_where_there_are_several() {
        let chosen = |disk, count| {
            let options = FilesOptions {
                files: None,
                to: None,
                disk,
                partition: None,
            };
            options.disk(count).ok()
        };
        assert_eq!(chosen(None, 1), Some(0));
        assert_eq!((chosen(None, 2), chosen(Some(1), 2)), (None, Some(1)));
        assert_eq!(
            (chosen(Some(2), 2), chosen(None, 0), chosen(Some(0), 0)),
            (None, None, None)
        );
    }
}
