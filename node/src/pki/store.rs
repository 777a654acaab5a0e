//! A certificate and its key as two files that change together.
//!
//! Two renames cannot be one. So both new files are staged first (`NAME.pem.new`, `NAME.key.new`), then the key is
//! renamed, then the certificate. At every moment one of the certificates belongs to `NAME.key`: the one in its place,
//! or, between the two renames, the staged one. Reading takes whichever fits, and the next writer finishes what a crash
//! has left.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use rustls::crypto::ring::default_provider;
use rustls::sign::CertifiedKey;

use super::{PkiError, pem};
use crate::durable;

/// The CA's files are `ca.pem` and `ca.key`.
pub(super) const CA: &str = "ca";
/// Permissions of certificates and of keys.
const CERT_MODE: u32 = 0o644;
const KEY_MODE: u32 = 0o600;
/// How often a reader looks again while a writer renames: two looks are enough unless certificates are renewed
/// faster than they are read.
const LOOKS: usize = 4;

/// The right to write into a directory of certificates, for one process at a time.
pub(super) struct Writer {
    directory: PathBuf,
    _lock: File,
}

impl Writer {
    /// For a directory that is there.
    pub(super) fn open(directory: &Path) -> Result<Self, PkiError> {
        let failed = |error| match error {
            error if io::Error::kind(&error) == io::ErrorKind::NotFound => PkiError::Missing {
                path: directory.join("ca.pem"),
            },
            error => PkiError::io("opened", directory, error),
        };
        let lock = File::open(directory).map_err(failed)?;
        let mode = lock.metadata().map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            let path = directory.into();
            return Err(PkiError::DirectoryMode { path, mode });
        }
        // Another writer needs some milliseconds.
        flock(&lock, FlockOperation::LockExclusive).map_err(|errno| PkiError::io("locked", directory, errno.into()))?;
        Ok(Self {
            directory: directory.into(),
            _lock: lock,
        })
    }

    /// The same, and makes the directory if it is not there.
    pub(super) fn create(directory: &Path) -> Result<Self, PkiError> {
        let made = DirBuilder::new().mode(0o700).create(directory);
        match made {
            Ok(()) => durable::settle(directory).map_err(|error| PkiError::io("synced", directory, error))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(PkiError::io("made", directory, error)),
        }
        Self::open(directory)
    }

    /// Where a name's certificate and key are. Finishes what a crash has left of an earlier [`Writer::put`].
    pub(super) fn pair(&self, name: &str) -> Result<Pair, PkiError> {
        let pair = Pair::new(&self.directory, name);
        let there = |cert: &Path| cert.exists() && pair.key.exists() && fits(cert, &pair.key).is_ok();
        if !there(&pair.cert) && there(&pair.new_cert) {
            publish(&pair.new_cert, &pair.cert)?;
        }
        Ok(pair)
    }

    /// Puts a certificate and its key, both PEM, in the place of those that are there.
    pub(super) fn put(&self, pair: &Pair, cert: &str, key: &str) -> Result<(), PkiError> {
        self.stage(pair, cert, key)?;
        publish(&pair.new_key, &pair.key)?;
        publish(&pair.new_cert, &pair.cert)
    }

    /// The part of [`Writer::put`] that changes nothing yet.
    pub(super) fn stage(&self, pair: &Pair, cert: &str, key: &str) -> Result<(), PkiError> {
        for (path, text, mode) in [(&pair.new_key, key, KEY_MODE), (&pair.new_cert, cert, CERT_MODE)] {
            durable::stage(path, text.as_bytes(), mode).map_err(|error| PkiError::io("written", path, error))?;
        }
        // Both must be there after a crash if the first rename is.
        durable::settle(&pair.cert).map_err(|error| PkiError::io("synced", &self.directory, error))
    }
}

fn publish(staged: &Path, path: &Path) -> Result<(), PkiError> {
    durable::publish(staged, path).map_err(|error| PkiError::io("replaced", path, error))
}

/// The files of one name.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) new_cert: PathBuf,
    pub(super) new_key: PathBuf,
}

impl Pair {
    pub(super) fn new(directory: &Path, name: &str) -> Self {
        Self {
            cert: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
            new_cert: directory.join(format!("{name}.pem.new")),
            new_key: directory.join(format!("{name}.key.new")),
        }
    }

    /// Refuses if one of the two is there, whatever it is.
    pub(super) fn must_be_new(&self) -> Result<(), PkiError> {
        for path in [&self.cert, &self.key] {
            if fs::symlink_metadata(path).is_ok() {
                return Err(PkiError::Exists { path: path.clone() });
            }
        }
        Ok(())
    }

    /// Loads a certificate and a key that belong together.
    pub(super) fn load(&self) -> Result<Arc<CertifiedKey>, PkiError> {
        let mut looks = 1;
        loop {
            let error = match fits(&self.cert, &self.key) {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            // Between the two renames, also where a crash has made that last.
            if let Ok(found) = fits(&self.new_cert, &self.key) {
                return Ok(found);
            }
            if looks == LOOKS || !matches!(error, PkiError::Mismatch { .. }) {
                return Err(error);
            }
            looks += 1;
        }
    }
}

fn fits(cert: &Path, key: &Path) -> Result<Arc<CertifiedKey>, PkiError> {
    let (chain, secret) = (pem::certificates(cert)?, pem::key(key)?);
    let found = CertifiedKey::from_der(chain, secret, &default_provider());
    found.map(Arc::new).map_err(|error| PkiError::Mismatch {
        cert: cert.into(),
        key: key.into(),
        reason: error.to_string(),
    })
}
