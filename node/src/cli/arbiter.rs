//! Who decides which node is live, for commands that ask it beside the nodes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::config::describe;
use super::config::file::{self, Value};
use crate::arbiter::{self, Arbiter, Gateway, Login, Spec, TlsFiles};

/// The arbiter, and who asks it.
#[derive(Args, Clone, Debug)]
pub struct ArbiterOptions {
    /// Who decides which node is live, as `run` has it.
    #[arg(long, value_name = "SPEC")]
    arbiter: Option<Spec>,
    /// CA of the arbiter's certificate (PEM).
    #[arg(long, value_name = "FILE")]
    arbiter_ca: Option<PathBuf>,
    /// The certificate for the arbiter (PEM).
    #[arg(long, value_name = "FILE", requires = "arbiter_ca")]
    arbiter_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", requires = "arbiter_ca")]
    arbiter_key: Option<PathBuf>,
    /// The user of an etcd that has users.
    #[arg(long, value_name = "USER", requires = "arbiter_password_file")]
    arbiter_user: Option<String>,
    /// File with its password, which nobody but its owner can read.
    #[arg(long, value_name = "FILE", requires = "arbiter_user")]
    arbiter_password_file: Option<PathBuf>,
}

impl ArbiterOptions {
    /// As a machine's configuration file has them.
    pub fn of_file(path: &Path) -> Result<Self> {
        let content = file::read(path);
        let content = content.map_err(|problem| anyhow::anyhow!(describe(path, &[problem])))?;
        if !content.problems.is_empty() {
            bail!(describe(path, &content.problems));
        }
        let text = |key: &str| {
            let entry = content.entries.iter().find(|entry| entry.key == key);
            match entry.map(|entry| &entry.value) {
                None => Ok(None),
                Some(Value::One(text)) => Ok(Some(text.clone())),
                Some(_) => bail!("{}: {key} is not one text", path.display()),
            }
        };
        let file = |key: &str| Ok::<_, anyhow::Error>(text(key)?.map(PathBuf::from));
        let spec: Option<Spec> = text("arbiter")?.map(|spec| spec.parse()).transpose()?;
        if spec.is_none() {
            bail!(
                "{} names no arbiter: it is of a machine that has no backup",
                path.display()
            );
        }
        Ok(Self {
            arbiter: spec,
            arbiter_ca: file("arbiter-ca")?,
            arbiter_cert: file("arbiter-cert")?,
            arbiter_key: file("arbiter-key")?,
            arbiter_user: text("arbiter-user")?,
            arbiter_password_file: file("arbiter-password-file")?,
        })
    }

    fn spec(&self) -> Result<&Spec> {
        self.arbiter.as_ref().context("--arbiter is missing")
    }

    fn access(&self) -> Result<(Option<TlsFiles>, Option<Login>)> {
        let tls = TlsFiles::from_paths(
            self.arbiter_ca.clone(),
            self.arbiter_cert.clone(),
            self.arbiter_key.clone(),
        )?;
        let login = Login::from_options(self.arbiter_user.clone(), self.arbiter_password_file.clone())?;
        Ok((tls, login))
    }

    /// Opens the record of the machine `name`.
    pub fn open(&self, name: &str) -> Result<Box<dyn Arbiter>> {
        let (tls, login) = self.access()?;
        Ok(arbiter::open(self.spec()?, tls.as_ref(), login.as_ref(), name)?)
    }

    /// A client of the etcd, for all machines; an arbiter of another kind has no such thing.
    pub fn gateway(&self, what: &str) -> Result<Gateway> {
        let (tls, login) = self.access()?;
        arbiter::gateway(self.spec()?, tls, login, what.into())?
            .context("a directory has the records of one host's machines alone: `status` tells of them all")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_file_names_its_arbiter() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("vm.toml");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            ArbiterOptions::of_file(&file)
        };
        let options = read("name = \"vm\"\n[arbiter]\ndirectory = \"etcd:http://a:1\"\nuser = \"u\"\n").unwrap();
        assert_eq!(options.arbiter, Some("etcd:http://a:1".parse().unwrap()));
        assert_eq!(options.arbiter_user.as_deref(), Some("u"));
        // A user without a password.
        assert!(options.gateway("all").is_err());
        assert!(read("arbiter = \"etcd:http://a:1\"").unwrap().gateway("all").is_ok());
        for (text, words) in [
            ("name = \"vm\"\n", "names no arbiter"),
            ("arbiter = 5\n", "begins neither"),
            ("arbiter = true\n", "not one text"),
            ("arbiter = vm\n", "not TOML"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(
                error.contains(words) && (error.contains("vm.toml") || text.contains('5')),
                "{text}: {error}"
            );
        }
        let directory = read("arbiter = \"file:/x\"").unwrap().gateway("all").unwrap_err();
        assert!(directory.to_string().contains("`status`"));
        let missing = ArbiterOptions::of_file(&home.path().join("no")).unwrap_err();
        assert!(missing.to_string().contains("cannot be read"));
    }
}
