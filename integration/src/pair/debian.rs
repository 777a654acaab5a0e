//! A Debian root file system, whose programs run CPUID and RDTSC as they start, as a machine of a pair.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::paths::{Guest, target_dir};
use crate::process::check;
use crate::run::Run;

/// MiB of its memory.
const MEMORY_MIB: u64 = 128;
/// Its root is its disk, and its first program reads commands from the console (`integration/scripts/debian-init.sh`).
const WORDS: &str = "root=/dev/vda rootfstype=ext4 rw init=/lockstep-init";

/// An image of its root, made at the first time, copied to `to`.
pub fn copy_debian(to: &Path) -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/debian.sh");
    check(&mut Command::new(script))?;
    let image: PathBuf = target_dir().join("debian/root.img");
    // What is a hole stays one: a join copies what is there.
    check(Command::new("cp").arg("--sparse=always").arg(&image).arg(to))
        .with_context(|| format!("cannot copy {}", image.display()))?;
    Ok(())
}

/// Boots it from `disk`.
pub fn boot_debian(run: Run, guest: &Guest, disk: &Path) -> Run {
    run.boot_disk(guest, MEMORY_MIB, WORDS).disk(disk)
}

/// Digests that the rounds of its load ended with, in the order of printing.
pub fn rounds(console: &str) -> Vec<&str> {
    console
        .lines()
        .filter_map(|line| line.trim().strip_prefix("ROUND ")?.split_once(' '))
        .map(|(_, digest)| digest)
        .collect()
}
