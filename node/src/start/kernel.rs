//! What a machine is booted with: a kernel, its initrd and its words, from files of this host or from the guest's own disk.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lockstep_logcodec::limits::MAX_BUILD_ID_BYTES;
use lockstep_proto::model::ACPI_REVISION;
use lockstep_vmm::loader::{self, features};
use object::Object;
use xxhash_rust::xxh3::xxh3_128;

use super::{BootOptions, disk_bytes};
use crate::bootdisk;
use crate::host::mark::check_no_replica;

/// Where a kernel is taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// A vmlinux or a bzImage on this host.
    File(PathBuf),
    /// The first disk, on which the guest has its own.
    Disk,
}

/// What stands for [`Kernel::Disk`] where a file could stand.
const DISK: &str = "disk";

impl From<&str> for Kernel {
    fn from(text: &str) -> Self {
        if text == DISK {
            Self::Disk
        } else {
            Self::File(text.into())
        }
    }
}

impl Kernel {
    /// The file on this host, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Disk => None,
        }
    }
}

/// Whether a machine has ACPI tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Acpi {
    /// If the kernel has ACPI and does not take its devices from the command line.
    Auto,
    /// In any case.
    On,
    /// In no case.
    Off,
}

impl Acpi {
    /// Whether a machine of this revision has them with this kernel.
    pub(super) fn of(self, revision: u32, vmlinux: &[u8]) -> Result<bool> {
        match self {
            Self::Off => Ok(false),
            Self::Auto => Ok(revision >= ACPI_REVISION && features::wants_acpi(vmlinux)),
            Self::On if revision < ACPI_REVISION => {
                bail!("a machine of device model revision {revision} has no ACPI: that needs revision {ACPI_REVISION}")
            }
            Self::On => Ok(true),
        }
    }
}

/// What a kernel is loaded with.
pub(super) struct Payload {
    /// Digest of the kernel as it is on its disk.
    pub kernel_digest: Vec<u8>,
    /// What its ELF file and its files with symbols have in common; empty if that is nothing.
    pub build_id: Vec<u8>,
    /// Its ELF file.
    pub vmlinux: Vec<u8>,
    pub initrd: Option<Vec<u8>>,
    /// Whether the machine has ACPI tables.
    pub acpi: bool,
    /// Words beside those that the machine needs.
    pub cmdline: String,
    /// Where the kernel is, for the log and for people.
    pub name: String,
    pub notes: Vec<String>,
}

/// The same as it was found.
struct Found {
    kernel: Vec<u8>,
    initrd: Option<Vec<u8>>,
    cmdline: String,
    name: String,
    notes: Vec<String>,
}

impl Payload {
    /// Looks it up, and whether it runs here. Nothing is written.
    pub fn of(options: &BootOptions) -> Result<Self> {
        let Found {
            kernel,
            initrd,
            cmdline,
            name,
            notes,
        } = Found::of(options)?;
        let kernel_digest = xxh3_128(&kernel).to_be_bytes().to_vec();
        let unpacked = match loader::vmlinux(&kernel).with_context(|| cannot_load(&name))? {
            Cow::Owned(vmlinux) => Some(vmlinux),
            Cow::Borrowed(_) => None,
        };
        let vmlinux = unpacked.unwrap_or(kernel);
        if options.syscalls_fault && !features::takes_syscalls_as_faults(&vmlinux) {
            bail!(
                "the kernel {name} does not run on this host, whose KVM interprets ring 0: its programs' SYSCALL does not enter the \
                 kernel there. Use hosts with VMX or SVM (`lockstep-primary probe` says what this one has), or build the kernel \
                 with the patch in integration/guest/kernel/patches"
            );
        }
        Ok(Self {
            acpi: options.acpi.of(options.model_revision, &vmlinux)?,
            kernel_digest,
            build_id: build_id(&vmlinux),
            vmlinux,
            initrd,
            cmdline,
            name,
            notes,
        })
    }
}

/// The GNU build id of an ELF file; empty where it has none, or one that no log takes.
fn build_id(vmlinux: &[u8]) -> Vec<u8> {
    let file = object::File::parse(vmlinux).ok();
    let id = file.as_ref().and_then(|file| file.build_id().ok().flatten());
    id.filter(|id| id.len() <= MAX_BUILD_ID_BYTES)
        .unwrap_or_default()
        .to_vec()
}

pub(super) fn cannot_load(name: &str) -> String {
    format!("cannot load {name}")
}

impl Found {
    fn of(options: &BootOptions) -> Result<Self> {
        match &options.kernel {
            Kernel::File(kernel) => Self::of_files(kernel, options),
            Kernel::Disk => Self::of_disk(options),
        }
    }

    fn of_files(kernel: &Path, options: &BootOptions) -> Result<Self> {
        let read = |path: &Path, what: &str| {
            fs::read(path).with_context(|| format!("cannot read the {what} {}", path.display()))
        };
        Ok(Self {
            kernel: read(kernel, "kernel")?,
            initrd: options.initrd.as_deref().map(|path| read(path, "initrd")).transpose()?,
            cmdline: options.cmdline.clone(),
            name: fs::canonicalize(kernel)?.to_string_lossy().into_owned(),
            notes: Vec::new(),
        })
    }

    fn of_disk(options: &BootOptions) -> Result<Self> {
        let Some(disk) = options.disks.first() else {
            bail!("the kernel is to be taken from the first disk, and there is none: give the machine a --disk");
        };
        if options.initrd.is_some() {
            bail!("the initrd is taken from the disk, as the kernel is: leave --initrd out");
        }
        let disk = &disk.path;
        disk_bytes(disk)?;
        check_no_replica(disk)?;
        let found = bootdisk::look_up(disk, options.memory_mib.saturating_mul(1 << 20))?;
        let (cmdline, left_out) = bootdisk::merge(&found.words, &options.cmdline);
        let initrds = match &found.initrd_paths[..] {
            [] => "no initrd".into(),
            paths => format!("initrd {}", paths.join(", ")),
        };
        let mut notes = vec![format!(
            "kernel {}, {initrds}, from {} ({})",
            found.kernel_path,
            disk.display(),
            found.how
        )];
        notes.extend(found.notes);
        notes.extend(left_out);
        Ok(Self {
            kernel: found.kernel,
            initrd: found.initrd,
            cmdline,
            name: format!("{} in {}", found.kernel_path, disk.display()),
            notes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whether_there_are_tables_is_the_kernels_to_say_unless_it_is_said() {
        let (stock, ours) = (&b"LNXPWRBN\0"[..], &b"LNXPWRBN\0virtio_mmio.device\0"[..]);
        for (acpi, revision, kernel, has) in [
            (Acpi::Auto, ACPI_REVISION, stock, true),
            (Acpi::Auto, ACPI_REVISION, ours, false),
            (Acpi::Auto, ACPI_REVISION - 1, stock, false),
            (Acpi::On, ACPI_REVISION, ours, true),
            (Acpi::Off, ACPI_REVISION, stock, false),
        ] {
            assert_eq!(acpi.of(revision, kernel).unwrap(), has, "{acpi:?} {revision}");
        }
        let refused = Acpi::On.of(ACPI_REVISION - 1, stock).unwrap_err().to_string();
        assert!(refused.contains("needs revision"), "{refused}");
    }
}
