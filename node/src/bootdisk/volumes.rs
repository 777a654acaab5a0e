//! Which of a disk's partitions is the guest's root, and which is mounted at `/boot`.

use super::contents::Contents;
use super::ext::Ext;
use super::partitions::{self, Partition};
use super::refusal::{GIVE_FILES, Refusal};
use super::tree::{FileSystem, Node, Tree};
use super::window::Window;

/// What a root file system has, one of them at least.
const OF_ROOT: [&str; 5] = [
    "/etc/fstab",
    "/etc/os-release",
    "/usr/lib/os-release",
    "/etc/default",
    "/vmlinuz",
];
/// What a partition for `/boot` has at its top, one of them at least.
const OF_BOOT: [&str; 4] = ["/grub", "/grub2", "/loader", "/vmlinuz"];

/// A disk's file systems as the guest has them mounted.
pub struct Volumes {
    /// See there.
    pub tree: Tree,
    /// What names the root on the kernel's command line, if the root is read.
    pub root_word: Option<String>,
    /// Which partitions they are, for people.
    pub how: String,
}

/// Finds them.
pub fn of(disk: &Window) -> Result<Volumes, Refusal> {
    let partitions = partitions::of(disk)?;
    let (mut roots, mut boots) = (Vec::new(), Vec::new());
    let mut unread = Vec::new();
    for partition in partitions {
        match partition.contents {
            Contents::Ext => match Ext::open(&partition.window, &partition.name()) {
                Ok(system) if has(&system, &OF_ROOT)? => roots.push((partition, system)),
                Ok(system) if has(&system, &OF_BOOT)? || has_kernel(&system)? => boots.push((partition, system)),
                Ok(_) => unread.push(format!(
                    "{} has neither a root file system nor a kernel",
                    partition.name()
                )),
                Err(error) => unread.push(error.to_string()),
            },
            Contents::Foreign(kind) => unread.push(format!("{} is {kind}, which is not read", partition.name())),
            Contents::Unknown { blank: true } => unread.push(format!("{} is blank", partition.name())),
            Contents::Unknown { blank: false } => {
                unread.push(format!("{} has no file system that is known", partition.name()));
            }
            Contents::Fat | Contents::Swap => {}
        }
    }
    if roots.iter().any(|(partition, _)| partition.is_root) {
        roots.retain(|(partition, _)| partition.is_root);
    }
    sole(&roots, "root file system")?;
    let root = roots.pop();
    // A root with a kernel in its own /boot has no other one.
    let own = match &root {
        Some((_, system)) => {
            has(system, &OF_BOOT.map(|path| format!("/boot{path}")))? || has_kernel_in(system, "/boot")?
        }
        None => false,
    };
    if own {
        boots.clear();
    }
    sole(&boots, "partition for /boot")?;
    let boot = boots.pop();
    if root.is_none() && boot.is_none() {
        let why = if unread.is_empty() {
            "it has no partition with a root file system".into()
        } else {
            unread.join("; ")
        };
        return Err(Refusal::new("the disk", why).or(format!(
            "install the guest with its kernel on ext4 (a partition for /boot is enough, with its boot loader's \
             configuration on it), or {GIVE_FILES}"
        )));
    }
    let describe = |found: &Option<(Partition, Ext)>| found.as_ref().map(|(partition, _)| partition.name());
    let how = match (describe(&root), describe(&boot)) {
        (Some(root), Some(boot)) => format!("root: {root}, /boot: {boot}"),
        (Some(root), None) => format!("root: {root}"),
        (None, boot) => format!("/boot: {}; {}", boot.unwrap_or_default(), unread.join("; ")),
    };
    Ok(Volumes {
        root_word: root.as_ref().map(|(partition, _)| partition.root_word()),
        tree: Tree {
            root: root.map(|(_, system)| Box::new(system) as Box<dyn FileSystem>),
            boot: boot.map(|(_, system)| Box::new(system) as Box<dyn FileSystem>),
        },
        how,
    })
}

fn sole(found: &[(Partition, Ext)], what: &str) -> Result<(), Refusal> {
    if found.len() < 2 {
        return Ok(());
    }
    let names: Vec<_> = found.iter().map(|(partition, _)| partition.name()).collect();
    let why = format!("it has more than one {what}: {}", names.join(", "));
    Err(Refusal::new("the disk", why).or(format!(
        "give the one that is to be booted GPT's type of a root file system for x86-64 (sgdisk -t N:8304 IMAGE), or {GIVE_FILES}"
    )))
}

/// Whether one of these is there. They lie below directories that are no links, or are not found.
fn has(system: &Ext, paths: &[impl AsRef<str>]) -> Result<bool, Refusal> {
    for path in paths {
        if system.look(path.as_ref())?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn has_kernel(system: &Ext) -> Result<bool, Refusal> {
    has_kernel_in(system, "/")
}

fn has_kernel_in(system: &Ext, directory: &str) -> Result<bool, Refusal> {
    if system.look(directory)? != Some(Node::Directory) {
        return Ok(false);
    }
    Ok(system.names(directory)?.iter().any(|name| name.starts_with("vmlinuz-")))
}
