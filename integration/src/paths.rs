//! Where the programs, the guest's images and the tests' own files are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::check;

/// The workspace's target directory.
pub fn target_dir() -> PathBuf {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let path = std::env::var_os("CARGO_TARGET_DIR").map_or_else(default, PathBuf::from);
    path.canonicalize().unwrap_or(path)
}

/// A program of ours: in LOCKSTEP_BIN_DIR, or else in target/release.
pub fn program(name: &str) -> Result<PathBuf> {
    let directory = std::env::var_os("LOCKSTEP_BIN_DIR").map_or_else(|| target_dir().join("release"), PathBuf::from);
    let path = directory.join(name);
    if !path.is_file() {
        bail!(
            "{} is missing: run `make build`, or name its directory in LOCKSTEP_BIN_DIR",
            path.display()
        );
    }
    Ok(path)
}

/// The test guest's images.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The kernel.
    pub vmlinux: PathBuf,
    /// The small general root.
    pub general: PathBuf,
    /// The root with Redis.
    pub redis: PathBuf,
}

impl Guest {
    /// Finds them: in LOCKSTEP_GUEST_DIR, or else in target/guest.
    pub fn find() -> Result<Self> {
        let directory =
            std::env::var_os("LOCKSTEP_GUEST_DIR").map_or_else(|| target_dir().join("guest"), PathBuf::from);
        let file = |name: &str| {
            let path = directory.join(name);
            if !path.is_file() {
                bail!(
                    "{} is missing: run `make guest`, or name its directory in LOCKSTEP_GUEST_DIR",
                    path.display()
                );
            }
            Ok(path)
        };
        Ok(Self {
            vmlinux: file("vmlinux")?,
            general: file("general.cpio")?,
            redis: file("redis.cpio")?,
        })
    }

    /// Debian's kernel for virtual machines, beside an initrd with its modules; fetched where it is not there.
    pub fn stock_kernel() -> Result<PathBuf> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/stock-kernel.sh");
        check(&mut Command::new(script))?;
        Ok(target_dir().join("stock/vmlinuz"))
    }
}

/// An empty directory of a test's own under target/test. It stays there, so that a failure can be looked into.
pub fn work_dir(name: &str) -> Result<PathBuf> {
    let path = target_dir().join("test/work").join(name);
    match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot empty {}", path.display()));
        }
        _ => {}
    }
    std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}
