//! Disks of a pair: records that the guest acknowledged, images that are compared, and a disk that fails.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Advice, fadvise};

use super::{LIMIT, Node};
use crate::disk::{check_ext4, read_file};

/// A program in the guest that appends numbered records to a file and syncs each before it says so on the console.
pub struct Journal;

impl Journal {
    /// Starts it.
    pub fn start(node: &mut Node) -> Result<()> {
        node.run.type_text("appendlog /data/journal 0 20 &\n")?;
        node.run.wait_for("ACK 2", LIMIT)
    }

    /// Ends it, and has the guest write everything that it has not written yet.
    pub fn stop(node: &mut Node) -> Result<()> {
        node.run.type_text("kill %1; wait; sync && echo SYNC''ED\n")?;
        node.run.wait_for("SYNCED", LIMIT)
    }

    /// The last number that a console says was synced, if any; each is one more than the one before it.
    pub fn last_acknowledged(console: &str) -> Result<Option<u64>> {
        // What is typed comes between; and a line that is not whole may have half a number.
        let whole = console.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut last = None;
        for line in whole.lines() {
            let number = line
                .rsplit_once("ACK ")
                .and_then(|(_, number)| number.trim().parse().ok());
            if let (Some(last), Some(number)) = (last, number) {
                ensure!(
                    last + 1 == number,
                    "record {number} is acknowledged after record {last}"
                );
            }
            last = number.or(last);
        }
        Ok(last)
    }

    /// Checks that an image has all records up to the last of those acknowledged, in order, and a sound file system.
    /// The image stays as it is. Returns how many it has.
    pub fn check<'a>(image: &Path, consoles: impl IntoIterator<Item = &'a String>) -> Result<u64> {
        let copy = image.with_extension("checked");
        // Also of a block device.
        fs::write(&copy, fs::read(image)?)?;
        check_ext4(&copy)?;
        let mut count = 0;
        for line in read_file(&copy, "/journal")?.split_inclusive('\n') {
            // The last one may have been on its way.
            let good = line.starts_with(&format!("record {count:020} check ")) || !line.ends_with('\n');
            ensure!(good, "record {count} is {line:?}");
            count += 1;
        }
        for console in consoles {
            let last = Self::last_acknowledged(console)?;
            ensure!(
                last < Some(count),
                "record {last:?} was acknowledged, and the disk has {count}"
            );
        }
        Ok(count)
    }
}

/// Checks that two files have the same bytes.
pub fn check_equal(first: &Path, second: &Path) -> Result<()> {
    let (one, other) = (fs::read(first)?, fs::read(second)?);
    ensure!(one.len() == other.len(), "{} and {} bytes", one.len(), other.len());
    if let Some(at) = one.iter().zip(&other).position(|(one, other)| one != other) {
        let count = one.iter().zip(&other).filter(|(one, other)| one != other).count();
        bail!(
            "{} and {} differ in {count} bytes, the first at {at:#x}",
            first.display(),
            second.display()
        );
    }
    Ok(())
}

/// A host's disk whose file system lies in a file on a small tmpfs, by a loop device, in a mount namespace of the program
/// that uses it; all of it ends with the program.
pub struct FailingDisk {
    dir: PathBuf,
}

/// MiB of the file system, more than the image has and than is free for anything else.
const FILE_SYSTEM_MIB: u64 = 40;
/// Where it is in the mount namespace.
const IMAGE: &str = "fs/disk.img";

impl FailingDisk {
    /// In `dir`.
    pub fn new(dir: &Path) -> Result<Self> {
        let dir = dir.join("failing");
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    /// The script that makes it, with a copy of `image` on it.
    pub fn script(&self, image: &Path) -> String {
        format!(
            "mount -t tmpfs -o size={}m none {dir}; cd {dir}; truncate -s {FILE_SYSTEM_MIB}M backing; \
             mkfs.ext4 -q -O ^has_journal backing; mkdir fs; mount -o loop backing fs; \
             cp --sparse=never {image} {IMAGE}; sync -f fs; cd /",
            FILE_SYSTEM_MIB + 4,
            dir = self.dir.display(),
            image = image.display(),
        )
    }

    /// The image, as the program sees it.
    pub fn image(&self) -> PathBuf {
        self.dir.join(IMAGE)
    }

    /// From now on, what `node` reads or syncs fails.
    pub fn fail(&self, node: &Node) -> Result<()> {
        // From outside it is seen through the program's root.
        let inside = |path: &Path| -> Result<PathBuf> {
            let relative = path.strip_prefix("/").context("no absolute path")?;
            Ok(Path::new("/proc")
                .join(node.run.pid().to_string())
                .join("root")
                .join(relative))
        };
        let dir = inside(&self.dir)?;
        let image = File::open(inside(&self.image())?)?;
        image.sync_all()?;
        // What is cut off cannot be read any more, and cannot grow again once the tmpfs is full. What the guest writes before
        // that makes it grow, with nothing in it: it is cut off anew.
        let backing = File::options().write(true).open(dir.join("backing"))?;
        let mut filling = File::create(dir.join("filling"))?;
        let block = vec![1; 1 << 20];
        let begin = Instant::now();
        loop {
            backing.set_len(0)?;
            while filling.write_all(&block).is_ok() {}
            if backing.metadata()?.len() == 0 {
                break;
            }
            ensure!(begin.elapsed() < LIMIT, "the disk grows again and again");
        }
        // What the guest has written just now may be in memory still; its end has not been written for long. A page that
        // another CPU has just looked at is kept, and goes at a later try.
        let end = image.metadata()?.len() - 1;
        fadvise(&image, 0, None, Advice::DontNeed)?;
        while image.read_exact_at(&mut [0], end).is_ok() {
            ensure!(begin.elapsed() < LIMIT, "the disk does not fail");
            std::thread::sleep(Duration::from_millis(20));
            fadvise(&image, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }
}
