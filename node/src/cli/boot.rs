//! What a machine is made from where it is booted, the same for both programs.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use lockstep_proto::model::{MODEL_REVISIONS, NEWEST_REVISION};
use lockstep_vmm::probe::Start;
use lockstep_vmm::snapshot::Restore;

use super::args::DeviceArgs;
use crate::out::one_line;
use crate::start::{self, Acpi, BootOptions, Kernel, Started};
use crate::tell;

/// As clap takes it.
const REVISIONS: RangeInclusive<i64> = *MODEL_REVISIONS.start() as i64..=*MODEL_REVISIONS.end() as i64;

/// A kernel, or a snapshot.
#[derive(Args, Clone, Debug)]
pub struct BootArgs {
    /// Kernel to boot: an ELF vmlinux or a bzImage. `disk`: the guest's own, from its first disk, with initrd and command line
    /// as the guest's configuration has them. (A file of that name is `./disk`.)
    #[arg(long, value_name = "FILE|disk", value_parser = parse_kernel, conflicts_with = "snapshot")]
    pub kernel: Option<Kernel>,
    /// Initial root file system (cpio).
    #[arg(long, value_name = "FILE", conflicts_with = "snapshot")]
    pub initrd: Option<PathBuf>,
    /// Words for the kernel's command line, beside those that the machine needs.
    #[arg(long, value_name = "WORDS", default_value = "", conflicts_with = "snapshot")]
    cmdline: String,
    /// Guest memory in MiB.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u64).range(16..=262_144))]
    memory_mib: u64,
    /// Revision of the device model: the newest, unless the other node of a pair runs an older program.
    #[arg(
        long,
        value_name = "N",
        default_value_t = NEWEST_REVISION,
        value_parser = clap::value_parser!(u32).range(REVISIONS),
        conflicts_with = "snapshot"
    )]
    pub model_revision: u32,
    /// ACPI tables: with `auto` if the kernel has ACPI and does not take its devices from the command line
    /// (`virtio_mmio.device=`), as distributions' kernels.
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Acpi::Auto, conflicts_with = "snapshot")]
    pub acpi: Acpi,
    /// Go on from a snapshot instead of booting.
    #[arg(long, value_name = "FILE")]
    pub snapshot: Option<PathBuf>,
}

fn parse_kernel(text: &str) -> Result<Kernel, String> {
    if text.is_empty() {
        return Err("the kernel's path is missing".into());
    }
    Ok(Kernel::from(text))
}

impl BootArgs {
    /// Guest memory in MiB.
    pub fn memory_mib(&self) -> u64 {
        self.memory_mib
    }

    /// Looks whether what would be booted is there and runs on this host, before anything is written for it.
    pub fn check(&self, devices: &DeviceArgs, host: &Start) -> Result<()> {
        match &self.kernel {
            Some(kernel) => start::check(&self.options(kernel, None, "", devices, host)),
            None => Ok(()),
        }
    }

    fn options(
        &self,
        kernel: &Kernel,
        name: Option<&str>,
        first_words: &str,
        devices: &DeviceArgs,
        host: &Start,
    ) -> BootOptions {
        BootOptions {
            kernel: kernel.clone(),
            initrd: self.initrd.clone(),
            first_words: first_words.into(),
            cmdline: self.cmdline.clone(),
            memory_mib: self.memory_mib,
            disks: devices.disk.clone(),
            nics: devices.net.clone(),
            name: name.map(str::to_owned),
            model_revision: self.model_revision,
            acpi: self.acpi,
            guarded: host.strategies.guard_programs,
            syscalls_fault: host.strategies.syscalls_fault,
        }
    }

    /// Makes the machine, on a host as the probe found it. `name`: of a pair's. `first_words`: what its kernel's command line begins
    /// with.
    pub fn start(&self, name: Option<&str>, first_words: &str, devices: &DeviceArgs, host: &Start) -> Result<Started> {
        let mut started = match (&self.snapshot, &self.kernel) {
            (Some(path), _) => {
                let (machine, digest) = Restore::open(path)?.finish(&host.class)?;
                tracing::debug!(digest = ?digest, "restored");
                Started {
                    machine,
                    kernel_digest: Vec::new(),
                    initrd_digest: Vec::new(),
                    kernel_path: String::new(),
                    rewrites: None,
                    notes: Vec::new(),
                }
            }
            (None, Some(kernel)) => start::boot(&self.options(kernel, name, first_words, devices, host))?,
            (None, None) => bail!("--kernel or --snapshot is needed"),
        };
        start::adapt(&mut started.machine, &host.strategies)?;
        for note in &started.notes {
            tell!("lockstep: boot: {}", one_line(note));
        }
        if let Some(report) = &started.rewrites {
            tell!("lockstep: kernel: {report}");
        }
        Ok(started)
    }
}
