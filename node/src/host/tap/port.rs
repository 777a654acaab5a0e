//! A tap device by its name: bound, gone, or bound again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

use crate::host::interface::Interfaces;
use crate::sys;

/// A device that is bound.
pub(super) struct Bound {
    /// Its frames.
    pub device: File,
    /// The interface's number.
    pub index: u32,
    /// Its frames cannot be read any more.
    pub is_broken: AtomicBool,
}

/// What all that work with a tap device share.
pub(super) struct Port {
    name: String,
    bound: RwLock<Option<Arc<Bound>>>,
    trouble: Mutex<Option<String>>,
    /// Wakes who reads: it ends, or another device is bound.
    pub wake: OwnedFd,
    /// Frames of the guest's that the host did not take.
    pub dropped: AtomicU64,
}

impl Port {
    /// Of the device `name`, which is not bound yet.
    pub fn new(name: &str) -> io::Result<Self> {
        Ok(Self {
            name: name.into(),
            bound: RwLock::default(),
            trouble: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            dropped: AtomicU64::new(0),
        })
    }

    /// Its name, as it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device, if it is bound.
    pub fn bound(&self) -> Option<Arc<Bound>> {
        // A whole value whenever the lock is free.
        self.bound.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_bound(&self, bound: Option<Bound>) {
        *self.bound.write().unwrap_or_else(PoisonError::into_inner) = bound.map(Arc::new);
    }

    /// Binds the device of this name; one that was bound before is let go first.
    pub fn bind(&self) -> io::Result<()> {
        self.set_bound(None);
        self.set_bound(Some(bind(&self.name)?));
        self.wake();
        Ok(())
    }

    /// Has the reading thread look around.
    pub fn wake(&self) {
        // A full counter would have woken it already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Why nobody reaches the guest by this device.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets it. Returns what it was.
    pub fn set_trouble(&self, trouble: Option<String>) -> Option<String> {
        std::mem::replace(
            &mut *self.trouble.lock().unwrap_or_else(PoisonError::into_inner),
            trouble,
        )
    }
}

/// A machine's tap devices, for those who want to know how they are.
#[derive(Clone, Default)]
pub struct Taps(pub(super) Arc<[Arc<Port>]>);

impl Taps {
    /// Why nobody reaches the guest by one of them; `None`: they are well.
    pub fn trouble(&self) -> Option<String> {
        self.0.iter().find_map(|port| port.trouble())
    }

    /// Frames of the guest's that the host did not take.
    pub fn dropped(&self) -> u64 {
        let dropped = |port: &Arc<Port>| port.dropped.load(std::sync::atomic::Ordering::Relaxed);
        self.0.iter().map(dropped).sum()
    }
}

/// What is said where there is no interface `name`.
pub(super) fn does_not_exist(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("tap device `{name}` does not exist: create it with `ip tuntap add {name} mode tap` and bring it up"),
    )
}

fn bind(name: &str) -> io::Result<Bound> {
    let mut interfaces = Interfaces::open()?;
    let mut find = || {
        let found = interfaces.by_name(name)?;
        found.map(|found| found.index).ok_or_else(|| does_not_exist(name))
    };
    let index = find()?;
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
    // Where it went away just now, the kernel has made another one, in no bridge, that goes as `device` is closed.
    if find()? != index {
        return Err(does_not_exist(name));
    }
    Ok(Bound {
        device,
        index,
        is_broken: AtomicBool::new(false),
    })
}
