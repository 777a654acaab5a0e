//! A disk whose writes or whose syncs fail when a test says so: a file system in user space (FUSE) with one file.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, FUSE_ROOT_ID, FileAttr, FileType, Filesystem, MountOption, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyWrite, Request,
};
use nix::libc::{EIO, ENOENT};
use tempfile::TempDir;

/// The one file's name, and its number beside the root's.
const NAME: &str = "disk.img";
const FILE: u64 = 2;
/// Neither name nor size changes.
const VALID: Duration = Duration::from_secs(3600);

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every write, with EIO.
    Writes,
    /// Every sync, with EIO; what is written is there all the same.
    Syncs,
}

/// An image that is reached through a file system that can fail. Dropping it unmounts that.
pub struct FaultyDisk {
    path: PathBuf,
    fails: Arc<AtomicU8>,
    // Ends before its directory.
    _session: BackgroundSession,
    _mounted: TempDir,
}

impl FaultyDisk {
    /// For `image`; whoever uses it opens [`FaultyDisk::path`] instead.
    pub fn new(image: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(image)?;
        let fails = Arc::new(AtomicU8::new(0));
        let system = OneFile {
            bytes: file.metadata()?.len(),
            file,
            fails: fails.clone(),
        };
        // Not where the test's files are: what a killed test leaves mounted could not be removed there.
        let mounted = tempfile::Builder::new().prefix("lockstep-faulty-").tempdir()?;
        let session = fuser::spawn_mount2(system, mounted.path(), &[MountOption::FSName("lockstep".into())])
            .context("no file system can be mounted through /dev/fuse")?;
        // The marks beside an image are on a good disk.
        let path = image.with_extension("faulty");
        symlink(mounted.path().join(NAME), &path)?;
        Ok(Self {
            path,
            fails,
            _session: session,
            _mounted: mounted,
        })
    }

    /// Where the image is, for whom it is to fail.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on this fails.
    pub fn fail(&self, fault: Fault) {
        self.fails.store(fault as u8 + 1, Ordering::Relaxed);
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        // What it leads to is gone.
        let _ = fs::remove_file(&self.path);
    }
}

struct OneFile {
    file: File,
    bytes: u64,
    /// Number of the fault, from one.
    fails: Arc<AtomicU8>,
}

impl OneFile {
    fn fails(&self, fault: Fault) -> bool {
        self.fails.load(Ordering::Relaxed) == fault as u8 + 1
    }

    fn attributes(&self, number: u64) -> FileAttr {
        let is_file = number == FILE;
        let time = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: number,
            size: if is_file { self.bytes } else { 0 },
            blocks: self.bytes.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: if is_file {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: if is_file { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for OneFile {
    fn lookup(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEntry) {
        if parent == FUSE_ROOT_ID && name == NAME {
            reply.entry(&VALID, &self.attributes(FILE), 0);
        } else {
            reply.error(ENOENT);
        }
    }

    fn getattr(&mut self, _: &Request<'_>, number: u64, _: Option<u64>, reply: ReplyAttr) {
        reply.attr(&VALID, &self.attributes(number));
    }

    fn read(
        &mut self,
        _: &Request<'_>,
        _: u64,
        _: u64,
        offset: i64,
        size: u32,
        _: i32,
        _: Option<u64>,
        reply: ReplyData,
    ) {
        let offset = offset.unsigned_abs();
        let mut data = vec![0; u64::from(size).min(self.bytes.saturating_sub(offset)) as usize];
        match self.file.read_exact_at(&mut data, offset) {
            Ok(()) => reply.data(&data),
            Err(_) => reply.error(EIO),
        }
    }

    fn write(
        &mut self,
        _: &Request<'_>,
        _: u64,
        _: u64,
        offset: i64,
        data: &[u8],
        _: u32,
        _: i32,
        _: Option<u64>,
        reply: ReplyWrite,
    ) {
        if self.fails(Fault::Writes) || self.file.write_all_at(data, offset.unsigned_abs()).is_err() {
            reply.error(EIO);
        } else {
            reply.written(data.len() as u32);
        }
    }

    fn fsync(&mut self, _: &Request<'_>, _: u64, _: u64, _: bool, reply: ReplyEmpty) {
        if self.fails(Fault::Syncs) || self.file.sync_data().is_err() {
            reply.error(EIO);
        } else {
            reply.ok();
        }
    }
}
