//! The thread that reads a tap device's frames.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};

use super::port::{Bound, Port};
use super::{MAX_FRAME, TapSender};
use crate::host::inbox::Outside;
use crate::sandbox::{self, Kind};

/// A tap device's reading thread.
pub struct Tap {
    port: Arc<Port>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Tap {
    /// Starts to read frames of the device that `sender` sends to, for NIC number `nic`.
    pub fn start(sender: &TapSender, nic: u32, outside: Outside) -> io::Result<Self> {
        let (port, ends) = (sender.0.clone(), Arc::new(AtomicBool::new(false)));
        let reader = Reader {
            port: port.clone(),
            ends: ends.clone(),
            nic,
            outside,
            buffer: vec![0; MAX_FRAME],
        };
        let thread = sandbox::spawn(Kind::Bytes, &format!("tap-{nic}"), move || reader.run())?;
        Ok(Self {
            port,
            ends,
            thread: Some(thread),
        })
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        self.port.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Reader {
    port: Arc<Port>,
    ends: Arc<AtomicBool>,
    nic: u32,
    outside: Outside,
    buffer: Vec<u8>,
}

impl Reader {
    fn run(mut self) {
        while !self.ends.load(Ordering::Acquire) {
            let bound = self.port.bound();
            let whole = bound
                .as_deref()
                .filter(|bound| !bound.is_broken.load(Ordering::Acquire));
            if let Err(error) = self.wait(whole) {
                tracing::error!(nic = self.nic, %error, "cannot wait for frames; the NIC receives nothing any more");
                return;
            }
            if let Some(whole) = whole
                && !self.read(whole)
            {
                return;
            }
        }
    }

    /// Until there are frames, or the thread is woken.
    fn wait(&self, bound: Option<&Bound>) -> io::Result<()> {
        let mut fds = vec![PollFd::new(&self.port.wake, PollFlags::IN)];
        fds.extend(bound.map(|bound| PollFd::new(&bound.device, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !fds[0].revents().is_empty() {
            // Nothing in it: another look is due all the same.
            let _ = rustix::io::read(&self.port.wake, &mut [0; 8]);
        }
        Ok(())
    }

    /// Takes the frames that are there. False when the machine is gone.
    fn read(&mut self, bound: &Bound) -> bool {
        loop {
            match (&bound.device).read(&mut self.buffer) {
                Ok(0) => return true,
                Ok(len) => {
                    if !self.outside.frame(self.nic, self.buffer[..len].to_vec()) {
                        return false;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Whoever keeps the device finds out why, and binds it again.
                    tracing::debug!(nic = self.nic, %error, "cannot read frames");
                    bound.is_broken.store(true, Ordering::Release);
                    return true;
                }
            }
        }
    }
}
