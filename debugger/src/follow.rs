//! Waiting for a log to grow.

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result};
use lockstep_node::sys::signals::heeded;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};

/// A file system that tells of no changes (one of another machine) is looked at this often.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Wakes up when something in a directory changes, and on SIGINT and SIGTERM.
pub struct Changes {
    inotify: OwnedFd,
    signals: UnixStream,
}

impl Changes {
    /// Begins to watch: what changes from now on is not missed.
    pub fn watch(directory: &Path) -> Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let changes = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
        inotify::add_watch(&inotify, directory, changes)
            .with_context(|| format!("cannot watch {}", directory.display()))?;
        let (signals, end) = UnixStream::pair()?;
        signals.set_nonblocking(true)?;
        for signal in heeded(&[SIGINT, SIGTERM]) {
            signal_hook::low_level::pipe::register(signal, end.try_clone()?)?;
        }
        Ok(Self { inotify, signals })
    }

    /// Waits for a change; what changed before the call and after the one before counts. False: a signal came.
    pub fn wait(&self) -> Result<bool> {
        let mut fds = [
            PollFd::new(&self.inotify, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        match poll(&mut fds, Some(&LOOK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.drain()?;
        Ok(!self.is_signalled()?)
    }

    /// Whether a signal came.
    pub fn is_signalled(&self) -> Result<bool> {
        match (&self.signals).read(&mut [0; 1]) {
            Ok(length) => Ok(length > 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets what was told: whoever waits looks at everything after it.
    fn drain(&self) -> Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            match events.next() {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
