//! The socket's file. A lock beside it tells a live server from a dead one's leavings, so that two processes that start at
//! once cannot both take the place.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use thiserror::Error;

/// Of the directory, where it is made: others than the owner and its group see nothing.
const DIRECTORY_MODE: u32 = 0o750;
/// Of the socket: connecting needs the right to write.
const SOCKET_MODE: u32 = 0o660;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 32;

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody else serves it.
    #[error(
        "another process serves {0}: the machine runs on this host already. End that process, or give this one another --api"
    )]
    Live(PathBuf),
    /// What is in its place is not ours to remove.
    #[error("{0} is there and is no socket; remove it, or give another --api")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot serve {path}: {what}: {cause}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Its error.
        cause: io::Error,
    },
}

impl SocketError {
    /// Whether this process lacks the right, and another directory would do.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Io { cause, .. }
            if matches!(cause.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem))
    }
}

/// A socket's place, held. Dropping it removes the socket.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    // Given back after the socket is gone.
    lock: Lock,
}

/// The right to a place. Dropping it removes its file.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    file: File,
}

impl Place {
    /// Whether the socket's file or its lock's is gone, as when somebody cleans /run. False where another process has taken
    /// the place.
    pub fn is_gone(&self) -> bool {
        match self.lock.stands() {
            Some(ours) => ours && self.path.symlink_metadata().is_err(),
            None => true,
        }
    }
}

impl Lock {
    /// Whether what lies in its place is this one; `None`: nothing does.
    fn stands(&self) -> Option<bool> {
        let there = self.path.symlink_metadata().ok()?;
        let held = self.file.metadata().ok();
        Some(held.is_some_and(|held| (held.dev(), held.ino()) == (there.dev(), there.ino())))
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes the directory of a socket if it is missing; its parents are not made.
pub fn make_directory(path: &Path) -> io::Result<()> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(directory) if !directory.is_dir() => DirBuilder::new().mode(DIRECTORY_MODE).create(directory),
        _ => Ok(()),
    }
}

/// Takes the place at `path` and listens there. Its directory is made if it is missing.
pub fn listen(path: &Path) -> Result<(Place, UnixListener), SocketError> {
    let failed = |what| {
        move |cause: io::Error| SocketError::Io {
            path: path.into(),
            what,
            cause,
        }
    };
    make_directory(path).map_err(failed("cannot make its directory"))?;
    let lock = lock(path)?;
    match path.symlink_metadata() {
        // Whoever made it is dead: the lock would be held.
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(SocketError::NotASocket(path.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("cannot look at it")(error)),
    }
    let listener = bind(path).map_err(failed("cannot make the socket"))?;
    let place = Place {
        path: path.into(),
        lock,
    };
    Ok((place, listener))
}

/// The socket appears in its place with its permissions, or not at all: bound beside it, then renamed.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let staged = beside(path, ".new");
    match std::fs::remove_file(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let address = SocketAddrUnix::new(&staged)
        .map_err(|_| io::Error::other("its path is too long for a socket; give a shorter --api"))?;
    rustix::net::bind(&socket, &address)?;
    std::fs::set_permissions(&staged, Permissions::from_mode(SOCKET_MODE))?;
    rustix::net::listen(&socket, BACKLOG)?;
    std::fs::rename(&staged, path)?;
    Ok(socket.into())
}

fn lock(path: &Path) -> Result<Lock, SocketError> {
    let lock_path = beside(path, ".lock");
    let failed = |cause: io::Error| SocketError::Io {
        path: path.into(),
        what: "cannot lock its place",
        cause,
    };
    loop {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&lock_path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(SocketError::Live(path.into())),
            Err(errno) => return Err(failed(errno.into())),
        }
        // Its last holder may have removed it between the two calls: then it is no lock.
        let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let held = file.metadata().map(id).ok();
        if held.is_some() && held == lock_path.metadata().map(id).ok() {
            return Ok(Lock { path: lock_path, file });
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // One that is gone is as good; another process' stays.
        if self.lock.stands() != Some(false) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Still held: whoever opens it now finds that it is no lock any more.
        if self.stands() == Some(true) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_socket_has_safe_modes_and_goes_with_its_place() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("run/m.sock");
        let (place, _listener) = listen(&path).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o660);
        assert_eq!(mode(path.parent().unwrap()) & !0o750, 0);
        UnixStream::connect(&path).unwrap();
        drop(place);
        assert_eq!(std::fs::read_dir(home.path().join("run")).unwrap().count(), 0);
    }

    #[test]
    fn a_live_one_is_refused_and_a_dead_ones_is_replaced() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("m.sock");
        let (place, listener) = listen(&path).unwrap();
        assert!(matches!(listen(&path), Err(SocketError::Live(_))));
        // As a killed process leaves it: the files stay, the lock and the listener are gone.
        let (socket, lock) = (path.clone(), beside(&path, ".lock"));
        std::fs::rename(&socket, beside(&path, ".kept")).unwrap();
        std::fs::rename(&lock, beside(&lock, ".kept")).unwrap();
        drop((place, listener));
        std::fs::rename(beside(&path, ".kept"), &socket).unwrap();
        std::fs::rename(beside(&lock, ".kept"), &lock).unwrap();
        assert!(UnixStream::connect(&path).is_err());
        let _held = listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_place_that_was_cleaned_away_is_gone_and_one_that_another_took_is_theirs() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("m.sock");
        let (place, _listener) = listen(&path).unwrap();
        assert!(!place.is_gone());
        std::fs::remove_file(&path).unwrap();
        assert!(place.is_gone());
        std::fs::remove_file(beside(&path, ".lock")).unwrap();
        assert!(place.is_gone());
        let (theirs, _listener) = listen(&path).unwrap();
        assert!(!place.is_gone());
        drop(place);
        assert!(!theirs.is_gone());
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_and_a_long_path_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("m.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let long = home.path().join("x".repeat(150));
        let error = listen(&long).unwrap_err().to_string();
        assert!(error.contains("too long"), "{error}");
    }
}
