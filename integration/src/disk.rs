//! Disk images for guests.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

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

fn with_sbin() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}
