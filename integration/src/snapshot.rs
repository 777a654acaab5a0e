//! Booted machines, kept as snapshots so that each is booted once for all tests.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use xxhash_rust::xxh3::Xxh3;

use crate::disk::make_ext4;
use crate::net::{GUEST, Namespace};
use crate::paths::{Guest, program, target_dir};
use crate::run::Run;

/// Interpreted kernels boot slowly, and tests share two cores.
pub const BOOT_LIMIT: Duration = Duration::from_secs(240);
const DISK_MIB: u64 = 32;

/// Which machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A shell on the console.
    Shell,
    /// Redis on the network, durable on a disk, and a shell.
    Redis,
    /// Redis on the network, without a disk.
    Memory,
}

/// A booted machine.
#[derive(Clone, Debug)]
pub struct Booted {
    directory: PathBuf,
}

impl Booted {
    /// The machine of this kind: from the cache, or else booted now.
    pub fn get(kind: Kind) -> Result<Self> {
        let root = target_dir().join("test/snapshots");
        fs::create_dir_all(&root)?;
        let lock = File::create(root.join("lock"))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let guest = Guest::find()?;
        let prefix = format!("{kind:?}-").to_lowercase();
        let directory = root.join(format!("{prefix}{}", key(&guest)?));
        if !directory.exists() {
            for entry in fs::read_dir(&root)?.flatten() {
                if entry.file_name().to_string_lossy().starts_with(&prefix) {
                    fs::remove_dir_all(entry.path())?;
                }
            }
            let partial = root.join(format!("{prefix}partial"));
            fs::create_dir(&partial)?;
            boot(kind, &guest, &partial)?;
            // Appears whole or not at all.
            fs::rename(&partial, &directory)?;
        }
        Ok(Self { directory })
    }

    /// The snapshot file.
    pub fn snapshot(&self) -> PathBuf {
        self.directory.join("machine.snapshot")
    }

    /// A run that goes on from a shell machine.
    pub fn go_on(&self) -> Result<Run> {
        Ok(Run::bare()?.restore(&self.snapshot()))
    }

    /// A run that goes on from a Redis machine, with a copy of its disk in `scratch`.
    pub fn go_on_inside(&self, namespace: &Namespace, scratch: &Path) -> Result<Run> {
        let disk = self.copy_disk(scratch)?;
        Ok(Run::inside(namespace)?.restore(&self.snapshot()).disk(&disk))
    }

    /// A copy of the machine's disk in `scratch`.
    pub fn copy_disk(&self, scratch: &Path) -> Result<PathBuf> {
        let disk = scratch.join("disk.img");
        fs::copy(self.directory.join("disk.img"), &disk).context("the machine has no disk")?;
        Ok(disk)
    }
}

impl Kind {
    /// Boots this machine; the run has what it wants of network and disk.
    pub fn boot(self, guest: &Guest, run: Run) -> Run {
        let words = format!("lockstep.run=redis lockstep.ip={GUEST}");
        match self {
            Self::Shell => run.boot(guest, &guest.general, 64, "lockstep.run=shell"),
            Self::Redis => run.boot(guest, &guest.redis, 128, &words),
            Self::Memory => run.boot(guest, &guest.redis, 64, &words),
        }
    }
}

fn boot(kind: Kind, guest: &Guest, directory: &Path) -> Result<()> {
    let snapshot = directory.join("machine.snapshot");
    // Ends after the machine.
    let namespace;
    let run = match kind {
        Kind::Shell => Run::bare()?,
        Kind::Redis => {
            let disk = directory.join("disk.img");
            make_ext4(&disk, DISK_MIB)?;
            namespace = Namespace::create()?;
            Run::inside(&namespace)?.disk(&disk)
        }
        Kind::Memory => {
            namespace = Namespace::create()?;
            Run::inside(&namespace)?
        }
    };
    let outcome = kind
        .boot(guest, run)
        .args(["--until", "LOCKSTEP-READY", "--save"])
        .args([&snapshot])
        .complete(BOOT_LIMIT)?;
    outcome.report()?;
    if !outcome.console.contains("LOCKSTEP-READY") {
        bail!("the guest did not boot: {}", outcome.console);
    }
    Ok(())
}

/// A digest of everything that a snapshot depends on.
fn key(guest: &Guest) -> Result<String> {
    let mut hasher = Xxh3::new();
    // The emulated hosts see this one's files.
    hasher.update(lockstep_vmm::probe::host_class()?.as_bytes());
    for path in [
        &program("lockstep-primary")?,
        &guest.vmlinux,
        &guest.general,
        &guest.redis,
    ] {
        let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let length = file.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            hasher.update(&buffer[..length]);
        }
    }
    Ok(format!("{:032x}", hasher.digest128()))
}
