//! How a machine comes to be: booted from a kernel, or restored from a snapshot.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lockstep_proto::{DiskConfig, MachineConfig, NicConfig};
use lockstep_vmm::cpu::profile::Profile;
use lockstep_vmm::devices::Devices;
use lockstep_vmm::loader::{self, cmdline, rewrite::RewriteReport};
use lockstep_vmm::machine::Machine;
use lockstep_vmm::probe::Strategies;
use xxhash_rust::xxh3::xxh3_128;

use crate::host::image::SECTOR;
use crate::host::size::bytes_of;
use crate::recorder::fill_random;

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
    /// vmlinux or bzImage.
    pub kernel: PathBuf,
    /// Initial root file system.
    pub initrd: Option<PathBuf>,
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
}

/// Size of a disk image, checked.
pub fn disk_bytes(path: &Path) -> Result<u64> {
    let bytes = File::open(path)
        .and_then(|disk| bytes_of(&disk))
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
    let read =
        |path: &Path, what: &str| fs::read(path).with_context(|| format!("cannot read the {what} {}", path.display()));
    let kernel = read(&options.kernel, "kernel")?;
    let initrd = options.initrd.as_deref().map(|path| read(path, "initrd")).transpose()?;
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
    };
    config.cmdline = cmdline::compose(&options.cmdline, &Devices::cmdline_words(&config))?;
    let mut seed = [0; 32];
    fill_random(&mut seed)?;
    let cmdline = config.cmdline.clone();
    let mut machine = Machine::create(config)?;
    let loaded = loader::load(
        machine.memory().ram(),
        &kernel,
        initrd.as_deref(),
        &cmdline,
        &seed,
        options.guarded,
    )
    .with_context(|| format!("cannot load {}", options.kernel.display()))?;
    machine.set_boot_state(&loaded)?;
    Ok(Started {
        machine,
        kernel_digest: xxh3_128(&kernel).to_be_bytes().to_vec(),
        initrd_digest: initrd.map_or_else(Vec::new, |initrd| xxh3_128(&initrd).to_be_bytes().to_vec()),
        kernel_path: fs::canonicalize(&options.kernel)?.to_string_lossy().into_owned(),
        rewrites: Some(loaded.rewrites),
    })
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
mod tests {
    use super::*;

    #[test]
    fn cards_without_an_address_differ_and_equal_ones_are_refused() {
        let nic = |tap: &str, mac| NicOption {
            tap: tap.into(),
            mac,
            mtu: None,
        };
        let two = [nic("t0", None), nic("t1", None)];
        let of = |name| macs(&two, name).unwrap();
        let all = [of(None), of(Some("vm")), of(Some("db"))].concat();
        for (index, mac) in all.iter().enumerate() {
            assert!(!all[..index].contains(mac), "{all:02x?}");
            assert_eq!(mac[0] & 3, 2, "locally administered, unicast");
        }
        // On the other host the tap devices have other names.
        assert_eq!(
            macs(&[nic("x", None), nic("y", None)], Some("vm")).unwrap(),
            of(Some("vm"))
        );
        let mac = of(Some("vm"))[1];
        let clash = macs(&[nic("t0", Some(mac)), nic("t1", None)], Some("vm"))
            .unwrap_err()
            .to_string();
        assert!(clash.contains("0 and 1") && clash.contains(&mac_text(mac)), "{clash}");
    }
}
