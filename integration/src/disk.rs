//! Disk images for guests.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::check;

/// Makes an image with an empty ext4 file system.
pub fn make_ext4(path: &Path, mib: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.set_len(mib << 20)?;
    // Whatever the guest does not do in the background need not be interpreted.
    let options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
    check(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-E", options])
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

fn with_sbin() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
