//! An arbiter in a directory that both nodes share: for tests and for demos on one host. It decides between processes,
//! not between hosts: use it on a local file system.
//!
//! Invariants:
//! - The record is read and written only under an exclusive lock on `NAME.lock`; the kernel gives it back when the
//!   holder dies. A holder that is stopped (SIGSTOP) between the two keeps it: the others then have no arbiter.
//! - `NAME.record` is replaced as a whole, and is on the disk before anybody is told of it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::codec::{self, MAX_RECORD_BYTES};
use super::{Arbiter, ArbiterError, Outcome, Record};
use crate::durable;

/// How long a call waits for another holder of the lock; a holder needs some milliseconds.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// From one try for the lock to the next: flock has no timeout of its own.
const LOCK_POLL: Duration = Duration::from_millis(1);

/// The record of one machine in a directory.
#[derive(Debug)]
pub struct FileArbiter {
    directory: PathBuf,
    record: PathBuf,
    staged: PathBuf,
    lock: PathBuf,
    lock_timeout: Duration,
}

impl FileArbiter {
    /// The record of the machine `name` in `directory`, which must be there: one that is made on the way, because of
    /// a slip of the pen or a missing mount, would be a second arbiter. `name` was checked by the caller.
    pub(super) fn new(directory: &Path, name: &str) -> Result<Self, ArbiterError> {
        let arbiter = Self {
            directory: directory.into(),
            record: directory.join(format!("{name}.record")),
            staged: directory.join(format!("{name}.record.new")),
            lock: directory.join(format!("{name}.lock")),
            lock_timeout: LOCK_TIMEOUT,
        };
        if !directory.is_dir() {
            return Err(arbiter.no_directory());
        }
        Ok(arbiter)
    }

    /// The same with another longest wait for the lock.
    #[must_use]
    pub fn with_lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }

    fn lock(&self) -> Result<File, ArbiterError> {
        let begin = Instant::now();
        loop {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options
                .open(&self.lock)
                .map_err(|error| self.failed("opened", &self.lock, &error))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Whoever removed the lock file has let others lock another one.
                Ok(()) if self.is_still(&file) => return Ok(file),
                Ok(()) | Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(self.failed("locked", &self.lock, &errno.into())),
            }
            if begin.elapsed() >= self.lock_timeout {
                let reason = format!(
                    "{} was locked by another process for {} ms; if that one is stopped, continue or end it",
                    self.lock.display(),
                    self.lock_timeout.as_millis()
                );
                return Err(self.unreachable(reason));
            }
            std::thread::sleep(LOCK_POLL);
        }
    }

    fn is_still(&self, file: &File) -> bool {
        let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let held = file.metadata().map(id).ok();
        held.is_some() && held == self.lock.metadata().map(id).ok()
    }

    fn load(&self) -> Result<Option<Record>, ArbiterError> {
        let bytes =
            durable::read(&self.record, MAX_RECORD_BYTES).map_err(|error| self.failed("read", &self.record, &error))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let record = codec::decode(&bytes).map_err(|reason| ArbiterError::Damaged {
            arbiter: self.describe(),
            reason,
        })?;
        // Its writer may have died between the rename and the end of the directory's fsync. Nobody may act on a record
        // that a power failure could still take back.
        durable::settle(&self.record).map_err(|error| self.failed("synced", &self.directory, &error))?;
        Ok(Some(record))
    }

    /// An I/O error as what the caller can do about it.
    fn failed(&self, action: &str, path: &Path, error: &io::Error) -> ArbiterError {
        if !self.directory.is_dir() {
            return self.no_directory();
        }
        let reason = format!("{} cannot be {action}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ArbiterError::Config {
                arbiter: self.describe(),
                reason: format!("{reason}; give this process the right to write in the directory"),
            },
            _ => self.unreachable(reason),
        }
    }

    fn no_directory(&self) -> ArbiterError {
        ArbiterError::Config {
            arbiter: self.describe(),
            reason: format!(
                "{} is not a directory; make it, or mount it, once for all nodes",
                self.directory.display()
            ),
        }
    }

    fn unreachable(&self, reason: String) -> ArbiterError {
        ArbiterError::Unreachable {
            arbiter: self.describe(),
            reason,
        }
    }
}

impl Arbiter for FileArbiter {
    fn read(&mut self) -> Result<Option<Record>, ArbiterError> {
        // Who only looks makes nothing, which would be theirs: they may be another user than the one that writes.
        let is_new = matches!(self.lock.try_exists(), Ok(false)) && self.lock.parent().is_some_and(Path::is_dir);
        if is_new {
            return self.load();
        }
        let _held = self.lock()?;
        self.load()
    }

    fn compare_and_set(&mut self, expected: Option<&Record>, new: &Record) -> Result<Outcome, ArbiterError> {
        let bytes = codec::encode(new).map_err(|reason| ArbiterError::Config {
            arbiter: self.describe(),
            reason,
        })?;
        let _held = self.lock()?;
        let now = self.load()?;
        if now.as_ref() == Some(new) {
            return Ok(Outcome::Done);
        }
        if now.as_ref() != expected {
            return Ok(Outcome::Changed(now));
        }
        durable::stage(&self.staged, &bytes, 0o600).map_err(|error| self.failed("written", &self.staged, &error))?;
        durable::publish(&self.staged, &self.record).map_err(|error| self.failed("replaced", &self.record, &error))?;
        Ok(Outcome::Done)
    }

    fn describe(&self) -> String {
        format!("file:{}", self.record.display())
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::quantity::Term;

    use super::*;

    fn record(term: u64, owner: &str) -> Record {
        Record {
            term: Term::new(term),
            owner: owner.into(),
            peer: None,
        }
    }

    #[test]
    fn what_a_crash_leaves_beside_the_record_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut arbiter = FileArbiter::new(directory.path(), "m").unwrap();
        let (one, two) = (record(1, "a"), record(2, "a"));
        assert_eq!(arbiter.compare_and_set(None, &one).unwrap(), Outcome::Done);
        let whole = codec::encode(&two).unwrap();
        for end in 0..=whole.len() {
            std::fs::write(&arbiter.staged, &whole[..end]).unwrap();
            assert_eq!(arbiter.read().unwrap(), Some(one.clone()), "{end} bytes were staged");
        }
        assert_eq!(arbiter.compare_and_set(Some(&one), &two).unwrap(), Outcome::Done);
        assert!(!arbiter.staged.exists());
    }

    #[test]
    fn a_reader_without_the_lock_sees_the_old_or_the_new_record_whole() {
        let directory = tempfile::tempdir().unwrap();
        let mut arbiter = FileArbiter::new(directory.path(), "m").unwrap();
        arbiter.compare_and_set(None, &record(1, "a")).unwrap();
        let path = arbiter.record.clone();
        let writer = std::thread::spawn(move || {
            for term in 1..=300 {
                let outcome = arbiter.compare_and_set(Some(&record(term, "a")), &record(term + 1, "a"));
                assert_eq!(outcome.unwrap(), Outcome::Done);
            }
        });
        let mut last = Term::NONE;
        while !writer.is_finished() {
            let bytes = std::fs::read(&path).unwrap();
            let seen = codec::decode(&bytes).unwrap().term;
            assert!(seen >= last, "term {seen} after {last}");
            last = seen;
        }
        writer.join().unwrap();
    }

    #[test]
    fn a_damaged_record_is_neither_read_nor_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let mut arbiter = FileArbiter::new(directory.path(), "m").unwrap();
        let one = record(1, "a");
        arbiter.compare_and_set(None, &one).unwrap();
        let whole = std::fs::read(&arbiter.record).unwrap();
        for end in 0..whole.len() {
            std::fs::write(&arbiter.record, &whole[..end]).unwrap();
            assert!(
                matches!(arbiter.read(), Err(ArbiterError::Damaged { .. })),
                "cut at {end}"
            );
            for expected in [None, Some(&one)] {
                let outcome = arbiter.compare_and_set(expected, &record(2, "b"));
                assert!(matches!(outcome, Err(ArbiterError::Damaged { .. })), "cut at {end}");
            }
            assert_eq!(std::fs::read(&arbiter.record).unwrap(), whole[..end]);
        }
    }

    #[test]
    fn a_lock_that_is_held_too_long_is_unreachable_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let short = Duration::from_millis(50);
        let mut arbiter = FileArbiter::new(directory.path(), "m")
            .unwrap()
            .with_lock_timeout(short);
        let held = arbiter.lock().unwrap();
        let error = arbiter.compare_and_set(None, &record(1, "a")).unwrap_err();
        assert!(
            error.is_unreachable() && error.to_string().contains("locked by another process"),
            "{error}"
        );
        assert!(arbiter.read().unwrap_err().is_unreachable());
        drop(held);
        assert_eq!(arbiter.read().unwrap(), None);
    }

    #[test]
    fn a_lock_on_a_lock_file_that_was_removed_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let short = Duration::from_millis(50);
        let arbiter = FileArbiter::new(directory.path(), "m")
            .unwrap()
            .with_lock_timeout(short);
        let old = arbiter.lock().unwrap();
        std::fs::remove_file(&arbiter.lock).unwrap();
        let new = arbiter.lock().unwrap();
        assert!(!arbiter.is_still(&old) && arbiter.is_still(&new));
    }

    #[test]
    fn looking_makes_no_files() {
        let directory = tempfile::tempdir().unwrap();
        let mut arbiter = FileArbiter::new(directory.path(), "m").unwrap();
        assert_eq!(arbiter.read().unwrap(), None);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        arbiter.compare_and_set(None, &record(1, "a")).unwrap();
        assert_eq!(arbiter.read().unwrap(), Some(record(1, "a")));
    }

    #[test]
    fn a_directory_that_is_not_there_is_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let error = FileArbiter::new(&missing, "m").unwrap_err();
        assert!(
            matches!(error, ArbiterError::Config { .. }) && error.to_string().contains("mount it"),
            "{error}"
        );
        assert!(!missing.exists());

        std::fs::create_dir(&missing).unwrap();
        let mut arbiter = FileArbiter::new(&missing, "m").unwrap();
        std::fs::remove_dir(&missing).unwrap();
        let error = arbiter.compare_and_set(None, &record(1, "a")).unwrap_err();
        assert!(matches!(error, ArbiterError::Config { .. }), "{error}");
    }
}
