//! How a machine comes to be: booted from a kernel, or restored from a snapshot.

mod clock;
mod kernel;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lockstep_proto::{DiskConfig, MachineConfig, NicConfig};
use lockstep_vmm::acpi::Tables;
use lockstep_vmm::cpu::profile::Profile;
use lockstep_vmm::devices::Devices;
use lockstep_vmm::loader::cmdline::{self, Facts};
use lockstep_vmm::loader::finalize::{self, NoPlace, Place};
use lockstep_vmm::loader::{self, rewrite::RewriteReport};
use lockstep_vmm::machine::Machine;
use lockstep_vmm::probe::Strategies;
use xxhash_rust::xxh3::xxh3_128;

use self::kernel::{Payload, cannot_load};
use crate::host::format::check_raw;
use crate::host::image::SECTOR;
use crate::host::random;
use crate::host::size::bytes_of;

pub use clock::Clock;
pub use kernel::{Acpi, Kernel};

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
    /// A program's SYSCALL is a fault on this host: only kernels that take it for the system call run here.
    pub syscalls_fault: bool,
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
    /// Its build id; empty where it has none, and for a snapshot.
    pub kernel_build_id: Vec<u8>,
    /// What was rewritten in the kernel.
    pub rewrites: Option<RewriteReport>,
    /// What is to be told of what it was made from.
    pub notes: Vec<String>,
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

/// Looks whether what would be booted is there and runs on this host. Nothing is written.
pub fn check(options: &BootOptions) -> Result<()> {
    Payload::of(options).map(drop)
}

/// Boots a kernel.
pub fn boot(options: &BootOptions) -> Result<Started> {
    let Payload {
        kernel_digest,
        build_id,
        vmlinux,
        initrd,
        acpi,
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
    let loading = || cannot_load(&name);
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
        kernel_digest,
        initrd_digest: initrd.map_or_else(Vec::new, |initrd| xxh3_128(&initrd).to_be_bytes().to_vec()),
        kernel_path: name,
        kernel_build_id: build_id,
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
