//! Where the members of a cluster are, and the files for TLS with them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use ureq::http::Uri;

use crate::pki::{PkiError, pem};

/// Where etcd listens for clients unless told otherwise.
const ETCD_PORT: u16 = 2379;

/// `http://HOST[:PORT]` or `https://HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(String);

impl Endpoint {
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let shown = url.escape_debug();
        let wrong = |()| format!("`{shown}` is not a URL like https://witness:2379");
        let uri: Uri = url.parse().map_err(|_| ()).map_err(wrong)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(wrong(()));
        };
        if !["http", "https"].contains(&scheme) {
            return Err(format!("`{shown}` is neither http nor https"));
        }
        if authority.as_str().contains('@') {
            return Err(format!(
                "`{shown}` has a user name; give arbiter-user and arbiter-password-file instead"
            ));
        }
        if uri.path() != "/" || uri.query().is_some() {
            return Err(format!("`{shown}` has a path; the URL of an etcd member has none"));
        }
        Ok(Self(format!("{scheme}://{authority}")))
    }

    /// The host that it names: a name, or an address without brackets.
    pub fn host(&self) -> &str {
        let authority = self.authority();
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => host,
            _ => authority,
        };
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Its port; without one, etcd's.
    pub fn port(&self) -> u16 {
        let port = self
            .authority()
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        port.unwrap_or(ETCD_PORT)
    }

    fn authority(&self) -> &str {
        self.0.split_once("://").map_or("", |(_, authority)| authority)
    }

    /// Whether it is an https URL.
    pub fn is_tls(&self) -> bool {
        self.0.starts_with("https:")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// PEM files for https endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    ca: PathBuf,
    client: Option<(PathBuf, PathBuf)>,
}

/// Why TLS files do not go together.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TlsError {
    /// Certificate without key, or key without certificate.
    #[error("a client certificate for the arbiter needs its key too: give both files or none")]
    Half,
    /// A certificate to show, but nothing to check the arbiter's against.
    #[error("a client certificate for the arbiter was given without the CA's certificate; give that file too")]
    NoCa,
}

impl TlsFiles {
    /// From optional arguments: the CA that signed the arbiter's certificate, and this node's certificate and key if the
    /// arbiter asks for one. None if none is given.
    pub fn from_paths(
        ca: Option<PathBuf>,
        cert: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> Result<Option<Self>, TlsError> {
        let client = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(TlsError::Half),
        };
        match ca {
            Some(ca) => Ok(Some(Self { ca, client })),
            None if client.is_some() => Err(TlsError::NoCa),
            None => Ok(None),
        }
    }

    pub(super) fn load(&self) -> Result<Arc<ClientConfig>, PkiError> {
        let mut roots = RootCertStore::empty();
        for certificate in pem::certificates(&self.ca)? {
            let added = roots.add(certificate);
            added.map_err(|error| PkiError::pem(&self.ca, error.to_string()))?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| PkiError::Tls(error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &self.client {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => builder
                .with_client_auth_cert(pem::certificates(cert)?, pem::key(key)?)
                .map_err(|error| PkiError::Mismatch {
                    cert: cert.clone(),
                    key: key.clone(),
                    reason: error.to_string(),
                })?,
        };
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Login;
    use super::super::http::Client;
    use super::*;

    const SHORT: std::time::Duration = std::time::Duration::from_millis(300);

    #[test]
    fn tls_files_go_together() {
        let path = |name: &str| Some(PathBuf::from(name));
        assert_eq!(TlsFiles::from_paths(None, None, None), Ok(None));
        assert!(matches!(TlsFiles::from_paths(path("ca"), None, None), Ok(Some(_))));
        assert_eq!(
            TlsFiles::from_paths(path("ca"), path("cert"), None),
            Err(TlsError::Half)
        );
        assert_eq!(
            TlsFiles::from_paths(None, path("cert"), path("key")),
            Err(TlsError::NoCa)
        );
        let https = Endpoint::parse("https://a").unwrap();
        assert!(
            Client::new(vec![https.clone()], None, None, SHORT)
                .unwrap_err()
                .contains("CA")
        );
        let missing = TlsFiles::from_paths(path("/nowhere/ca.pem"), None, None).unwrap();
        assert!(
            Client::new(vec![https], missing.clone(), None, SHORT)
                .unwrap_err()
                .contains("/nowhere/ca.pem")
        );
        let http = Endpoint::parse("http://a").unwrap();
        assert!(
            Client::new(vec![http.clone()], missing, None, SHORT)
                .unwrap_err()
                .contains("say https")
        );
        // Whoever is on the way would read the password.
        let login = Login::from_options(Some("u".into()), path("/nowhere/password")).unwrap();
        assert!(
            Client::new(vec![http], None, login, SHORT)
                .unwrap_err()
                .contains("say https")
        );
    }
}
