//! The deployment's CA, and the certificates that it signs.
//!
//! Keys are ECDSA on P-256 with SHA-256: what ring makes and every TLS 1.3 implementation must take (RFC 8446, 9.1).

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::store::{CA, Pair, Writer};
use super::{PkiError, pem, server_name};

/// Days that a node's certificate is valid if nothing else is said.
pub const DEFAULT_DAYS: u32 = 365;
/// Most days that a node's certificate may be valid, and those of the CA's own.
pub const MAX_DAYS: u32 = 3650;
/// A certificate is valid from this long before it is made: the hosts' clocks may be a day apart.
const BACKDATED: Duration = Duration::from_secs(2 * 86_400);
/// Random bytes in the CA's name, so that another deployment's CA has another name and error messages tell them apart.
const CA_NAME_BYTES: usize = 4;

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Validity {
    /// From two days ago, so that a host whose clock is behind accepts it, until `length` from now.
    pub fn from_now(length: Duration) -> Result<Self, PkiError> {
        if length.is_zero() || length > Duration::from_secs(u64::from(MAX_DAYS) * 86_400) {
            return Err(PkiError::Validity(format!(
                "it would be valid for less than a second or more than {MAX_DAYS} days"
            )));
        }
        let now = OffsetDateTime::now_utc();
        // Seconds are what a certificate can say.
        let now = now.replace_nanosecond(0).unwrap_or(now);
        Ok(Self {
            not_before: now - BACKDATED,
            not_after: now + length,
        })
    }

    /// As [`Validity::from_now`], in days.
    pub fn days(days: u32) -> Result<Self, PkiError> {
        Self::from_now(Duration::from_secs(u64::from(days) * 86_400))
    }

    /// A validity that ended `ago`: for tests of what happens then.
    #[cfg(test)]
    pub(super) fn ended(ago: Duration) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            not_before: now - ago - BACKDATED,
            not_after: now - ago,
        }
    }

    /// A validity that begins `ahead`: for tests of what happens before.
    #[cfg(test)]
    pub(super) fn begins(ahead: Duration) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            not_before: now + ahead,
            not_after: now + ahead + BACKDATED,
        }
    }
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate's file.
    pub cert: PathBuf,
    /// The key's file.
    pub key: PathBuf,
    /// The certificate's last second, as in RFC 3339.
    pub not_after: String,
}

impl Issued {
    fn new(pair: Pair, not_after: OffsetDateTime) -> Self {
        Self {
            cert: pair.cert,
            key: pair.key,
            not_after: not_after.format(&Rfc3339).unwrap_or_else(|_| not_after.to_string()),
        }
    }
}

/// Makes a CA, valid for [`MAX_DAYS`], in `directory`, which is made if it is not there. Refuses to overwrite one.
pub fn init(directory: &Path) -> Result<Issued, PkiError> {
    init_for(directory, Validity::days(MAX_DAYS)?)
}

/// As [`init`], with another validity.
pub(super) fn init_for(directory: &Path, validity: Validity) -> Result<Issued, PkiError> {
    let writer = Writer::create(directory)?;
    let pair = writer.pair(CA)?;
    pair.must_be_new()?;
    let mut random = [0; CA_NAME_BYTES];
    let filled = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    if filled != Ok(CA_NAME_BYTES) {
        return Err(PkiError::Validity("the kernel gave no random bytes".into()));
    }
    let name = format!("Lockstep CA {:08x}", u32::from_be_bytes(random));
    let mut params = params(DnType::CommonName, &name, validity);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    writer.put(&pair, &cert.pem(), &key.serialize_pem())?;
    Ok(Issued::new(pair, validity.not_after))
}

/// Makes a certificate and a key for the node `name`, signed by the CA in `directory`. Refuses to overwrite one.
pub fn issue(directory: &Path, name: &str, validity: Validity) -> Result<Issued, PkiError> {
    server_name(name)?;
    let writer = Writer::open(directory)?;
    let pair = writer.pair(name)?;
    pair.must_be_new()?;
    sign(&writer, pair, name, validity)
}

/// Makes a new certificate and a new key for a node that has them. Who loads them meanwhile gets the old or the new
/// two; running connections stay as they are.
pub fn renew(directory: &Path, name: &str, validity: Validity) -> Result<Issued, PkiError> {
    server_name(name)?;
    let writer = Writer::open(directory)?;
    let pair = writer.pair(name)?;
    for path in [&pair.cert, &pair.key] {
        if !path.exists() {
            return Err(PkiError::Missing { path: path.clone() });
        }
    }
    sign(&writer, pair, name, validity)
}

fn sign(writer: &Writer, pair: Pair, name: &str, validity: Validity) -> Result<Issued, PkiError> {
    let authority = writer.pair(CA)?;
    let ca = authority.load()?;
    let ca = ca
        .end_entity_cert()
        .map_err(|error| PkiError::pem(&authority.cert, error.to_string()))?;
    let last = last_second(&authority.cert, ca)?;
    // TLS libraries do not look at a trust anchor's own end, so nothing that it signed may outlive it.
    let not_after = validity.not_after.min(last);
    if not_after <= OffsetDateTime::now_utc() && validity.not_after > not_after {
        return Err(PkiError::Validity(format!(
            "the CA's certificate {} ended at {last}; make a new CA in another directory",
            authority.cert.display()
        )));
    }
    let text = String::from_utf8(pem::bytes(&authority.key)?);
    let text = text.map_err(|_| PkiError::pem(&authority.key, "it is not text"))?;
    let issuer = Issuer::from_ca_cert_der(ca, KeyPair::from_pem(&text)?)?;
    // Without a common name: TLS looks at the alternative names alone, and an etcd with users refuses whoever has one.
    let mut params = params(DnType::OrganizationalUnitName, name, Validity { not_after, ..validity });
    params.subject_alt_names = CertificateParams::new([name.to_owned()])?.subject_alt_names;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer)?;
    writer.put(&pair, &cert.pem(), &key.serialize_pem())?;
    Ok(Issued::new(pair, not_after))
}

fn params(kind: DnType, name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(kind, name);
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params
}

/// A certificate's last second.
pub(super) fn last_second(path: &Path, der: &[u8]) -> Result<OffsetDateTime, PkiError> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(der).map_err(|error| PkiError::pem(path, error.to_string()))?;
    Ok(parsed.validity().not_after.to_datetime())
}
