//! The newest record of a machine that a node has seen, on the node's own disk: a node that is started while the arbiter has
//! older data would believe them, and boot a machine that runs elsewhere, or from a disk that is behind.
//!
//! Invariant: what is kept only ever refuses. It gives nobody the machine, and where it cannot be kept, all is as without it.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::codec::{self, MAX_RECORD_BYTES};
use super::seen::follows;
use super::{Record, in_words};
use crate::durable;

/// Why a record is not believed.
#[derive(Debug, Error)]
pub enum NotBelieved {
    /// This node has seen a newer one.
    #[error(
        "the record at the arbiter went back from {newest} to {}: its data were restored from an older copy, or the \
         record was removed. The machine may run on the other host, or have run there last: nothing is done here. Put the \
         newer record back. Or, when the machine is shut down on both hosts and this is meant, remove {path} on both, and \
         start first the host that ran it last",
        in_words(Option::as_ref(.now))
    )]
    WentBack {
        /// What this node has seen.
        newest: Box<Record>,
        /// What there is.
        now: Box<Option<Record>>,
        /// Where it is kept.
        path: PathBuf,
    },
    /// What is kept cannot be read.
    #[error(
        "{path} has the newest record that this node has seen, and cannot be read: {reason}. Look at the record and at the \
         other host; when nobody runs the machine, remove that file"
    )]
    Unreadable {
        /// Where it is kept.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Where a node keeps the newest record of a machine.
#[derive(Clone, Debug)]
pub struct Kept {
    path: PathBuf,
}

impl Kept {
    /// In `directory`, of this machine's record as this node has seen it. Each machine has a directory of its own: what a
    /// process may write is its machine's alone.
    pub fn new(directory: &Path, machine: &str, node: &str) -> Self {
        Self {
            path: Self::directory(directory, machine).join(in_one_name(node)),
        }
    }

    /// Where those of this machine lie.
    pub fn directory(directory: &Path, machine: &str) -> PathBuf {
        directory.join(in_one_name(machine))
    }

    /// The newest record that was seen, if any.
    pub fn newest(&self) -> Result<Option<Record>, NotBelieved> {
        let unreadable = |reason: String| NotBelieved::Unreadable {
            path: self.path.clone(),
            reason,
        };
        let bytes = durable::read(&self.path, MAX_RECORD_BYTES).map_err(|error| unreadable(error.to_string()))?;
        bytes.map(|bytes| codec::decode(&bytes).map_err(unreadable)).transpose()
    }

    /// Whether what the arbiter has may have come after what was seen.
    pub fn check(&self, now: Option<&Record>) -> Result<(), NotBelieved> {
        match self.newest()? {
            Some(newest) if !follows(Some(&newest), now) => Err(NotBelieved::WentBack {
                newest: Box::new(newest),
                now: Box::new(now.cloned()),
                path: self.path.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Keeps a record that was seen.
    pub fn keep(&self, record: &Record) {
        if let Err(error) = self.try_keep(record) {
            tracing::warn!(
                "the newest record cannot be kept in {}: {error}. Should the arbiter's data be restored from an older copy, a \
                 start of this node will believe them",
                self.path.display()
            );
        }
    }

    fn try_keep(&self, record: &Record) -> io::Result<()> {
        let bytes = codec::encode(record).map_err(io::Error::other)?;
        if let Some(directory) = self.path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let mut staged = self.path.clone().into_os_string();
        staged.push(".new");
        let staged = PathBuf::from(staged);
        durable::stage(&staged, &bytes, 0o644)?;
        durable::publish(&staged, &self.path)
    }
}

/// A name as that of a file.
fn in_one_name(name: &str) -> String {
    let name = name.replace('%', "%25").replace('/', "%2F");
    if name.starts_with('.') {
        name.replacen('.', "%2E", 1)
    } else {
        name
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
    fn an_older_record_is_not_believed_until_what_was_kept_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("seen");
        let kept = Kept::new(&directory, "a/b", "n");
        kept.check(None).unwrap();
        kept.keep(&record(4, "b"));
        // By another process of the same node.
        let kept = Kept::new(&directory, "a/b", "n");
        for now in [Some(record(4, "b")), Some(record(5, "a"))] {
            kept.check(now.as_ref()).unwrap();
        }
        for now in [None, Some(record(3, "b")), Some(record(4, "a"))] {
            let why = kept.check(now.as_ref()).unwrap_err().to_string();
            let went = format!("went back from term 4 of `b` alone to {}: ", in_words(now.as_ref()));
            assert!(why.contains(&went) && why.contains("seen/a%2Fb/n"), "{why}");
        }
        assert_eq!(Kept::directory(&directory, ".."), directory.join("%2E."));
        // Another machine's, and another node's, are theirs.
        Kept::new(&directory, "a/b", "m").check(None).unwrap();
        std::fs::remove_file(directory.join("a%2Fb/n")).unwrap();
        kept.check(None).unwrap();
        std::fs::write(directory.join("a%2Fb/n"), "torn").unwrap();
        let why = kept.check(Some(&record(9, "a"))).unwrap_err().to_string();
        assert!(why.contains("cannot be read"), "{why}");
    }
}
