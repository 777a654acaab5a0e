//! A tap device: frames from the host's network to the machine and back.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;

use super::inbox::Outside;
use crate::sandbox::{self, Kind};
use crate::sys;

/// Largest frame that is taken: an Ethernet frame with a VLAN tag and a jumbo payload of 9000 bytes.
const MAX_FRAME: usize = 9018;

/// A bound tap device's reading thread.
pub struct Tap {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// A bound tap device, to send.
pub struct TapSender {
    device: Arc<File>,
    dropped: u64,
}

impl Tap {
    /// Starts to read frames of the device that `sender` sends to, for NIC number `nic`.
    pub fn start(sender: &TapSender, nic: u32, outside: Outside) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let (reader, end) = (sender.device.clone(), stop.clone());
        let thread = sandbox::spawn(Kind::Bytes, &format!("tap-{nic}"), move || {
            read_frames(&reader, &end, nic, &outside);
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl TapSender {
    /// Binds the existing tap device `name`.
    pub fn open(name: &str) -> io::Result<Self> {
        Ok(Self {
            device: Arc::new(bind(name)?),
            dropped: 0,
        })
    }

    /// Throws away what came in so far: it was for the machine's other place.
    pub fn drain(&self) {
        let mut buffer = vec![0; MAX_FRAME];
        while (&*self.device).read(&mut buffer).is_ok_and(|len| len > 0) {}
    }

    /// Sends a frame. A frame that the host does not take at once is dropped and counted, as on a full wire.
    pub fn send(&mut self, frame: &[u8]) {
        if let Err(error) = (&*self.device).write(frame) {
            self.dropped += 1;
            tracing::debug!(%error, dropped = self.dropped, "frame dropped");
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // A full counter would have woken the thread already.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn bind(name: &str) -> io::Result<File> {
    if !sys::uplink::is_there(name) {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "tap device `{name}` does not exist: create it with `ip tuntap add {name} mode tap` and bring it up"
            ),
        ));
    }
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|error| io::Error::new(error.kind(), format!("cannot open /dev/net/tun: {error}")))?;
    sys::tap::bind(&device, name).map_err(|error| {
        let hint = match error.raw_os_error() {
            Some(libc::EBUSY) => "another program uses it",
            Some(libc::EPERM) => "it belongs to another user; create it with `user NAME` or run as root",
            Some(libc::EINVAL) => "it is not a tap device",
            _ => "the kernel refused it",
        };
        io::Error::new(
            error.kind(),
            format!("cannot use tap device `{name}`: {hint} ({error})"),
        )
    })?;
    Ok(device)
}

fn read_frames(device: &File, stop: &OwnedFd, nic: u32, outside: &Outside) {
    let mut buffer = vec![0; MAX_FRAME];
    loop {
        let mut fds = [PollFd::new(device, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(nic, %error, "cannot wait for frames; the NIC receives nothing any more");
                return;
            }
        }
        loop {
            match (&*device).read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => {
                    if !outside.frame(nic, buffer[..len].to_vec()) {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!(nic, %error, "cannot read frames; the NIC receives nothing any more");
                    return;
                }
            }
        }
    }
}
