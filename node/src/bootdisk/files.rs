//! Files of a guest's disk as they are now, for whoever looks at a recording: a directory's names, or the bytes of a file.
//!
//! The path is one of the file system in one partition: what the guest has mounted in it is not there. Links lead within it.

use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, bail};
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::contents::Contents;
use super::ext::Ext;
use super::partitions::{self, Partition};
use super::refusal::Refusal;
use super::tree::{FileSystem, Node, Tree};
use super::window::Window;
use super::{MAX_REST, PATIENCE};
use crate::host::image::ReadAt;
use crate::sandbox::{self, Kind};

/// Bytes of names and links' targets in one directory.
const MAX_TEXT: usize = 16 << 20;

/// What is found.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// The path is a directory, with these names in it, in order.
    Directory(Vec<(String, Node)>),
    /// The path is a file of so many bytes.
    File(u64),
    /// The next bytes of it.
    Data(Vec<u8>),
}

/// Gives `each` what is at `path` of a disk. `partition`: its number; without it, the disk's only file system is meant.
pub fn read(
    disk: impl ReadAt + Send + 'static,
    partition: Option<u32>,
    path: &str,
    each: &mut dyn FnMut(Piece) -> Result<()>,
) -> Result<()> {
    within(PATIENCE, disk, partition, path, each)
}

/// On a thread of its own: each piece may take `patience`, and a panic is an answer, too.
fn within(
    patience: Duration,
    disk: impl ReadAt + Send + 'static,
    partition: Option<u32>,
    path: &str,
    each: &mut dyn FnMut(Piece) -> Result<()>,
) -> Result<()> {
    let (tell, told) = bounded(1);
    let path = path.to_owned();
    let work = move || {
        if let Err(refusal) = find(disk, partition, &path, &tell) {
            // Who asked may have lost patience.
            let _ = tell.send(Err(refusal));
        }
        // That it has come to its end, and has not failed.
        let _ = tell.send(Ok(None));
    };
    // It ends with its answer, or with the process.
    sandbox::spawn(Kind::Disk, "guest-files", work)?;
    loop {
        match told.recv_timeout(patience) {
            Ok(Ok(Some(piece))) => each(piece)?,
            Ok(Ok(None)) => return Ok(()),
            // What else is to be done is said for who would boot from it.
            Ok(Err(Refusal { at, why, .. })) => bail!("{at}: {why}"),
            Err(RecvTimeoutError::Timeout) => bail!(
                "the disk's file system gave nothing in {} seconds: it is damaged, or made up",
                patience.as_secs()
            ),
            Err(RecvTimeoutError::Disconnected) => bail!("the disk's file system is damaged: its reader failed"),
        }
    }
}

type Tell = Sender<Result<Option<Piece>, Refusal>>;

fn find(disk: impl ReadAt + 'static, partition: Option<u32>, path: &str, tell: &Tell) -> Result<(), Refusal> {
    let unreadable = |error: std::io::Error| Refusal::new("the disk", error.to_string());
    let bytes = disk.size().map_err(unreadable)?;
    let window = Window::whole(disk, MAX_REST.saturating_add(bytes.saturating_mul(2))).map_err(unreadable)?;
    let partition = choose(partitions::of(&window)?, partition)?;
    let name = partition.name();
    let system = Rc::new(Ext::open(&partition.window, &name)?);
    let tree = Tree {
        root: Some(Box::new(system.clone())),
        boot: None,
    };
    let Some((place, node)) = tree.find(path)? else {
        return Err(Refusal::new(path, format!("there is nothing of that name in {name}")));
    };
    // Who does not listen any more is told nothing.
    let say = |piece| tell.send(Ok(Some(piece))).is_ok();
    match node {
        Node::Directory => {
            let listed = list(&*system, &place)?;
            say(Piece::Directory(listed));
        }
        Node::File(length) if length > bytes => {
            let why = format!("it says that it has {length} bytes, which is more than the disk");
            return Err(Refusal::new(place, why));
        }
        Node::File(length) => {
            if say(Piece::File(length)) {
                system.copy(&place, length, &mut |data| say(Piece::Data(data)))?;
            }
        }
        Node::Link(_) | Node::Other => return Err(Refusal::new(place, "it is neither a file nor a directory")),
    }
    Ok(())
}

fn list(system: &dyn FileSystem, place: &str) -> Result<Vec<(String, Node)>, Refusal> {
    let mut names = system.names(place)?;
    names.sort();
    let mut listed = Vec::with_capacity(names.len());
    let mut text = 0;
    for name in names {
        let path = format!("{}/{name}", place.trim_end_matches('/'));
        let node = system.look(&path)?.unwrap_or(Node::Other);
        text += name.len();
        if let Node::Link(target) = &node {
            text += target.len();
        }
        if text > MAX_TEXT {
            return Err(Refusal::new(place, "it has too many names to list them"));
        }
        listed.push((name, node));
    }
    Ok(listed)
}

fn choose(partitions: Vec<Partition>, wanted: Option<u32>) -> Result<Partition, Refusal> {
    let all: Vec<_> = partitions
        .iter()
        .map(|partition| format!("{} {}", partition.name(), what(partition.contents)))
        .collect();
    let all = if all.is_empty() {
        "it has no partition".to_owned()
    } else {
        all.join("; ")
    };
    let mut found: Vec<_> = match wanted {
        Some(number) => partitions.into_iter().filter(|found| found.number == number).collect(),
        None => partitions
            .into_iter()
            .filter(|found| found.contents == Contents::Ext)
            .collect(),
    };
    match (found.pop(), found.len(), wanted) {
        (Some(partition), 0, _) if partition.contents == Contents::Ext => Ok(partition),
        (Some(_), 1.., _) => Err(Refusal::new(
            "the disk",
            format!("it has several file systems, of which --partition chooses one: {all}"),
        )),
        (None, _, Some(number)) => Err(Refusal::new(
            "the disk",
            format!("there is no partition {number}: {all}"),
        )),
        _ => Err(Refusal::new("the disk", format!("only ext4 is read, and {all}"))),
    }
}

fn what(contents: Contents) -> String {
    match contents {
        Contents::Ext => "is ext4".into(),
        Contents::Fat => "is FAT".into(),
        Contents::Swap => "is swap".into(),
        Contents::Foreign(kind) => format!("is {kind}"),
        Contents::Unknown { blank: true } => "is blank".into(),
        Contents::Unknown { blank: false } => "has no file system that is known".into(),
    }
}

#[cfg(test)]
mod tests;
