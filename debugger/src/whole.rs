//! Files that appear whole or not at all: they are written beside their place, and get their name at the end.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Its user alone: it has the guest's memory or files.
    User,
    /// As any file's, less what the umask takes.
    All,
}

/// A file that is being written.
pub struct Whole {
    temporary: NamedTempFile,
    to: PathBuf,
}

impl Whole {
    /// One that is to be at `to`.
    pub fn begin(to: &Path, readers: Readers) -> io::Result<Self> {
        let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mode = match readers {
            Readers::User => 0o600,
            Readers::All => 0o666,
        };
        let temporary = tempfile::Builder::new()
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(directory.unwrap_or(Path::new(".")))?;
        Ok(Self {
            temporary,
            to: to.to_owned(),
        })
    }

    /// What it has so far.
    pub fn file(&mut self) -> &mut File {
        self.temporary.as_file_mut()
    }

    /// Where it is to be.
    pub fn place(&self) -> &Path {
        &self.to
    }

    /// It is there, where nothing was.
    pub fn end_new(self) -> io::Result<()> {
        self.temporary.as_file().sync_all()?;
        self.temporary.persist_noclobber(self.to)?;
        Ok(())
    }

    /// It is there, in place of what was.
    pub fn end(self) -> io::Result<()> {
        self.temporary.as_file().sync_all()?;
        self.temporary.persist(self.to)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        let home = tempfile::tempdir().unwrap();
        let to = home.path().join("file");
        let written = |readers, text: &str| {
            let mut whole = Whole::begin(&to, readers).unwrap();
            whole.file().write_all(text.as_bytes()).unwrap();
            whole
        };
        let whole = written(Readers::User, "one");
        assert!(!to.exists());
        whole.end_new().unwrap();
        assert_eq!(to.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        written(Readers::All, "two").end_new().unwrap_err();
        drop(written(Readers::All, "three"));
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "one");
        written(Readers::All, "four").end().unwrap();
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "four");
        assert_ne!(to.metadata().unwrap().permissions().mode() & 0o077, 0o077);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1);
    }
}
