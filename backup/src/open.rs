//! Opening a recording for a replay: the log, the machine at its start, the disks as they were then.

use std::path::Path;

use anyhow::{Context, Result, bail};
use lockstep_logcodec::LogReader;
use lockstep_primary::host::disk::Disks;
use lockstep_primary::host::image::Image;
use lockstep_primary::recording::{digest_of, start_disk, start_snapshot};
use lockstep_proto::Identity;
use lockstep_vmm::machine::Machine;
use lockstep_vmm::probe::Start;
use lockstep_vmm::snapshot::Restore;

use crate::Replayer;

/// A recording that can be replayed on this host.
pub struct Opened {
    /// The machine at the recording's start.
    pub machine: Machine,
    /// The oracle.
    pub replayer: Replayer,
    /// Who was recorded.
    pub identity: Identity,
}

/// Opens the recording in `directory`.
pub fn open(directory: &Path, host: &Start) -> Result<Opened> {
    let host_class = &host.class;
    let reader = LogReader::open(directory)?;
    let identity = reader.identity().clone();
    if identity.host_class != *host_class {
        bail!(
            "this recording was made on a host of class `{}` and this host is `{host_class}`: replay it on a host of its class",
            identity.host_class
        );
    }
    let (mut machine, digest) = Restore::open(&start_snapshot(directory))?.finish(host_class)?;
    if identity.start_digest != digest[..] {
        bail!(
            "{} is not the start state that the log names: it was replaced",
            start_snapshot(directory).display()
        );
    }
    let mut images = Vec::new();
    for (index, expected) in identity.disk_digests.iter().enumerate() {
        let path = start_disk(directory, index);
        if *expected != digest_of(&path)?[..] {
            bail!("{} is not the disk that the log names: it was changed", path.display());
        }
        let image =
            Image::overlay(&path, &std::env::temp_dir()).with_context(|| format!("cannot open {}", path.display()))?;
        images.push(image);
    }
    machine.reset_slots_after_delta(host.strategies.reset_slots_after_delta);
    machine.attach_to_this_thread()?;
    machine.start_epochs()?;
    let disks = Disks::start(images, None)?;
    let mut replayer = Replayer::new(Box::new(reader), &machine, disks);
    replayer.resume(&machine)?;
    Ok(Opened {
        machine,
        replayer,
        identity,
    })
}
