//! Looks at the tap devices again and again: whether anybody can reach the guest by them, and whether one that went away is
//! there again.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::TapSender;
use super::port::{Port, Taps};
use crate::host::interface::{Interface, Interfaces};
use crate::sandbox::{self, Kind};

/// From one look to the next.
const LOOK: Duration = Duration::from_secs(1);

/// Names the variable by which a process tells the one that replaces it which of its tap devices were in a bridge: one that is
/// in none any more would else look like one that is reached otherwise.
pub const BRIDGED: &str = "LOCKSTEP_BRIDGED";

/// The names of those that are.
static IN_BRIDGES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What [`BRIDGED`] is to be for the program that takes this process' place.
pub fn bridged() -> String {
    IN_BRIDGES.lock().unwrap_or_else(PoisonError::into_inner).join(",")
}

/// The thread that looks at a machine's tap devices. It ends when this is dropped.
pub struct TapKeeper {
    taps: Taps,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TapKeeper {
    /// Starts it. The devices have been looked at once when this returns.
    pub fn start(senders: &[TapSender]) -> io::Result<Self> {
        let taps = Taps(senders.iter().map(|sender| sender.0.clone()).collect());
        if senders.is_empty() {
            return Ok(Self {
                taps,
                end: None,
                thread: None,
            });
        }
        let (end, ended) = bounded(0);
        // The thread itself makes no sockets.
        let mut interfaces = Interfaces::open()?;
        let mut kept: Vec<Kept> = taps.0.iter().map(|port| Kept::new(port.clone())).collect();
        for one in &mut kept {
            one.look(&mut interfaces);
        }
        let thread = sandbox::spawn(Kind::Waits, "taps", move || keep(kept, interfaces, &ended))?;
        Ok(Self {
            taps,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// How the devices are.
    pub fn taps(&self) -> Taps {
        self.taps.clone()
    }
}

impl Drop for TapKeeper {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn keep(mut kept: Vec<Kept>, mut interfaces: Interfaces, ended: &Receiver<()>) {
    while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        for one in &mut kept {
            one.look(&mut interfaces);
        }
    }
}

/// A device that is looked at.
struct Kept {
    port: Arc<Port>,
    /// It has been a port of a bridge or the like: without one nobody reaches it any more.
    had_master: bool,
    /// What it was called when it was looked at last.
    called: String,
}

impl Kept {
    fn new(port: Arc<Port>) -> Self {
        let called = port.name().to_owned();
        let mut kept = Self {
            port,
            had_master: false,
            called,
        };
        if std::env::var(BRIDGED).is_ok_and(|names| names.split(',').any(|name| name == kept.called)) {
            kept.note_master();
        }
        kept
    }

    fn note_master(&mut self) {
        if !self.had_master {
            self.had_master = true;
            let mut names = IN_BRIDGES.lock().unwrap_or_else(PoisonError::into_inner);
            names.push(self.port.name().into());
        }
    }

    fn look(&mut self, interfaces: &mut Interfaces) {
        let trouble = match self.find(interfaces) {
            Ok(trouble) => trouble,
            Err(error) => Some(format!("tap {} cannot be looked at: {error}", self.port.name())),
        };
        let was = self.port.set_trouble(trouble.clone());
        match trouble {
            Some(trouble) if was.as_ref() != Some(&trouble) => {
                tracing::error!("the guest cannot be reached: {trouble}; as soon as that is mended, it is used again");
            }
            None if was.is_some() => tracing::warn!("tap {} is in order again, and is used", self.port.name()),
            _ => {}
        }
    }

    /// What is wrong with it, after what can be done about that.
    fn find(&mut self, interfaces: &mut Interfaces) -> io::Result<Option<String>> {
        let bound = self.port.bound();
        let whole = bound.filter(|bound| !bound.is_broken.load(Ordering::Acquire));
        if let Some(whole) = whole
            && let Some(there) = interfaces.by_index(whole.index)?
        {
            return self.judge(&there, interfaces);
        }
        let name = self.port.name();
        if interfaces.by_name(name)?.is_none() {
            return Ok(Some(format!("tap {name} is gone")));
        }
        let port = self.port.clone();
        match sandbox::aside("tap", move || port.bind())? {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(format!("tap {name} is gone"))),
            Err(error) => return Ok(Some(error.to_string())),
        }
        let there = self.port.bound().map(|bound| interfaces.by_index(bound.index));
        match there.transpose()?.flatten() {
            Some(there) => self.judge(&there, interfaces),
            None => Ok(Some(format!("tap {} is gone", self.port.name()))),
        }
    }

    /// Whether frames have a way through a device that is there.
    fn judge(&mut self, there: &Interface, interfaces: &mut Interfaces) -> io::Result<Option<String>> {
        let name = self.port.name().to_owned();
        if there.name != self.called {
            self.called.clone_from(&there.name);
            tracing::warn!(
                "tap {name} is called {} now: it is used on, but a node that starts would look for {name}",
                there.name
            );
        }
        if !there.is_up {
            return Ok(Some(format!("tap {name} is down")));
        }
        let Some(master) = there.master else {
            return Ok(self.had_master.then(|| format!("tap {name} is in no bridge any more")));
        };
        self.note_master();
        Ok(match interfaces.by_index(master)? {
            // What a switch of another kind needs to be up is its own affair.
            Some(bridge) if bridge.is_bridge && !bridge.is_up => {
                Some(format!("bridge {} of tap {name} is down", bridge.name))
            }
            _ => None,
        })
    }
}
