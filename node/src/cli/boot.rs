//! What a machine is made from where it is booted, the same for both programs.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use lockstep_proto::program::newest_revision;
use lockstep_vmm::probe::Start;
use lockstep_vmm::snapshot::Restore;

use super::args::DeviceArgs;
use crate::out::one_line;
use crate::start::{self, Acpi, BootOptions, Clock, Kernel, Started};
use crate::tell;

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
        default_value_t = newest_revision(),
        value_parser = clap::value_parser!(u32).range(1..=i64::from(newest_revision())),
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
    /// What the clock of a machine that goes on from a snapshot does about the time since then. `freeze`: it goes on from where it
    /// was and never looks at this host's calendar. `slew`: it comes back to that by 500 ppm, from at most 1000 s. `set`: the CMOS
    /// clock shows this host's calendar, and the guest's own clock is right when the guest reads it. Without it: as `freeze`, until
    /// somebody sets this host's calendar.
    // Where --kernel rules --snapshot out, clap asks for that no more.
    #[arg(
        long,
        value_name = "HOW",
        value_enum,
        requires = "snapshot",
        conflicts_with = "kernel"
    )]
    pub clock: Option<Clock>,
}

/// Refuses a machine that is a fork of that of a pair with this name: it would be taken for it.
pub fn check_no_fork_of(name: &str, forked_from: &[String]) -> Result<()> {
    if forked_from.iter().any(|known| known == name) {
        bail!(
            "the snapshot is a fork of machine `{name}` and not that machine: give it another --name, on both nodes, and \
             disks of its own"
        );
    }
    Ok(())
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

    /// Looks whether what would be booted is there and runs on this host, before anything is written for it. `name`: of a pair's
    /// machine.
    pub fn check(&self, name: Option<&str>, devices: &DeviceArgs, host: &Start) -> Result<()> {
        if let (Some(name), Some(snapshot)) = (name, &self.snapshot) {
            check_no_fork_of(name, Restore::open(snapshot)?.forked_from())?;
        }
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
                let (mut machine, digest) = Restore::open(path)?.finish(&host.class)?;
                tracing::debug!(digest = ?digest, "restored");
                if let Some(name) = name {
                    check_no_fork_of(name, machine.forked_from())?;
                }
                if let Some(clock) = self.clock {
                    clock.prepare(&mut machine)?;
                }
                Started {
                    machine,
                    kernel_digest: Vec::new(),
                    initrd_digest: Vec::new(),
                    kernel_path: String::new(),
                    kernel_build_id: Vec::new(),
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
