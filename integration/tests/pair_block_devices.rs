//! Disks of a pair that are block devices: LVM volumes and partitions to their operators, loop devices here.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lockstep_integration::disk::LoopDevice;
use lockstep_integration::gate::{require_loop_device, require_program, require_root_net};
use lockstep_integration::pair::{Journal, LIMIT, Protected, Scene, Setup};
use lockstep_integration::ring::Ring;
use lockstep_integration::snapshot::BOOT_LIMIT;
use lockstep_integration::{Guest, Kind, Run, work_dir};

/// Bytes that a ring may have here: all of it is kept.
const ENOUGH: &str = "2000000000";

/// A block device over an image, by a name that stays, as those of /dev/disk/by-id.
struct NamedDevice {
    image: PathBuf,
    name: PathBuf,
    device: LoopDevice,
}

impl NamedDevice {
    fn over(image: &Path) -> Result<Self> {
        let device = LoopDevice::over(image)?;
        let name = image.with_extension("by-id");
        symlink(device.path(), &name)?;
        Ok(Self {
            image: image.to_owned(),
            name,
            device,
        })
    }

    /// After a reboot its name leads to a device with another number.
    fn reboot(&mut self) -> Result<()> {
        let other = LoopDevice::over(&self.image)?;
        std::fs::remove_file(&self.name)?;
        symlink(other.path(), &self.name)?;
        self.device = other;
        Ok(())
    }
}

/// Hosts of which this one has a block device as its disk.
fn with_block_device(setup: Setup, host: usize) -> Result<(Scene, NamedDevice)> {
    let mut scene = setup.disk().build()?;
    let disks = scene.disks.as_mut().context("the machine has no disk")?;
    let device = NamedDevice::over(&disks[host])?;
    disks[host].clone_from(&device.name);
    Ok((scene, device))
}

/// The marks of a host's block devices.
fn marks(scene: &Scene, host: usize) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(scene.pair.state_dir(host).join("disks"))?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn can_run() -> bool {
    require_root_net() && require_loop_device() && require_program("losetup", "mount")
}

#[test]
fn a_replica_on_a_block_device_is_whole_and_boots_no_machine_after_a_reboot() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (scene, mut device) = with_block_device(Setup::new("pair-block-backup"), 1)?;
    let mut primary = scene.start_primary(0)?;
    Journal::start(&mut primary)?;
    let backup = scene.start_backup(1)?;
    primary.wait_for_state("protected", LIMIT)?;
    let found = marks(&scene, 1)?;
    ensure!(found.len() == 1 && found[0].ends_with("by-id.replica"), "{found:?}");
    let counter = scene.count()?;
    let alone = Protected::new(scene, primary, backup, counter)?.kill_backup()?;
    device.reboot()?;
    let boot = Run::bare()?
        .env("LOCKSTEP_STATE_DIR", &alone.scene.pair.state_dir(1))
        .disk(&device.name);
    let refused = Kind::Redis.boot(&Guest::find()?, boot).complete(BOOT_LIMIT)?;
    ensure!(refused.status.code() == Some(1), "{}", refused.status);
    ensure!(refused.messages.contains("is a backup's"), "{}", refused.messages);
    let protected = alone.protect()?;
    let state = protected.scene.pair.state_dir(1).join("disks");
    protected.settle_with_disks()?;
    // The backup went live.
    let left: Vec<_> = std::fs::read_dir(state)?.collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn a_primarys_block_device_is_copied_and_recorded_whole() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let ring = work_dir("pair-block-ring")?.join("log");
    let record = ["--record", ring.to_str().context("path")?, "--record-max-bytes", ENOUGH];
    let setup = Setup::new("pair-block-primary").arguments(0, &record);
    let (scene, device) = with_block_device(setup, 0)?;
    let bytes = std::fs::metadata(&device.image)?.len();
    let mut primary = scene.start_primary(0)?;
    Journal::start(&mut primary)?;
    let backup = scene.start_backup(1)?;
    primary.wait_for_state("protected", LIMIT)?;
    let counter = scene.count()?;
    Protected::new(scene, primary, backup, counter)?.settle_with_disks()?;
    let recorded = Ring::look(&ring)?;
    recorded.verify()?;
    for (_, part) in &recorded.parts {
        let copy = std::fs::metadata(part.join("disk-0.start"))?.len();
        ensure!(copy == bytes, "{}: {copy} bytes of {bytes}", part.display());
    }
    Ok(())
}
