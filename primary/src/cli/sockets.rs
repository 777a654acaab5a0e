//! Which machines run on this host: their sockets, one for each machine, in one directory.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use thiserror::Error;

use super::again::start_over;
use super::pair::PairArgs;
use crate::api::{ApiServer, Exporter, Identity};
use crate::link::{Control, Status};

/// Where sockets are, unless LOCKSTEP_RUN_DIR says otherwise.
const DIRECTORY: &str = "/run/lockstep";
/// What a socket's name ends with.
const SUFFIX: &str = ".sock";

/// Where a machine of a pair is asked.
#[derive(Args, Clone, Debug)]
pub struct ApiArgs {
    /// Socket of the operations API [default: /run/lockstep/NAME.sock].
    #[arg(long, value_name = "SOCKET", requires = "peer")]
    pub api: Option<PathBuf>,
    /// Where to serve metrics for Prometheus and the process' health (TCP). Whoever reaches it may read them: prefer an
    /// address of the loopback or of a network for management.
    #[arg(long, value_name = "IP:PORT", requires = "peer")]
    pub metrics: Option<SocketAddr>,
}

impl ApiArgs {
    /// Serves the API of this end of a pair, and its metrics.
    pub fn serve(&self, pair: &PairArgs, status: &Status, control: &Control) -> Result<Served> {
        let path = self.api.clone().unwrap_or_else(|| of(&pair.name));
        let identity = Identity {
            machine: pair.name.clone(),
            node: pair.node.clone(),
            pki: pair.pki.clone(),
        };
        // First, so that nothing stands behind the API's socket where this fails.
        let start = |address| Exporter::start(address, identity.clone(), status.clone());
        let metrics = self.metrics.map(start).transpose()?;
        let api = self.serve_api(&path, &identity, status, control)?;
        Ok(Served {
            _api: api,
            _metrics: metrics,
        })
    }

    /// `None`: only the default directory may not be used; the machine runs anyway.
    fn serve_api(
        &self,
        path: &Path,
        identity: &Identity,
        status: &Status,
        control: &Control,
    ) -> Result<Option<ApiServer>> {
        match ApiServer::start(path, identity.clone(), status.clone(), control.clone(), vanish) {
            Ok(server) => Ok(Some(server)),
            Err(error) if self.api.is_none() && error.is_permission() => {
                tracing::warn!("{error}; this machine can be asked nothing. --api names a socket elsewhere");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What is served for as long as this lives.
pub struct Served {
    _api: Option<ApiServer>,
    _metrics: Option<Exporter>,
}

/// Ends this process as a crash would, for a drill.
fn vanish() {
    tracing::warn!("a drill: this process vanishes");
    let error = start_over();
    tracing::error!("{error:#}");
}

fn directory() -> PathBuf {
    std::env::var_os("LOCKSTEP_RUN_DIR").map_or_else(|| DIRECTORY.into(), PathBuf::from)
}

/// The socket of the machine with this name.
pub fn of(name: &str) -> PathBuf {
    directory().join(format!("{name}{SUFFIX}"))
}

/// Where the divergence reports of the machine with this name are kept.
pub fn reports_of(name: &str) -> PathBuf {
    directory().join(format!("{name}.divergences"))
}

/// The machine of a socket, by its file's name.
pub fn name_of(socket: &Path) -> String {
    let name = socket.file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix(SUFFIX).unwrap_or(&name).into()
}

/// All sockets, in the order of their names.
pub fn all() -> Result<Vec<PathBuf>> {
    let directory = directory();
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries.with_context(|| format!("cannot look into {}", directory.display()))?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(SUFFIX) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// No machine was named, and there is none.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct NoMachine(String);

/// The only one.
pub fn only() -> Result<PathBuf> {
    let mut all = all()?;
    match (all.pop(), all.is_empty()) {
        (Some(one), true) => Ok(one),
        (Some(_), false) => bail!("name the machine: {}", what_there_is()),
        (None, _) => Err(NoMachine(what_there_is()).into()),
    }
}

/// Which machines there are, for people.
pub fn what_there_is() -> String {
    let directory = directory();
    match all() {
        Ok(all) if all.is_empty() => format!("no machine runs here: {} has no socket", directory.display()),
        Ok(all) => {
            let names: Vec<_> = all.iter().map(|socket| name_of(socket)).collect();
            format!("{} has sockets of: {}", directory.display(), names.join(", "))
        }
        Err(error) => format!("{error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_its_machines_name() {
        assert_eq!(name_of(&of("db.1")), "db.1");
        assert_eq!(name_of(Path::new("/tmp/other")), "other");
    }
}
