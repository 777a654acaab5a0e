//! PEM files, with their sizes bounded.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::PkiError;
use crate::durable;

/// Most bytes of a PEM file that is read; a chain of certificates has some thousand.
const MAX_BYTES: usize = 256 << 10;
/// Most certificates of a file.
const MAX_CERTIFICATES: usize = 16;

/// The file's bytes.
pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>, PkiError> {
    let bytes = durable::read(path, MAX_BYTES).map_err(|error| PkiError::io("read", path, error))?;
    bytes.ok_or_else(|| PkiError::Missing { path: path.into() })
}

/// The certificates in a file: at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let bytes = bytes(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes)
        .take(MAX_CERTIFICATES + 1)
        .collect();
    let found = found.map_err(|error| PkiError::pem(path, error.to_string()))?;
    match found.len() {
        0 => Err(PkiError::pem(path, "there is no certificate in it")),
        1..=MAX_CERTIFICATES => Ok(found),
        _ => Err(PkiError::pem(
            path,
            format!("it has more than {MAX_CERTIFICATES} certificates"),
        )),
    }
}

/// The bytes of a file that nobody but its owner can read.
pub(crate) fn private(path: &Path) -> Result<Vec<u8>, PkiError> {
    if let Ok(metadata) = path.metadata() {
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(PkiError::KeyMode {
                path: path.into(),
                mode,
            });
        }
    }
    bytes(path)
}

/// The private key in such a file.
pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, PkiError> {
    PrivateKeyDer::from_pem_slice(&private(path)?).map_err(|error| PkiError::pem(path, error.to_string()))
}
