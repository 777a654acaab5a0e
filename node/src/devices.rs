//! A machine's disks and tap devices on this host, opened, and the marks of disks that are a backup's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lockstep_proto::MachineConfig;
use lockstep_vmm::devices::DiskOp;

use crate::durable;
use crate::host::format::check_raw;
use crate::host::image::Image;
use crate::host::mark::{beside, check_no_mark, mark_of};
use crate::host::size::marked_as;
use crate::host::tap::{TapKeeper, TapSender, Taps};
use crate::start::{DiskOption, NicOption};

/// What a machine's devices need of the host, opened.
pub struct HostDevices {
    taps: Vec<TapSender>,
    /// What each card tells the guest; 0: nothing.
    mtus: Vec<u32>,
    keeper: TapKeeper,
    images: Vec<Image>,
    paths: Vec<PathBuf>,
    /// What each disk's marks are named after.
    marked_as: Vec<PathBuf>,
}

/// The devices one by one, for a machine that goes live.
pub struct Parts {
    /// One for each NIC.
    pub taps: Vec<TapSender>,
    /// Keeps them bound.
    pub keeper: TapKeeper,
    /// The disks.
    pub images: Vec<Image>,
    /// Their files.
    pub paths: Vec<PathBuf>,
}

impl HostDevices {
    /// Opens tap devices and disk images. A tap device that does not exist is waited for: a node can stand by without.
    pub fn open(disks: &[DiskOption], nics: &[NicOption]) -> Result<Self> {
        let taps = nics
            .iter()
            .map(|nic| TapSender::open_or_wait(&nic.tap))
            .collect::<std::io::Result<Vec<_>>>()?;
        let images = disks
            .iter()
            .map(|disk| {
                Image::open(&disk.path, disk.read_only)
                    .and_then(|image| raw(&disk.path, image))
                    .with_context(|| format!("cannot open disk image {}", disk.path.display()))
            })
            .collect::<Result<Vec<_>>>()?;
        let paths: Vec<PathBuf> = disks.iter().map(|disk| disk.path.clone()).collect();
        let marked_as = paths
            .iter()
            .map(|path| marked_as(path))
            .collect::<std::io::Result<_>>()?;
        Ok(Self {
            keeper: TapKeeper::start(&taps)?,
            taps,
            mtus: nics.iter().map(|nic| nic.mtu.unwrap_or(0)).collect(),
            images,
            paths,
            marked_as,
        })
    }

    /// Whether none of the machine's network cards is connected to anything: none was given. A machine that is alone may be so.
    pub fn are_unplugged(&self, config: &MachineConfig) -> bool {
        self.taps.is_empty() && !config.nics.is_empty()
    }

    /// Whether they are those of a machine with this configuration.
    pub fn check(&self, config: &MachineConfig) -> Result<()> {
        self.check_nics(config)?;
        self.check_disks(config)
    }

    fn check_nics(&self, config: &MachineConfig) -> Result<()> {
        if config.nics.len() != self.taps.len() {
            bail!(
                "the machine has {} NICs and {} were given with --net",
                config.nics.len(),
                self.taps.len()
            );
        }
        for (index, (nic, mtu)) in config.nics.iter().zip(&self.mtus).enumerate() {
            if nic.mtu != *mtu {
                let told = |mtu: u32| {
                    if mtu == 0 {
                        "no mtu=".into()
                    } else {
                        format!("mtu={mtu}")
                    }
                };
                bail!(
                    "the machine's NIC {index} was made with {}, and --net has {}: give it as the machine has it",
                    told(nic.mtu),
                    told(*mtu)
                );
            }
        }
        Ok(())
    }

    /// The same of the disks alone.
    pub fn check_disks(&self, config: &MachineConfig) -> Result<()> {
        if config.disks.len() != self.images.len() {
            bail!(
                "the machine has {} disks and {} were given with --disk",
                config.disks.len(),
                self.images.len()
            );
        }
        for ((image, path), config) in self.images.iter().zip(&self.paths).zip(&config.disks) {
            if image.bytes()? != config.bytes {
                bail!(
                    "disk image {} has {} bytes and the machine's disk {}",
                    path.display(),
                    image.bytes()?,
                    config.bytes
                );
            }
        }
        Ok(())
    }

    /// How the tap devices are.
    pub fn taps(&self) -> Taps {
        self.keeper.taps()
    }

    /// Whether a machine may boot with them: its tap devices exist, and no disk is a replica's, which is behind, or in the
    /// middle of being copied.
    pub fn check_bootable(&self) -> Result<()> {
        self.taps.iter().try_for_each(TapSender::check)?;
        let mut disks = self.paths.iter().zip(&self.marked_as);
        disks.try_for_each(|(path, marked)| check_no_mark(path, marked))
    }

    /// Marks the disks as a replica's, of the primary with this name: no machine boots from them.
    pub fn mark_replica(&self, primary: &str) -> Result<()> {
        for (path, marked) in self.paths.iter().zip(&self.marked_as) {
            // A mark that is there stays until the new one takes its place: a full disk must not take it away.
            let staged = beside(marked, ".replica.new");
            make_room_for(marked)
                .and_then(|()| durable::stage(&staged, format!("{primary}\n").as_bytes(), 0o644))
                .and_then(|()| durable::publish(&staged, &mark_of(marked)))
                .with_context(|| format!("cannot mark {} as a backup's", path.display()))?;
        }
        Ok(())
    }

    /// Makes the disks a live machine's: what was written is on the disk, and then the mark goes.
    pub fn unmark_replica(&mut self) -> Result<()> {
        let named = self.paths.iter().zip(&self.marked_as);
        for (image, (path, marked)) in self.images.iter_mut().zip(named) {
            let done = image.execute(&DiskOp::Flush).map(drop);
            done.with_context(|| format!("cannot sync disk image {}", path.display()))?;
            let mark = mark_of(marked);
            if mark.exists() {
                fs::remove_file(&mark)
                    .and_then(|()| durable::settle(&mark))
                    .with_context(|| format!("cannot remove {}", mark.display()))?;
            }
        }
        Ok(())
    }

    /// The disk images, to read.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// Makes a replica's disks those of a machine that is owned here by force. `why` is kept beside them.
    pub fn promote(&mut self, why: &str) -> Result<()> {
        for marked in &self.marked_as {
            let kept = beside(marked, ".promoted");
            make_room_for(marked)
                .and_then(|()| durable::stage(&kept, why.as_bytes(), 0o644))
                .and_then(|()| durable::settle(&kept))
                .with_context(|| format!("cannot write {}", kept.display()))?;
        }
        self.unmark_replica()
    }

    /// The disk images, for a replica; the tap devices stay.
    pub fn take_images(&mut self) -> Vec<Image> {
        std::mem::take(&mut self.images)
    }

    /// Gives the disk images back.
    pub fn put_images(&mut self, disks: &[DiskOption]) -> Result<()> {
        for disk in disks {
            let image = Image::open(&disk.path, disk.read_only);
            self.images
                .push(image.with_context(|| format!("cannot open disk image {}", disk.path.display()))?);
        }
        Ok(())
    }
    /// Takes them apart.
    pub fn into_parts(self) -> Parts {
        Parts {
            taps: self.taps,
            keeper: self.keeper,
            images: self.images,
            paths: self.paths,
        }
    }
}

/// An image, if it is a raw one.
fn raw(path: &Path, image: Image) -> io::Result<Image> {
    if let Image::Raw(file) = &image {
        check_raw(path, file)?;
    }
    Ok(image)
}

/// Makes the directory that a disk's marks lie in. An image's own is there.
fn make_room_for(marked: &Path) -> io::Result<()> {
    let directory = marked.parent().filter(|parent| !parent.as_os_str().is_empty());
    fs::create_dir_all(directory.unwrap_or(Path::new(".")))
}
