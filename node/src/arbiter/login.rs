//! A user of etcd: its name, where its password is, and the token that etcd gives for them.
//!
//! Invariants:
//! - The password comes from a file that nobody but its owner can read. Neither it nor the token is printed.
//! - A token is used until etcd does not know it any more: it has expired, or its users were changed. A
//!   restart of etcd ends none: it replays them. Then the password is read again, so one that was changed needs no restart.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use thiserror::Error;

use super::failure::Failure;
use crate::pki::{PkiError, pem};

/// What etcd says when users are switched off: then nobody has to say who asks.
const NO_USERS: &str = "authentication is not enabled";

/// Who asks etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    user: String,
    password_file: PathBuf,
}

/// A user without a password, or a password without a user.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the arbiter's user needs a file with its password: give both or none")]
pub struct HalfLogin;

impl Login {
    /// From optional arguments. None if none is given.
    pub fn from_options(user: Option<String>, password_file: Option<PathBuf>) -> Result<Option<Self>, HalfLogin> {
        match (user, password_file) {
            (Some(user), Some(password_file)) => Ok(Some(Self { user, password_file })),
            (None, None) => Ok(None),
            _ => Err(HalfLogin),
        }
    }

    /// The file with the password.
    pub fn password_file(&self) -> &Path {
        &self.password_file
    }

    /// Whether the password can be read, as it is now.
    pub fn check(&self) -> Result<(), PkiError> {
        self.password().map(drop)
    }

    /// The file's text without the line's end.
    fn password(&self) -> Result<String, PkiError> {
        let wrong = |reason: &str| PkiError::Password {
            path: self.password_file.clone(),
            reason: reason.into(),
        };
        let bytes = pem::private(&self.password_file).map_err(|error| match error {
            PkiError::Missing { .. } => wrong("it is missing"),
            error => error,
        })?;
        let text = String::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8"))?;
        let password = text.trim_end_matches(['\r', '\n']);
        if password.is_empty() || password.contains(['\r', '\n']) {
            return Err(wrong("it is not one line"));
        }
        Ok(password.into())
    }
}

/// A user and its token, if etcd has given one.
pub(super) struct Visitor {
    login: Login,
    token: Option<String>,
}

impl Visitor {
    pub(super) fn new(login: Login) -> Self {
        Self { login, token: None }
    }

    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Asks for a token by `ask`, which sends a body to a path.
    pub(super) fn enter(&mut self, ask: impl FnOnce(&str, &str) -> Result<Vec<u8>, Failure>) -> Result<(), Failure> {
        self.token = None;
        let Login { user, password_file } = &self.login;
        let refused = |reason: &str| {
            Failure::Refused(format!(
                "user `{}` with the password in {} is not let in: {reason}",
                user.escape_debug(),
                password_file.display()
            ))
        };
        let password = self.login.password().map_err(|error| refused(&error.to_string()))?;
        let body = json!({ "name": user, "password": password }).to_string();
        let answer = match ask("/v3/auth/authenticate", &body) {
            Ok(answer) => answer,
            Err(Failure::Refused(reason)) if reason.contains(NO_USERS) => return Ok(()),
            Err(Failure::Refused(reason) | Failure::Stranger(reason)) => return Err(refused(&reason)),
            Err(unknown) => return Err(unknown),
        };
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let token = answer["token"].as_str().filter(|token| !token.is_empty());
        self.token = Some(
            token
                .ok_or_else(|| Failure::Unknown("it gave no token for a password".into()))?
                .into(),
        );
        Ok(())
    }
}

impl fmt::Debug for Visitor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Visitor")
            .field("login", &self.login)
            .finish_non_exhaustive()
    }
}

/// Whether a refusal means that etcd does not know the token: nothing was done, and a new token may help.
pub(super) fn is_strange(status: u16, said: &str) -> bool {
    status == 401 || said.contains("revision of auth store is old")
}

/// What to do about a refusal that has to do with users.
pub(super) fn remedy(said: &str) -> &'static str {
    [
        (
            "CommonName of client",
            ". An etcd with users takes no client certificate with a common name here: make this node's anew, `lockstep-primary pki renew`, or have it made without one",
        ),
        (
            "user name is empty",
            ". It has users: give arbiter-user and arbiter-password-file",
        ),
        (
            "permission denied",
            ". The user's role must be able to read all keys that begin with `lockstep/`, and a node's to write them",
        ),
    ]
    .into_iter()
    .find_map(|(words, remedy)| said.contains(words).then_some(remedy))
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_password_is_one_line_of_a_file_of_its_owner() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("password");
        let login = Login::from_options(Some("u".into()), Some(file.clone()))
            .unwrap()
            .unwrap();
        let put = |text: &[u8], mode| {
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        };
        let wrong = |words: &str| {
            let error = login.check().unwrap_err().to_string();
            assert!(
                error.contains(words) && error.contains("password") && !error.contains("xyzzy"),
                "{error}"
            );
        };
        wrong("missing");
        put(b"xyzzy\n", 0o640);
        wrong("others can read");
        put(b"xyzzy\n", 0o600);
        assert_eq!(login.password().unwrap(), "xyzzy");
        put(b"xyzzy", 0o400);
        assert_eq!(login.password().unwrap(), "xyzzy");
        fs::remove_file(&file).unwrap();
        for text in [&b""[..], b"\n", b"xyzzy\nxyzzy\n", b"xyzzy\xff"] {
            put(text, 0o600);
            wrong("cannot be used");
        }
        let half = Login::from_options(Some("u".into()), None);
        assert_eq!(half, Err(HalfLogin));
        assert_eq!(Login::from_options(None, None), Ok(None));
    }

    #[test]
    fn neither_password_nor_token_is_shown() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("password");
        fs::write(&file, "secret").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let login = Login::from_options(Some("u".into()), Some(file)).unwrap().unwrap();
        let mut visitor = Visitor::new(login);
        visitor.enter(|_, _| Ok(br#"{"token":"secret.1"}"#.to_vec())).unwrap();
        assert_eq!(visitor.token(), Some("secret.1"));
        assert!(!format!("{visitor:?}").contains("secret"));
        let refused = visitor.enter(|_, body| {
            assert!(body.contains("secret"));
            Err(Failure::Refused("no".into()))
        });
        let refused = format!("{refused:?}");
        assert!(
            refused.contains("not let in: no") && !refused.contains("secret"),
            "{refused}"
        );
        assert_eq!(visitor.token(), None);
    }
}
