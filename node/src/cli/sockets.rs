//! Which machines run on this host: their sockets, one for each machine, in one directory.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use thiserror::Error;

/// Where sockets are, unless LOCKSTEP_RUN_DIR says otherwise.
const DIRECTORY: &str = "/run/lockstep";
/// What a socket's name ends with.
const SUFFIX: &str = ".sock";

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
