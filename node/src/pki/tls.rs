//! TLS between nodes: version 1.3 only, both sides with certificates, and each side knows whom it expects.
//!
//! To reload, build a configuration again and use it for the connections from then on; those that stand are not
//! touched. If building fails, the old one stays good. A certificate's time is looked at by the peer, with the peer's
//! clock; loading one that has ended is not an error, so that a wrong clock here cannot stop a pair that runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::authority::last_second;
use super::store::{CA, Pair};
use super::{PkiError, pem, server_name};

/// The protocol that both sides must speak inside (RFC 7301).
pub const ALPN: &[u8] = b"lockstep/1";

/// The CAs in `directory`'s `ca.pem`. Several, while one replaces another.
pub fn load_ca(directory: &Path) -> Result<Arc<RootCertStore>, PkiError> {
    let path = Pair::new(directory, CA).cert;
    let mut roots = RootCertStore::empty();
    for certificate in pem::certificates(&path)? {
        roots
            .add(certificate)
            .map_err(|error| PkiError::pem(&path, error.to_string()))?;
    }
    Ok(Arc::new(roots))
}

/// A node's certificate and key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Where they and `ca.pem` are.
    directory: PathBuf,
    /// The certificate with what leads to the CA, and the key that belongs to it.
    pub certified: Arc<CertifiedKey>,
    /// When the certificate ends; for status and warnings.
    pub not_after: SystemTime,
}

/// Loads `NAME.pem` and `NAME.key` from `directory`. Refuses a certificate that does not carry that name.
pub fn load_identity(directory: &Path, name: &str) -> Result<Identity, PkiError> {
    let expected = server_name(name)?;
    let pair = Pair::new(directory, name);
    let certified = pair.load()?;
    let wrong = |error: Error| PkiError::pem(&pair.cert, error.to_string());
    let certificate = certified.end_entity_cert().map_err(wrong)?;
    names(certificate, &expected).map_err(wrong)?;
    let seconds = last_second(&pair.cert, certificate)?
        .unix_timestamp()
        .try_into()
        .unwrap_or(0);
    Ok(Identity {
        directory: directory.into(),
        not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
        certified,
    })
}

/// TLS for the side that is called: only `expected_peer` is let in.
pub fn server_config(identity: &Identity, expected_peer: &str) -> Result<ServerConfig, PkiError> {
    let expected = server_name(expected_peer)?;
    let provider = Arc::new(default_provider());
    let inner = WebPkiClientVerifier::builder_with_provider(load_ca(&identity.directory)?, provider.clone());
    let inner = inner.build().map_err(|error| PkiError::Tls(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| PkiError::Tls(error.to_string()))?
        .with_client_cert_verifier(Arc::new(OnlyClient { inner, expected }))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed connection would not show its certificate again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// TLS for the side that calls: only `expected_peer` is spoken to, whatever name the connection is opened with.
pub fn client_config(identity: &Identity, expected_peer: &str) -> Result<ClientConfig, PkiError> {
    let expected = server_name(expected_peer)?;
    let provider: Arc<CryptoProvider> = Arc::new(default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(load_ca(&identity.directory)?, provider.clone());
    let inner = inner.build().map_err(|error| PkiError::Tls(error.to_string()))?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| PkiError::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(OnlyServer { inner, expected }))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Whether a certificate carries a name.
fn names(certificate: &CertificateDer<'_>, expected: &ServerName<'_>) -> Result<(), Error> {
    verify_server_name(&ParsedCertificate::try_from(certificate)?, expected)
}

/// Accepts one client: rustls' own checks, and then the name, at which rustls does not look for clients.
#[derive(Debug)]
struct OnlyClient {
    inner: Arc<dyn ClientCertVerifier>,
    expected: ServerName<'static>,
}

impl ClientCertVerifier for OnlyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        names(end_entity, &self.expected)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let _ = (message, cert, dss);
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Accepts one server: the name that a connection is opened with is not looked at, the expected one is.
#[derive(Debug)]
struct OnlyServer {
    inner: Arc<WebPkiServerVerifier>,
    expected: ServerName<'static>,
}

impl ServerCertVerifier for OnlyServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.inner
            .verify_server_cert(end_entity, intermediates, &self.expected, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let _ = (message, cert, dss);
        Err(PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// What a failed handshake means, and what to do. Bounded by what rustls says.
pub fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(reason) => match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("the peer's certificate has expired; renew it there, or see to the clocks ({error})")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!("the peer's certificate is not valid yet; see to the clocks of both hosts ({error})")
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!(
                    "the peer's certificate is foreign: not signed by this deployment's CA (ca.pem); issue it one ({error})"
                )
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!(
                    "the peer is not the one expected here; see to the peer's address and name on both hosts ({error})"
                )
            }
            _ => format!("the peer's certificate is not accepted ({error})"),
        },
        Error::NoCertificatesPresented => {
            "the peer has shown no certificate; it is not a node of this deployment".into()
        }
        Error::NoApplicationProtocol => {
            "the peer speaks another protocol, or another version of this one; run the same release on both hosts"
                .into()
        }
        Error::AlertReceived(alert) => explain_alert(*alert),
        _ => format!("no secure connection with the peer: {error}"),
    }
}

/// What the peer means by an alert: it, not this side, has ended the handshake, and its own log says more.
pub fn explain_alert(alert: AlertDescription) -> String {
    let reason = match alert {
        AlertDescription::CertificateExpired => {
            "this node's certificate has expired there; renew it, or see to the clocks"
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "this node's certificate is not signed by the peer's CA; both hosts need the same ca.pem"
        }
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate => {
            "this node's certificate does not carry the name that the peer expects, or is not valid there yet"
        }
        AlertDescription::CertificateRequired => "this node has shown no certificate",
        AlertDescription::NoApplicationProtocol => {
            "it speaks another protocol, or another version of this one; run the same release on both hosts"
        }
        AlertDescription::ProtocolVersion => "it does not speak TLS 1.3",
        _ => "it did not say more",
    };
    format!("the peer refused the connection: {reason} ({alert:?})")
}
