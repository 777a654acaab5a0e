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
        let mut look = Look {
            left: MOST,
            ..Look::default()
        };
        for root in &self.roots {
            look.enter(root, LEVELS);
        }
        if look.is_cut {
            look.lines
                .push(format!("not all: only {MOST} directories were looked into"));
        }
        ensure!(
            !look.lines.is_empty(),
            "there are no recordings in the directories that were given"
        );
        Ok(look.lines.join("\n"))
    }
}

/// A look for recordings.
#[derive(Default)]
struct Look {
    /// Directories that are looked into yet.
    left: usize,
    /// There were more than that.
    is_cut: bool,
    /// What was found.
    lines: Vec<String>,
}

impl Look {
    fn enter(&mut self, directory: &Path, levels: u32) {
        if self.left == 0 {
            self.is_cut = true;
            return;
        }
        self.left -= 1;
        if ring::is_ring(directory) {
            return self.tell("recording", directory, "kind", "a ring of recordings");
        }
        if LogReader::open(directory).is_ok() {
            return self.tell("recording", directory, "kind", "a recording");
        }
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries.flatten(),
            Err(error) => return self.tell("directory", directory, "error", &error.to_string()),
        };
        let mut below: Vec<_> = entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        below.sort();
        for path in below.into_iter().filter(|_| levels > 0) {
            self.enter(&path, levels - 1);
        }
    }

    fn tell(&mut self, what: &str, path: &Path, key: &str, value: &str) {
        let line = json!({ what: path.to_string_lossy(), key: value }).to_string();
        self.lines.push(printable(&line).into_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_cut_and_a_directory_that_cannot_be_read_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut look = Look {
            left: 3,
            ..Look::default()
        };
        for name in ["a", "b"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        look.enter(dir.path(), LEVELS);
        assert!((look.left, look.is_cut, look.lines.len()) == (0, false, 0));
        look.enter(&dir.path().join("a"), LEVELS);
        assert!(look.is_cut);
        look.left = 1;
        look.enter(&dir.path().join("gone\u{1b}"), LEVELS);
        assert!(
            look.lines.len() == 1 && look.lines[0].contains("\"error\"") && !look.lines[0].contains('\u{1b}'),
            "{:?}",
            look.lines
        );
    }

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
