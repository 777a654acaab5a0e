//! Tap devices: frames from the host's network to the machine and back.
//!
//! A device may go away and come again while the machine runs (`ip link del`): what is sent meanwhile is dropped, as on a
//! wire that is cut, and [`TapKeeper`] binds it again.

mod keeper;
mod port;
mod reader;

pub use keeper::{BRIDGED, TapKeeper, bridged};
pub use port::Taps;
pub use reader::Tap;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use port::Port;

/// Largest frame that is taken: the most that a tap device's packet can have, with Ethernet's header and two VLAN tags.
const MAX_FRAME: usize = 65_535 + 22;

/// A tap device, to send.
pub struct TapSender(Arc<Port>);

impl TapSender {
    /// Binds the existing tap device `name`.
    pub fn open(name: &str) -> io::Result<Self> {
        let port = Port::new(name)?;
        port.bind()?;
        Ok(Self(Arc::new(port)))
    }

    /// The same, or waits for it where it does not exist: a [`TapKeeper`] binds it then.
    pub fn open_or_wait(name: &str) -> io::Result<Self> {
        let port = Port::new(name)?;
        match port.bind() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Self(Arc::new(port))),
        }
    }

    /// Fails where the device is waited for.
    pub fn check(&self) -> io::Result<()> {
        match self.0.bound() {
            Some(_) => Ok(()),
            None => Err(port::does_not_exist(self.0.name())),
        }
    }

    /// Throws away what came in so far: it was for the machine's other place.
    pub fn drain(&self) {
        let Some(bound) = self.0.bound() else { return };
        let mut buffer = vec![0; MAX_FRAME];
        while (&bound.device).read(&mut buffer).is_ok_and(|len| len > 0) {}
    }

    /// Sends a frame. A frame that the host does not take at once is dropped and counted, as on a full wire.
    pub fn send(&mut self, frame: &[u8]) {
        let sent = match self.0.bound() {
            Some(bound) => (&bound.device).write(frame).map(drop),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        if let Err(error) = sent {
            let dropped = self.0.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::debug!(%error, dropped, "frame dropped");
        }
    }
}
