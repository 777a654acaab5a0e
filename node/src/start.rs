//! How a machine comes to be: booted from a kernel, or restored from a snapshot.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lockstep_proto::model::ACPI_REVISION;
use lockstep_proto::{DiskConfig, MachineConfig, NicConfig};
use lockstep_vmm::acpi::Tables;
use lockstep_vmm::cpu::profile::Profile;
use lockstep_vmm::devices::Devices;
use lockstep_vmm::loader::cmdline::{self, Facts};
use lockstep_vmm::loader::finalize::{self, NoPlace, Place};
use lockstep_vmm::loader::{self, features, rewrite::RewriteReport};
use lockstep_vmm::machine::Machine;
use lockstep_vmm::probe::Strategies;
use xxhash_rust::xxh3::xxh3_128;

use crate::bootdisk;
use crate::host::format::check_raw;
use crate::host::image::SECTOR;
use crate::host::mark::check_no_replica;
use crate::host::random;
use crate::host::size::bytes_of;

/// A disk on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOption {
    /// The raw image.
    pub path: PathBuf,
    /// The guest may not write.
    pub read_only: bool,
}

/// A NIC on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicOption {
    /// Name of an existing tap device.
    pub tap: String,
    /// The guest's address, where one was given.
    pub mac: Option<[u8; 6]>,
    /// Most bytes of a packet, which the guest is told, where that was given.
    pub mtu: Option<u32>,
}

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
    fn of(self, revision: u32, vmlinux: &[u8]) -> Result<bool> {
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

/// What a machine is booted from.
#[derive(Clone, Debug)]
pub struct BootOptions {
    /// Where the kernel is.
    pub kernel: Kernel,
    /// Initial root file system, where the kernel is a file.
    pub initrd: Option<PathBuf>,
    /// Words that its command line begins with: what is said of the same behind them counts more.
    pub first_words: String,
    /// Words for the kernel's command line beside those that the machine needs.
    pub cmdline: String,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Disks, in order.
    pub disks: Vec<DiskOption>,
    /// NICs, in order.
    pub nics: Vec<NicOption>,
    /// The machine's name, if it has one.
    pub name: Option<String>,
    /// Revision of the device model.
    pub model_revision: u32,
    /// ACPI tables.
    pub acpi: Acpi,
    /// The programs' RDTSC are to be answered by the machine.
    pub guarded: bool,
}

/// A machine at its start, and what it was made from.
pub struct Started {
    /// The machine.
    pub machine: Machine,
    /// Digests of the kernel and the initrd; empty for a snapshot, whose own digest says it all.
    pub kernel_digest: Vec<u8>,
    /// See above.
    pub initrd_digest: Vec<u8>,
    /// Path of the kernel.
    pub kernel_path: String,
    /// What was rewritten in the kernel.
    pub rewrites: Option<RewriteReport>,
    /// What is to be told of what it was made from.
    pub notes: Vec<String>,
}

/// What a kernel is loaded with.
struct Payload {
    kernel: Vec<u8>,
    initrd: Option<Vec<u8>>,
    /// Words beside those that the machine needs.
    cmdline: String,
    /// Where the kernel is, for the log and for people.
    name: String,
    notes: Vec<String>,
}

impl Payload {
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

/// Size of a disk image, checked.
pub fn disk_bytes(path: &Path) -> Result<u64> {
    let bytes = File::open(path)
        .and_then(|disk| {
            check_raw(path, &disk)?;
            bytes_of(&disk)
        })
        .with_context(|| format!("cannot use disk image {}", path.display()))?;
    if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
        bail!(
            "disk image {} has {bytes} bytes: a raw image has a multiple of 512, and more than none",
            path.display()
        );
    }
    Ok(bytes)
}

/// The cards' addresses: those that were given; the others follow from the machine's name, which both of its hosts know, and
/// the card's number. A machine without a name has its tap devices' names instead, which differ on one host.
pub fn macs(nics: &[NicOption], name: Option<&str>) -> Result<Vec<[u8; 6]>> {
    let mut macs: Vec<[u8; 6]> = Vec::new();
    for (index, nic) in nics.iter().enumerate() {
        let mac = nic.mac.unwrap_or_else(|| default_mac(name.unwrap_or(&nic.tap), index));
        if let Some(other) = macs.iter().position(|other| *other == mac) {
            bail!(
                "network cards {other} and {index} (tap {} and {}) would both have the address {}",
                nics[other].tap,
                nic.tap,
                mac_text(mac)
            );
        }
        macs.push(mac);
    }
    Ok(macs)
}

/// Locally administered, unicast: `RL`, and 32 bits that depend on all of it.
fn default_mac(name: &str, index: usize) -> [u8; 6] {
    let [a, b, c, d, ..] = xxh3_128(format!("{name}\0{index}").as_bytes()).to_be_bytes();
    [0x52, 0x4c, a, b, c, d]
}

/// An address as people write it.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Boots a kernel.
pub fn boot(options: &BootOptions) -> Result<Started> {
    let Payload {
        kernel,
        initrd,
        cmdline: words,
        name,
        mut notes,
    } = Payload::of(options)?;
    let profile = Profile::for_this_host()
        .context("this host's CPU is neither Intel's nor AMD's: there is no CPU profile for it")?;
    let mut disks = Vec::new();
    for (index, disk) in options.disks.iter().enumerate() {
        let bytes = disk_bytes(&disk.path)?;
        disks.push(DiskConfig {
            bytes,
            read_only: disk.read_only,
            serial: format!("lockstep-{index}"),
        });
    }
    let nics = macs(&options.nics, options.name.as_deref())?
        .iter()
        .zip(&options.nics)
        .map(|(mac, nic)| NicConfig {
            mac: mac.to_vec().into(),
            mtu: nic.mtu.unwrap_or(0),
        })
        .collect();
    let memory_bytes = options
        .memory_mib
        .checked_mul(1 << 20)
        .context("--memory-mib is too large")?;
    let mut config = MachineConfig {
        memory_bytes,
        cmdline: String::new(),
        disks,
        nics,
        rtc_base: realtime_seconds(),
        cpu_profile: profile.name().into(),
        model_revision: options.model_revision,
        module_trap: 0,
    };
    let loading = || format!("cannot load {name}");
    let vmlinux = loader::vmlinux(&kernel).with_context(loading)?;
    let acpi = options.acpi.of(config.model_revision, &vmlinux)?;
    let devices = if acpi {
        Devices::acpi_cmdline_words()
    } else {
        Devices::cmdline_words(&config)
    };
    let words = format!("{} {words}", options.first_words);
    config.cmdline = cmdline::compose(
        &words,
        &devices,
        Facts {
            acpi,
            guarded: options.guarded,
        },
    )?;
    let modules = module_place(&config, &vmlinux, &mut notes);
    config.module_trap = modules.map_or(0, |place| place.vaddr);
    let tables = acpi.then(|| Tables::of(&config));
    let mut seed = [0; 32];
    random::fill(&mut seed).context("getrandom")?;
    let cmdline = config.cmdline.clone();
    let mut machine = Machine::create(config)?;
    let loaded = loader::load(
        machine.memory().ram(),
        &vmlinux,
        initrd.as_deref(),
        &cmdline,
        &seed,
        options.guarded,
        tables.as_ref(),
    )
    .with_context(loading)?;
    if let Some(place) = &modules {
        finalize::plant(machine.memory().ram(), place).with_context(loading)?;
    }
    machine.set_boot_state(&loaded)?;
    Ok(Started {
        machine,
        kernel_digest: xxh3_128(&kernel).to_be_bytes().to_vec(),
        initrd_digest: initrd.map_or_else(Vec::new, |initrd| xxh3_128(&initrd).to_be_bytes().to_vec()),
        kernel_path: name,
        rewrites: Some(loaded.rewrites),
        notes,
    })
}

/// Where the machine looks through the modules of this kernel, if its revision does; says so where it cannot.
fn module_place(config: &MachineConfig, vmlinux: &[u8], notes: &mut Vec<String>) -> Option<Place> {
    if !config.may_trap_modules() {
        return None;
    }
    match finalize::find_in(vmlinux) {
        Ok(place) => Some(place),
        Err(NoPlace::NoModules) => None,
        Err(why) => {
            notes.push(format!("modules of this kernel are not looked through: {why}"));
            None
        }
    }
}

/// Lets the machine do as this host wants it. Before its first step, on every replica.
pub fn adapt(machine: &mut Machine, strategies: &Strategies) -> Result<()> {
    machine.reset_slots_after_delta(strategies.reset_slots_after_delta);
    machine.guard_programs(strategies.guard_programs);
    machine.give_cut_msrs(strategies.gives_cut_msrs)?;
    Ok(())
}

/// Seconds since 1970-01-01 on the host.
pub fn realtime_seconds() -> i64 {
    crate::host::clock::realtime().as_secs() as i64
}

#[cfg(test)]
mod tests;
