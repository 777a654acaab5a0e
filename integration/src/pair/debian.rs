//! A Debian root file system, whose programs run CPUID and RDTSC as they start, as a machine of a pair.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::gate::require_program;
use crate::paths::{Guest, target_dir};
use crate::process::check;
use crate::run::Run;

/// MiB of its memory.
const MEMORY_MIB: u64 = 128;
/// Its root is its disk, and its first program reads commands from the console (`integration/scripts/debian-init.sh`).
const WORDS: &str = "root=/dev/vda rootfstype=ext4 rw init=/lockstep-init";

/// Makes the image of its root.
fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/debian.sh")
}

/// Whether there is an image of its root, or one can be made. An emulated host that has not all of this machine's files is given
/// the image, and not what makes it.
///
/// # Panics
/// As [`require_program`].
pub fn require_debian() -> bool {
    !script().exists() || require_program("debootstrap", "debootstrap")
}

/// An image of its root, made at the first time, copied to `to`.
pub fn copy_debian(to: &Path) -> Result<()> {
    if script().exists() {
        check(&mut Command::new(script()))?;
    }
    let image = target_dir().join("debian/root.img");
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
