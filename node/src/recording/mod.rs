//! A recording's directory: the log, the machine's start state and the disks as they were then.
//!
//! Everything that a replay needs is in it: whatever becomes of the kernel file or the disk images, the recording can be
//! verified. Boot and snapshot are the same case: each recording begins with a snapshot.

mod digest;
pub mod part;
pub mod ring;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lockstep_proto::program::version;
use lockstep_proto::{Identity, Tenure};
use lockstep_vmm::machine::Machine;
use lockstep_vmm::snapshot;

pub use self::digest::digest_of_disk;
use crate::host::chunks::CHUNK;
use crate::host::copy::keep_copy;
use crate::start::{DiskOption, Started, realtime_seconds};

/// Where to record, and how much of it is kept.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory.
    pub directory: PathBuf,
    /// Where any are given, the recording is a ring.
    pub limits: ring::Limits,
}

/// The start state.
pub fn start_snapshot(directory: &Path) -> PathBuf {
    directory.join("start.snapshot")
}

/// A disk as it was at the start.
pub fn start_disk(directory: &Path, disk: usize) -> PathBuf {
    directory.join(format!("disk-{disk}.start"))
}

/// Makes the directory and keeps the start state in it.
pub fn prepare(
    directory: &Path,
    started: &Started,
    host_class: &str,
    disks: &[DiskOption],
    tenure: Option<Tenure>,
) -> Result<Identity> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    if fs::read_dir(directory)?.next().is_some() {
        bail!(
            "{} is not empty: give --record a directory that is new or empty",
            directory.display()
        );
    }
    let machine: &Machine = &started.machine;
    let start_digest = snapshot::save(machine, host_class, &start_snapshot(directory))?;
    let mut identity = Identity {
        kernel_digest: started.kernel_digest.clone().into(),
        initrd_digest: started.initrd_digest.clone().into(),
        disk_digest_chunk: CHUNK as u32,
        from_start: true,
        kernel_path: started.kernel_path.clone(),
        kernel_build_id: started.kernel_build_id.clone().into(),
        start_digest: start_digest.to_vec().into(),
        start_stop: machine.stop().get(),
        start_chain: machine.chain().to_message(),
        ..subject(machine, host_class, tenure)
    };
    for (index, disk) in disks.iter().enumerate() {
        let copy = start_disk(directory, index);
        keep_copy(&disk.path, &copy).with_context(|| {
            format!(
                "cannot keep the start state of {} in the recording",
                disk.path.display()
            )
        })?;
        let digest = digest_of_disk(&copy, &identity)?;
        identity.disk_digests.push(digest.to_vec().into());
    }
    // After the copies, which may take their time: the machine is about to run.
    identity.created = realtime_seconds();
    Ok(identity)
}

/// Who is recorded, where that is all that is known.
pub fn subject(machine: &Machine, host_class: &str, tenure: Option<Tenure>) -> Identity {
    Identity {
        program: format!("lockstep {}", version()),
        machine: Some(machine.config().clone()),
        host_class: host_class.into(),
        tenure,
        ..Identity::default()
    }
}
