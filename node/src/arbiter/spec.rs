//! Which arbiter: what `--arbiter` says, and how it is opened.

use std::path::PathBuf;
use std::str::FromStr;

use lockstep_proto::session::MAX_NAME_BYTES;
use thiserror::Error;

use super::endpoint::Endpoint;
use super::{Arbiter, ArbiterError, Etcd, FileArbiter, Gateway, Login, TlsFiles};

/// Most endpoints of one etcd cluster; etcd advises against more than seven members.
const MAX_ENDPOINTS: usize = 9;

/// What an `--arbiter` says: `file:DIR`, or `etcd:URL[,URL...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// A directory that all nodes share.
    File(PathBuf),
    /// Endpoints of one etcd cluster.
    Etcd(Vec<Endpoint>),
}

/// Why a text names no arbiter.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{text}` names no arbiter: {reason}. Say `file:DIR`, or `etcd:URL[,URL...]` as in etcd:https://witness:2379")]
pub struct SpecError {
    text: String,
    reason: String,
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let error = |reason: String| SpecError {
            text: text.into(),
            reason,
        };
        match text.split_once(':') {
            Some(("file", "")) => Err(error("the directory is missing".into())),
            Some(("file", directory)) => Ok(Self::File(directory.into())),
            Some(("etcd", urls)) => {
                let endpoints: Vec<Endpoint> = urls
                    .split(',')
                    .map(|url| Endpoint::parse(url).map_err(error))
                    .collect::<Result<_, _>>()?;
                if endpoints.len() > MAX_ENDPOINTS {
                    return Err(error(format!("it has more than {MAX_ENDPOINTS} URLs")));
                }
                if endpoints.iter().any(|one| one.is_tls() != endpoints[0].is_tls()) {
                    return Err(error("some URLs are http and some are https".into()));
                }
                Ok(Self::Etcd(endpoints))
            }
            _ => Err(error("it begins neither with `file:` nor with `etcd:`".into())),
        }
    }
}

/// Opens the record of the machine `name`. Nothing is sent yet: an arbiter that is down now may be up later.
pub fn open(
    spec: &Spec,
    tls: Option<&TlsFiles>,
    login: Option<&Login>,
    name: &str,
) -> Result<Box<dyn Arbiter>, ArbiterError> {
    let config = |reason: &str| {
        Err(ArbiterError::Config {
            arbiter: match spec {
                Spec::File(directory) => format!("file:{}", directory.display()),
                Spec::Etcd(_) => "etcd".into(),
            },
            reason: reason.into(),
        })
    };
    if !is_machine_name(name) {
        return config(&format!(
            "the machine's name `{}` is not 1 to {MAX_NAME_BYTES} letters, digits, `-`, `_` and `.`, the first a letter or digit",
            name.escape_debug().take(2 * MAX_NAME_BYTES).collect::<String>()
        ));
    }
    Ok(match spec {
        Spec::File(_) if tls.is_some() || login.is_some() => {
            return config("TLS files or a user were given, but a directory needs none; leave them out");
        }
        Spec::File(directory) => Box::new(FileArbiter::new(directory, name)?),
        Spec::Etcd(endpoints) => Box::new(Etcd::new(endpoints.clone(), tls.cloned(), login.cloned(), name)?),
    })
}

/// A client of the etcd for other keys than records, which `what` tells people of. None where the arbiter is a directory.
pub fn gateway(
    spec: &Spec,
    tls: Option<TlsFiles>,
    login: Option<Login>,
    what: String,
) -> Result<Option<Gateway>, ArbiterError> {
    match spec {
        Spec::File(_) => Ok(None),
        Spec::Etcd(endpoints) => Gateway::new(endpoints.clone(), tls, login, what).map(Some),
    }
}

/// Whether it may name a machine: it becomes part of a file's name and of a key.
pub fn is_machine_name(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_read_and_wrong_ones_say_what_is_wrong() {
        assert_eq!("file:/a:b".parse::<Spec>().unwrap(), Spec::File("/a:b".into()));
        let Spec::Etcd(endpoints) = "etcd:https://w1:2379,https://[::1]:2379/".parse().unwrap() else {
            panic!("not etcd");
        };
        let urls: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
        assert_eq!(urls, ["https://w1:2379", "https://[::1]:2379"]);
        for (text, reason) in [
            ("", "begins neither"),
            ("consul:x", "begins neither"),
            ("file:", "directory is missing"),
            ("etcd:", "is not a URL"),
            ("etcd:witness:2379", "is not a URL"),
            ("etcd:ftp://witness", "neither http nor https"),
            ("etcd:http://a:1,,http://b:1", "is not a URL"),
            ("etcd:http://a:1/v3", "a path"),
            ("etcd:http://a:1/?x", "a path"),
            ("etcd:http://user:word@a:1", "arbiter-user"),
            ("etcd:http://a:1,https://b:1", "some are https"),
            (&format!("etcd:{}", ["http://a"; 10].join(",")), "more than 9"),
        ] {
            let error = text.parse::<Spec>().unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("file:DIR"), "{text}: {error}");
        }
    }

    #[test]
    fn a_machines_name_cannot_leave_the_directory_or_the_keys() {
        let directory = tempfile::tempdir().unwrap();
        for spec in [Spec::File(directory.path().into()), "etcd:http://a:1".parse().unwrap()] {
            assert!(open(&spec, None, None, "db-1.example_x").is_ok());
            for name in ["", "..", ".a", "a/b", "-a", "a b", "ä", &"x".repeat(65)] {
                let error = open(&spec, None, None, name).err().unwrap().to_string();
                assert!(error.contains("machine's name"), "{name}: {error}");
            }
        }
    }
}
