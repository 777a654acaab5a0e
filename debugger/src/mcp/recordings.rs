//! Which recordings a client may ask.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use lockstep_logcodec::LogReader;
use lockstep_node::out::{one_line, printable};
use serde_json::json;

use crate::ring;

/// Levels below a directory that was given.
const LEVELS: u32 = 3;
/// Recordings that are listed, and directories that are looked into for them.
const MOST: usize = 1000;

/// What lies in some directories.
pub struct Recordings {
    roots: Vec<PathBuf>,
}

impl Recordings {
    /// Those in `directories`, which have to be there.
    pub fn within(directories: &[PathBuf]) -> Result<Self> {
        let roots = directories.iter().map(|path| {
            let root = path
                .canonicalize()
                .with_context(|| format!("cannot look into {}", path.display()))?;
            ensure!(root.is_dir(), "{} is no directory", path.display());
            Ok(root)
        });
        Ok(Self {
            roots: roots.collect::<Result<_>>()?,
        })
    }

    /// The directory of the recording with this name: as it is listed, or below one of the directories. What leads out of them,
    /// by whatever link, is refused.
    pub fn find(&self, name: &str) -> Result<String> {
        let found = self.roots.iter().find_map(|root| root.join(name).canonicalize().ok());
        let Some(found) = found.filter(|found| self.roots.iter().any(|root| found.starts_with(root))) else {
            bail!("there is no recording {}: `recordings` names them", one_line(name));
        };
        let found = found.into_os_string().into_string();
        found.ok().context("the recording's name is no text")
    }

    /// All that there are, a JSON object a line.
    pub fn list(&self) -> Result<String> {
        let mut found = Vec::new();
        let mut left = MOST;
        for root in &self.roots {
            look(root, LEVELS, &mut left, &mut found);
        }
        ensure!(
            !found.is_empty(),
            "there are no recordings in the directories that were given"
        );
        let mut lines: Vec<String> = found
            .iter()
            .map(|(path, kind)| {
                printable(&json!({"recording": path.to_string_lossy(), "kind": kind}).to_string()).into_owned()
            })
            .collect();
        if left == 0 {
            lines.push(format!("not all: only {MOST} directories were looked into"));
        }
        Ok(lines.join("\n"))
    }
}

fn look(directory: &Path, levels: u32, left: &mut usize, found: &mut Vec<(PathBuf, &'static str)>) {
    if *left == 0 {
        return;
    }
    *left -= 1;
    if ring::is_ring(directory) {
        found.push((directory.into(), "a ring of recordings"));
        return;
    }
    if LogReader::open(directory).is_ok() {
        found.push((directory.into(), "a recording"));
        return;
    }
    // What cannot be read has nothing to list.
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut below: Vec<_> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    below.sort();
    for path in below.into_iter().filter(|_| levels > 0) {
        look(&path, levels - 1, left, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_directories_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside/log");
        std::fs::create_dir_all(&inside).unwrap();
        std::fs::create_dir_all(dir.path().join("inside-too")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("inside/etc")).unwrap();
        std::os::unix::fs::symlink("log", dir.path().join("inside/last")).unwrap();
        let recordings = Recordings::within(&[dir.path().join("inside")]).unwrap();
        let inside = inside.canonicalize().unwrap();
        for name in ["log", "./log", "last", "../inside/log", &inside.to_string_lossy()] {
            assert_eq!(Path::new(&recordings.find(name).unwrap()), inside, "{name}");
        }
        for name in ["..", "../inside-too", "etc", "/etc", "none", "/", "\u{1b}"] {
            let refused = recordings.find(name).unwrap_err().to_string();
            assert!(
                refused.starts_with("there is no recording ") && !refused.contains('\u{1b}'),
                "{refused}"
            );
        }
        assert!(recordings.list().is_err());
        assert!(Recordings::within(&[dir.path().join("none")]).is_err());
    }
}
