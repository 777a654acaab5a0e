//! The directory of a fork: written beside its place and renamed, so that it is there whole or not at all.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use lockstep_node::host::copy::keep_overlay;
use lockstep_node::host::disk::{Disks, written_by};
use lockstep_node::host::image::SECTOR;
use lockstep_node::host::size::allocated;
use lockstep_vmm::devices::{DiskOp, DiskRequest};
use lockstep_vmm::machine::Machine;
use lockstep_vmm::snapshot;

const SNAPSHOT: &str = "machine.snapshot";

/// Where a fork is to be.
pub struct Target {
    directory: PathBuf,
    /// The directory that it lies in.
    parent: PathBuf,
    name: String,
}

/// A fork's files.
pub struct Written {
    pub directory: PathBuf,
    pub snapshot: PathBuf,
    pub disks: Vec<PathBuf>,
    /// Bytes that all of them take.
    pub bytes: u64,
}

impl Target {
    /// A new directory, or an empty one, outside `recording`.
    pub fn new(directory: &Path, recording: &Path) -> Result<Self> {
        let shown = directory.display();
        let name = directory.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{shown} names no directory that can be made: end it with a name"))?;
        let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let parent = parent
            .canonicalize()
            .with_context(|| format!("cannot make {shown}: {}", parent.display()))?;
        let target = Self {
            directory: directory.into(),
            name: name.into(),
            parent,
        };
        target.check_free()?;
        if let Ok(recording) = recording.canonicalize() {
            ensure!(
                !target.parent.starts_with(&recording),
                "{shown} would lie in the recording, which stays as it is: choose another place"
            );
        }
        Ok(target)
    }

    fn check_free(&self) -> Result<()> {
        let place = self.parent.join(&self.name);
        match fs::symlink_metadata(&place) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot look at {}", self.directory.display())),
            Ok(there) if !there.is_dir() => {}
            Ok(_) if fs::read_dir(&place)?.next().is_none() => return Ok(()),
            Ok(_) => {}
        }
        bail!(
            "{} is there already: name a directory that is new or empty",
            self.directory.display()
        )
    }

    /// Writes the machine, which stands between two turns, and its disks, which are settled.
    pub fn write(&self, machine: &Machine, disks: &Disks, host_class: &str) -> Result<Written> {
        check_in_flight(machine.devices().outstanding_disk_requests())?;
        let cannot = || format!("cannot write {}", self.directory.display());
        // Its memory is the guest's: nobody else reads it.
        let partial = tempfile::Builder::new()
            .prefix(&format!(".{}.", self.name))
            .suffix(".partial")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&self.parent)
            .with_context(cannot)?;
        let mut names = Vec::new();
        for disk in 0..disks.count() {
            let image = disks.image(disk).context("the disk is gone")?;
            let name = format!("disk-{disk}.img");
            keep_overlay(&image, &partial.path().join(&name)).with_context(|| format!("cannot write disk {disk}"))?;
            names.push(name);
        }
        snapshot::save(machine, host_class, &partial.path().join(SNAPSHOT)).with_context(cannot)?;
        let mut bytes = 0;
        for name in names.iter().map(String::as_str).chain([SNAPSHOT]) {
            bytes += File::open(partial.path().join(name)).and_then(|file| allocated(&file))?;
        }
        let settle = |directory: &Path| File::open(directory).and_then(|directory| directory.sync_all());
        settle(partial.path()).with_context(cannot)?;
        // Takes the place of an empty directory, and of nothing else.
        fs::rename(partial.path(), self.parent.join(&self.name)).with_context(cannot)?;
        // It has another name now.
        let _ = partial.keep();
        settle(&self.parent).with_context(cannot)?;
        let place = |name: &str| self.directory.join(name);
        Ok(Written {
            directory: self.directory.clone(),
            snapshot: place(SNAPSHOT),
            disks: names.iter().map(|name| place(name)).collect(),
            bytes,
        })
    }
}

/// What a guest has in flight its fork makes again, on disks that have all of that already. Each write comes to the same; a read
/// does not, where the guest has let a write follow it to the same place without waiting.
fn check_in_flight(requests: impl Iterator<Item = DiskRequest>) -> Result<()> {
    let mut reads: Vec<(u32, std::ops::Range<u64>)> = Vec::new();
    for request in requests {
        if let DiskOp::Read { sector, bytes } = request.op {
            let start = sector * SECTOR;
            reads.push((request.disk, start..start + u64::from(bytes)));
        }
        let Some(written) = written_by(&request.op) else {
            continue;
        };
        let overtakes = |(disk, read): &&(u32, std::ops::Range<u64>)| {
            *disk == request.disk && read.start < written.end && written.start < read.end
        };
        if let Some((disk, read)) = reads.iter().find(overtakes) {
            bail!(
                "the guest reads and writes its disk {disk} at byte {} at one time here, and a fork would read what was written \
                 later: choose a position some milliseconds from here",
                read.start
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_is_new_and_outside_its_recording() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::create_dir_all(at("log/part")).unwrap();
        fs::create_dir(at("empty")).unwrap();
        fs::create_dir(at("full")).unwrap();
        fs::write(at("full/x"), "").unwrap();
        fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", at("link")).unwrap();
        std::os::unix::fs::symlink("log", at("alias")).unwrap();
        for (name, said) in [
            ("new", None),
            ("empty", None),
            ("full", Some("is there already")),
            ("file", Some("is there already")),
            ("link", Some("is there already")),
            ("log", Some("is there already")),
            ("log/new", Some("would lie in the recording")),
            ("log/part/new", Some("would lie in the recording")),
            ("alias/new", Some("would lie in the recording")),
            ("missing/new", Some("cannot make")),
            ("..", Some("names no directory")),
        ] {
            let made = Target::new(&at(name), &at("log"));
            match (made, said) {
                (Ok(_), None) => {}
                (Err(error), Some(said)) => {
                    let error = format!("{error:#}");
                    assert!(error.contains(said), "{name}: {error}");
                }
                (made, _) => panic!("{name}: {}", made.is_ok()),
            }
        }
    }

    #[test]
    fn a_read_that_a_write_would_overtake_is_refused() {
        let read = |disk, sector| DiskRequest {
            disk,
            request: 0,
            op: DiskOp::Read { sector, bytes: 1024 },
        };
        let write = |disk, sector| DiskRequest {
            disk,
            request: 0,
            op: DiskOp::Write {
                sector,
                data: vec![0; 1024],
            },
        };
        for requests in [
            vec![],
            vec![read(0, 8), read(0, 8), write(0, 10), write(0, 6), write(1, 8)],
            vec![write(0, 8), read(0, 8)],
        ] {
            check_in_flight(requests.into_iter()).unwrap();
        }
        for second in [7, 8, 9] {
            let error = check_in_flight([read(1, 8), write(1, second)].into_iter()).unwrap_err();
            assert!(error.to_string().contains("disk 1 at byte 4096"), "{error}");
        }
    }
}
