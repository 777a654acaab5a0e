//! Disk images for guests.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::check;

/// Makes an image with an empty ext4 file system.
pub fn make_ext4(path: &Path, mib: u64) -> Result<()> {
    make(path, mib, None)
}

/// Makes an image with an ext4 file system that has what the directory `content` has.
pub fn make_ext4_of(path: &Path, mib: u64, content: &Path) -> Result<()> {
    make(path, mib, Some(content))
}

fn make(path: &Path, mib: u64, content: Option<&Path>) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.set_len(mib << 20)?;
    // Whatever the guest does not do in the background need not be interpreted.
    let options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
    check(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-E", options])
            .args(
                content
                    .iter()
                    .flat_map(|content| [OsStr::new("-d"), content.as_os_str()]),
            )
            .arg(path)
            .env("PATH", with_sbin()),
    )?;
    Ok(())
}

/// Checks the ext4 file system in `image`, whose guest may have ended without unmounting it: its journal is replayed,
/// and then nothing may be wrong.
pub fn check_ext4(image: &Path) -> Result<()> {
    // 1: something was done (the journal, at first). The second pass must find nothing to do.
    let e2fsck = |flag: &str| {
        let mut command = Command::new("e2fsck");
        command.args(["-f", flag]).arg(image).env("PATH", with_sbin());
        command
    };
    let output = e2fsck("-p").output().context("cannot start e2fsck")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        matches!(output.status.code(), Some(0 | 1)),
        "the file system in {} is damaged: {said}",
        image.display()
    );
    check(&mut e2fsck("-n")).map(drop)
}

/// A file in the ext4 file system in `image`.
pub fn read_file(image: &Path, path: &str) -> Result<String> {
    let request = format!("cat {path}");
    check(
        Command::new("debugfs")
            .args(["-R", &request])
            .arg(image)
            .env("PATH", with_sbin()),
    )
}

/// A loop device over a file. Dropping it detaches it.
pub struct LoopDevice(PathBuf);

impl LoopDevice {
    /// The first one that is free.
    pub fn over(file: &Path) -> Result<Self> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show"]).arg(file).env("PATH", with_sbin());
        Ok(Self(check(&mut command)?.trim().into()))
    }

    /// Its node in /dev.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let mut command = Command::new("losetup");
        command.arg("--detach").arg(&self.0).env("PATH", with_sbin());
        if let Err(error) = check(&mut command) {
            eprintln!("{error:#}");
        }
    }
}

/// PATH with the directories of what only root needs.
pub fn with_sbin() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
