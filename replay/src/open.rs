//! Opening a recording for a replay: the log, the machine at its start, the disks as they were then.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lockstep_logcodec::LogReader;
use lockstep_node::host::disk::Disks;
use lockstep_node::host::image::Image;
use lockstep_node::recording::{digest_of_disk, start_disk, start_snapshot};
use lockstep_node::start::adapt;
use lockstep_proto::Identity;
use lockstep_proto::program::{model_revisions, newest_revision};
use lockstep_vmm::cpu::profile::Profile;
use lockstep_vmm::machine::Machine;
use lockstep_vmm::probe::Start;
use lockstep_vmm::snapshot::Restore;

use crate::Replayer;
use crate::extent::UpTo;
use crate::patience::Patience;
use crate::replayer::SavedReplay;

/// A recording that can be replayed on this host.
pub struct Opened {
    /// The machine at the recording's start.
    pub machine: Machine,
    /// The oracle.
    pub replayer: Replayer,
    /// Who was recorded.
    pub identity: Identity,
}

/// Opens the recording in `directory`. Of one that is being written the replay has what there is now.
pub fn open(directory: &Path, host: &Start) -> Result<Opened> {
    let host_class = &host.class;
    let reader = LogReader::open(directory)?;
    let identity = reader.identity().clone();
    if let Some(obstacle) = obstacle(directory, &identity, host_class) {
        bail!("this recording cannot be replayed here: {obstacle}");
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
        if *expected != digest_of_disk(&path, &identity)?[..] {
            bail!("{} is not the disk that the log names: it was changed", path.display());
        }
        images.push(overlay(&path)?);
    }
    let mut replayer = attach(&mut machine, images, reader, directory, host)?;
    replayer.resume(&machine)?;
    Ok(Opened {
        machine,
        replayer,
        identity,
    })
}

/// Goes on with the log in `directory` from where `saved` stood in it, on the machine and the disks that were saved there. All that
/// the log has to compare with is compared with them.
pub fn go_on(
    directory: &Path,
    saved: &SavedReplay,
    snapshot: &Path,
    disks: &[PathBuf],
    host: &Start,
) -> Result<Opened> {
    let reader = LogReader::open(directory)?;
    let identity = reader.identity().clone();
    let (mut machine, _) = Restore::open(snapshot)?.finish(&host.class)?;
    let images = disks.iter().map(|path| overlay(path)).collect::<Result<_>>()?;
    let mut replayer = attach(&mut machine, images, reader, directory, host)?;
    replayer.go_on_from(saved, &machine)?;
    Ok(Opened {
        machine,
        replayer,
        identity,
    })
}

fn overlay(path: &Path) -> Result<Image> {
    Image::overlay(path, &std::env::temp_dir()).with_context(|| format!("cannot open {}", path.display()))
}

/// A replayer of all that `reader` has, for a machine that is to run on this thread.
fn attach(
    machine: &mut Machine,
    images: Vec<Image>,
    reader: LogReader,
    directory: &Path,
    host: &Start,
) -> Result<Replayer> {
    adapt(machine, &host.strategies)?;
    let timer = machine.attach_to_this_thread()?.timer();
    let timer = timer.context("cannot make a timer")?;
    machine.start_epochs()?;
    let disks = Disks::start(images, None)?;
    Ok(Replayer::new(
        Box::new(UpTo::now(reader, directory)),
        machine,
        disks,
        Patience::new(timer),
    ))
}

/// Why a recording cannot be replayed on a host of class `host_class`, as far as can be told without trying; `None` where
/// nothing speaks against it.
pub fn obstacle(directory: &Path, identity: &Identity, host_class: &str) -> Option<String> {
    let machine = identity.machine.clone().unwrap_or_default();
    if !model_revisions().contains(&machine.model_revision) {
        return Some(format!(
            "the machine is of model revision {} and this program has 1 to {}: use the version that recorded it",
            machine.model_revision,
            newest_revision()
        ));
    }
    let Some(profile) = Profile::by_name(&machine.cpu_profile) else {
        return Some(format!(
            "this program has no CPU profile `{}`: use the version that recorded it",
            machine.cpu_profile
        ));
    };
    if Profile::for_this_host() != Some(profile) {
        return Some(format!(
            "its CPU profile `{}` is not for this host's CPU: replay it on a host with a CPU of that kind",
            machine.cpu_profile
        ));
    }
    if identity.host_class != host_class {
        return Some(format!(
            "it was made on a host of class `{}` and this host is `{host_class}`: replay it on a host of its class",
            identity.host_class
        ));
    }
    let disks = (0..identity.disk_digests.len()).map(|disk| start_disk(directory, disk));
    std::iter::once(start_snapshot(directory))
        .chain(disks)
        .find(|path| !path.is_file())
        .map(|path| format!("{} is missing: copy the directory again, as a whole", path.display()))
}
