//! The guest's programs and libraries: looked for in a directory of the operator's, then on the guest's own disk as it was when
//! the recording began.
//!
//! Paths are the guest's. Of the operator's host nothing is opened outside the directory, whatever links are in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use lockstep_node::bootdisk;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::program::Program;
use crate::replay::hex;

/// Bytes of a file that is read.
const MOST_BYTES: u64 = 512 << 20;
/// Files that are looked for.
const MOST_FILES: usize = 1024;

/// A file that was looked for.
pub struct Looked {
    /// What it has, or why it has nothing.
    pub program: Result<Rc<Program>, String>,
}

/// Where files are looked for.
#[derive(Clone, Copy)]
enum Place {
    Sysroot,
    Disk,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Sysroot => "in the directory of --sysroot",
            Self::Disk => "on the guest's disk",
        }
    }
}

/// All that were looked for.
pub struct Files {
    sysroot: Option<(PathBuf, File)>,
    disk: Option<PathBuf>,
    looked: BTreeMap<String, Looked>,
}

impl Files {
    /// `sysroot`: a directory with the guest's files; `disk`: the guest's first disk.
    pub fn new(sysroot: Option<&Path>, disk: Option<PathBuf>) -> Result<Self> {
        let open = |path: &Path| -> Result<(PathBuf, File)> {
            let directory = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
            if !directory.metadata()?.is_dir() {
                bail!("{} is no directory", path.display());
            }
            Ok((path.to_owned(), directory))
        };
        Ok(Self {
            sysroot: sysroot.map(open).transpose()?,
            disk,
            looked: BTreeMap::new(),
        })
    }

    /// The program at a path of the guest's.
    pub fn program(&mut self, path: &str) -> Option<Rc<Program>> {
        if !self.looked.contains_key(path) {
            if self.looked.len() >= MOST_FILES {
                return None;
            }
            let looked = self.look(path);
            self.looked.insert(path.to_owned(), looked);
        }
        self.looked.get(path)?.program.as_ref().ok().cloned()
    }

    /// Something speaks against the file that was found: nothing of it is told any more.
    pub fn refuse(&mut self, path: &str, why: &str) {
        if let Some(looked) = self.looked.get_mut(path) {
            looked.program = Err(why.to_owned());
        }
    }

    /// Each path, in order.
    pub fn looked(&self) -> &BTreeMap<String, Looked> {
        &self.looked
    }

    fn look(&self, path: &str) -> Looked {
        let mut why = Vec::new();
        for place in [Place::Sysroot, Place::Disk] {
            let bytes = match place {
                Place::Sysroot => self.in_sysroot(path),
                Place::Disk => self.on_disk(path),
            };
            match bytes.and_then(|bytes| bytes.map(|bytes| self.parse(&bytes)).transpose()) {
                Ok(Some(program)) => {
                    return Looked {
                        program: Ok(Rc::new(program)),
                    };
                }
                Ok(None) => {}
                Err(error) => why.push(format!("{}: {error:#}", place.name())),
            }
        }
        let why = if why.is_empty() {
            let places = match (&self.sysroot, &self.disk) {
                (Some(_), Some(_)) => "neither in the directory of --sysroot nor on the guest's disk",
                (Some(_), None) => "not in the directory of --sysroot",
                (None, Some(_)) => "not on the guest's disk: give a directory that has it with --sysroot",
                (None, None) => "the guest has no disk to look on: give a directory that has it with --sysroot",
            };
            places.to_owned()
        } else {
            why.join("; ")
        };
        Looked { program: Err(why) }
    }

    /// With functions from where distributions put those of stripped programs, if it has none itself.
    fn parse(&self, bytes: &[u8]) -> Result<Program> {
        let mut program = Program::parse(bytes)?;
        let apart = program.id().filter(|_| !program.has_functions()).and_then(|(_, id)| {
            let (first, rest) = id.split_first()?;
            Some(format!("/usr/lib/debug/.build-id/{first:02x}/{}.debug", hex(rest)))
        });
        if let Some(path) = apart
            && let Ok(Some(bytes)) = self.in_sysroot(&path)
            && let Ok(other) = Program::parse(&bytes)
        {
            program.take_functions(other);
        }
        Ok(program)
    }

    fn in_sysroot(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let Some((_, directory)) = &self.sysroot else {
            return Ok(None);
        };
        // Not to wait at a pipe.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat2(directory, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
        let file = match opened {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::INVAL) => return Ok(None),
            opened => File::from(opened?),
        };
        if !file.metadata()?.is_file() {
            bail!("it is no regular file");
        }
        let mut bytes = Vec::new();
        file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MOST_BYTES {
            bail!("it has more than {MOST_BYTES} bytes");
        }
        Ok(Some(bytes))
    }

    fn on_disk(&self, path: &str) -> Result<Option<Vec<u8>>> {
        match &self.disk {
            Some(disk) => bootdisk::read_file(disk, path, MOST_BYTES),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_program_is_found_below_the_directory_and_nowhere_else() {
        let root = tempfile::tempdir().unwrap();
        let own = std::fs::read("/proc/self/exe").unwrap();
        std::fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        std::fs::write(root.path().join("usr/bin/x"), &own).unwrap();
        std::fs::write(root.path().join("usr/bin/text"), "text").unwrap();
        symlink("/usr/bin", root.path().join("bin")).unwrap();
        symlink("/etc/passwd", root.path().join("usr/bin/out")).unwrap();
        let mut files = Files::new(Some(root.path()), None).unwrap();
        assert!(files.program("/usr/bin/x").is_some());
        assert!(files.program("/bin/x").is_some(), "a link is followed within");
        assert!(
            files.program("/bin/../../../usr/bin/x").is_some(),
            "and nothing leads out"
        );
        for path in [
            "/usr/bin/out",
            "/usr/bin",
            "/usr/bin/text",
            "/nothing",
            "/a\0b",
            "",
            "/usr/bin/x/y",
        ] {
            assert!(files.program(path).is_none(), "{path:?}");
        }
        let why = |path: &str| files.looked()[path].program.as_ref().err().cloned().unwrap();
        assert!(
            why("/nothing").contains("not in the directory of --sysroot"),
            "{}",
            why("/nothing")
        );
        assert!(why("/usr/bin/text").contains("no ELF file"), "{}", why("/usr/bin/text"));
    }

    #[test]
    fn as_many_files_as_a_guest_names_are_not_read() {
        let mut files = Files::new(None, None).unwrap();
        for number in 0..2 * MOST_FILES {
            assert!(files.program(&format!("/{number}")).is_none());
        }
        assert_eq!(files.looked().len(), MOST_FILES);
    }
}
