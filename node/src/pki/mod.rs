//! The deployment's certificates: its own CA, one certificate for each node, and TLS between nodes that accepts the one
//! peer that was named and nobody else.
//!
//! A directory has `ca.pem`, `NAME.pem` and `NAME.key`, and on the machine where certificates are made `ca.key` too.
//! The CA's key is needed nowhere else.
//!
//! Invariants:
//! - Keys have mode 0600 and lie in directories of mode 0700. Nothing is overwritten but by `renew`.
//! - Whoever loads a certificate and its key gets two that belong together, even during a `renew` or after a crash in it.
//! - A connection is made only if both sides have a valid certificate of a CA in the other's `ca.pem`, and each is the
//!   peer whose name the other expects. Nothing is taken over from an earlier connection: there is no resumption.

mod authority;
pub(crate) mod pem;
mod reload;
mod store;
mod tls;

use std::io;
use std::path::{Path, PathBuf};

use lockstep_proto::session::MAX_NAME_BYTES;
use rustls_pki_types::{DnsName, ServerName};
use thiserror::Error;

pub use authority::{DEFAULT_DAYS, Issued, MAX_DAYS, Validity, init, issue, renew};
pub use pem::certificates;
pub use reload::Credentials;
pub use tls::{ALPN, Identity, client_config, explain, explain_alert, load_ca, load_identity, server_config};

/// Why there is no certificate, or no TLS.
#[derive(Debug, Error)]
pub enum PkiError {
    /// A file or directory cannot be read or written.
    #[error("{path} cannot be {action}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// A file is missing.
    #[error(
        "{path} is missing: make it with `lockstep-primary pki init` (the CA) or `pki issue` (a node), or copy it from where that was done",
        path = path.display()
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file is there that must not be overwritten.
    #[error(
        "{path} is already there and is not overwritten: use another directory, or `lockstep-primary pki renew` for a node's certificate",
        path = path.display()
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A key that others can read.
    #[error("others can read {path}, which is secret (mode {mode:04o}): if nobody has, `chmod 600` it, else make a new one", path = path.display())]
    KeyMode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A directory that others can use.
    #[error("others can use the directory {path} (mode {mode:04o}): `chmod 700` it, or name another", path = path.display())]
    DirectoryMode {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A name that no node can have.
    #[error(
        "`{name}` cannot be a node's name: {reason}. Use 1 to {MAX_NAME_BYTES} lower-case letters, digits, `-` and `.`, as in a host's name"
    )]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A validity that cannot be given.
    #[error("no certificate can be made: {0}")]
    Validity(String),
    /// A file's content is not what its name says.
    #[error("{path} cannot be used: {reason}. Make it again, or copy it again from where it was made", path = path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file without a password in it.
    #[error("{path} cannot be used: {reason}. It has to have the password and nothing else", path = path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate and a key that do not belong together.
    #[error(
        "{cert} and {key} do not belong together: {reason}. Copy both again from where they were made",
        cert = cert.display(), key = key.display()
    )]
    Mismatch {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A certificate could not be made.
    #[error("a certificate could not be made: {0}")]
    Make(#[from] rcgen::Error),
    /// TLS could not be set up.
    #[error("TLS could not be set up: {0}")]
    Tls(String),
}

impl PkiError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
        }
    }

    pub(crate) fn pem(path: &Path, reason: impl Into<String>) -> Self {
        Self::Pem {
            path: path.into(),
            reason: reason.into(),
        }
    }
}

/// The name as TLS compares it; refuses what cannot be both a file's name and a DNS name, and what could be taken for
/// another name. Names are compared without regard to case, hence one case.
fn server_name(name: &str) -> Result<ServerName<'static>, PkiError> {
    let wrong = |reason| PkiError::Name {
        name: name.escape_debug().take(2 * MAX_NAME_BYTES).collect(),
        reason,
    };
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(wrong("its length"));
    }
    if name == store::CA {
        return Err(wrong("that is the CA itself"));
    }
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    if !name.bytes().all(allowed) {
        return Err(wrong("its characters"));
    }
    if name.ends_with('.') {
        return Err(wrong("a dot at its end"));
    }
    let dns = DnsName::try_from(name.to_owned()).map_err(|_| wrong("it is not a DNS name"))?;
    // A last label of digits only is for IP addresses (RFC 3696, 2), and would become one in the certificate.
    if name.parse::<std::net::IpAddr>().is_ok() {
        return Err(wrong("it is an IP address"));
    }
    Ok(ServerName::DnsName(dns))
}

#[cfg(test)]
mod tests;
