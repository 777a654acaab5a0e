//! A service manager's end of sd_notify(3), and of the journal: what a program sends there, as text.

use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::transcript::Transcript;

/// The largest message that is read whole.
const MOST: usize = 64 << 10;

/// A socket that programs tell things to.
pub struct Notified {
    /// What came, each message with a line's end after it.
    pub told: Transcript,
    // A socket's path is short, and a test's directory need not be.
    dir: TempDir,
}

impl Notified {
    /// A socket.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("lockstep-").tempdir()?;
        let socket = UnixDatagram::bind(dir.path().join("socket")).context("a notification socket")?;
        let told = Transcript::of(Messages {
            socket,
            left: Vec::new(),
        })?;
        Ok(Self { told, dir })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Itself, in that directory.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Shell words that make a program tell it, with a watchdog that waits for so many seconds.
    pub fn exports(&self, watchdog_seconds: u32) -> String {
        let socket = self.socket();
        format!(
            "export NOTIFY_SOCKET={} WATCHDOG_USEC={watchdog_seconds}000000",
            socket.display()
        )
    }
}

/// Datagrams as a stream.
struct Messages {
    socket: UnixDatagram,
    left: Vec<u8>,
}

impl Read for Messages {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left.is_empty() {
            let mut message = vec![0; MOST];
            let length = self.socket.recv(&mut message)?;
            message.truncate(length);
            message.push(b'\n');
            self.left = message;
        }
        let length = self.left.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.left[..length]);
        self.left.drain(..length);
        Ok(length)
    }
}
