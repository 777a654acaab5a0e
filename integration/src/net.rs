//! A network namespace with a tap device for one machine. The host's side of the wire is the namespace itself.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{bound, check};

/// The guest's address, as `lockstep.ip=` takes it.
pub const GUEST: &str = "10.77.0.2/24";
/// The same for client programs.
pub const GUEST_IP: &str = "10.77.0.2";
/// The client's address, and the namespace's side where there is no client.
pub const CLIENT_IP: &str = "10.77.0.1";
/// The namespace's side.
const HOST: &str = "10.77.0.1/24";
/// The tap device, the same in every namespace.
pub const TAP: &str = "tap0";
/// The bridge of a namespace that has one.
pub const BRIDGE: &str = "br0";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A namespace. Dropping it removes it, and the tap with it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one with a tap device whose other side is the namespace itself.
    pub fn create() -> Result<Self> {
        let namespace = Self::empty()?;
        namespace.add_own_tap()?;
        Ok(namespace)
    }

    /// Adds the tap device with the namespace itself on the other side.
    pub fn add_own_tap(&self) -> Result<()> {
        self.add_tap()?;
        self.ip(&["addr", "add", HOST, "dev", TAP])
    }

    /// Adds the tap device, and brings it up.
    pub fn add_tap(&self) -> Result<()> {
        self.ip(&["tuntap", "add", TAP, "mode", "tap"])?;
        self.ip(&["link", "set", TAP, "addrgenmode", "none"])?;
        self.ip(&["link", "set", TAP, "up"])
    }

    /// Runs `ip` with these words in the namespace.
    pub fn ip(&self, words: &[&str]) -> Result<()> {
        check(Command::new("ip").args(["-n", &self.name]).args(words)).map(drop)
    }

    /// Makes an empty one whose name no other process uses, and removes what killed processes left.
    pub fn empty() -> Result<Self> {
        remove_stale();
        let name = format!(
            "lockstep-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        check(Command::new("ip").args(["netns", "add", &name]))?;
        // From here on, Drop removes it.
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Adds a bridge, and brings it up.
    pub fn add_bridge(&self) -> Result<()> {
        // No spanning tree: a port forwards as soon as it is up.
        let kind = ["type", "bridge", "forward_delay", "0", "mcast_snooping", "0"];
        self.ip(&[&["link", "add", BRIDGE][..], &kind].concat())?;
        self.ip(&["link", "set", BRIDGE, "addrgenmode", "none"])?;
        self.ip(&["link", "set", BRIDGE, "up"])
    }

    /// A cable from `device` in this namespace to the bridge of `switch`, where its port is named for `name`.
    pub(crate) fn plug(&self, device: &str, switch: &Self, name: &str) -> Result<()> {
        let port = format!("to-{name}");
        let cable = ["link", "add", &port, "type", "veth", "peer", "name", device];
        switch.ip(&[&cable[..], &["netns", &self.name]].concat())?;
        for (end, device) in [(switch, port.as_str()), (self, device)] {
            end.ip(&["link", "set", device, "addrgenmode", "none"])?;
            end.ip(&["link", "set", device, "up"])?;
        }
        switch.ip(&["link", "set", &port, "master", BRIDGE])
    }

    /// A command that runs in the namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = bound("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

/// Runs `work` in the namespace with this name, in a thread of its own.
pub fn inside<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(name)?;
            work()
        });
        match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("what ran in {name} panicked"),
        }
    })
}

/// Moves the calling thread, and only it, into the namespace with this name.
pub(crate) fn enter(name: &str) -> Result<()> {
    let path = Path::new("/run/netns").join(name);
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(move_into_link_name_space(
        file.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}

fn delete(name: &str) {
    if let Err(error) = check(Command::new("ip").args(["netns", "del", name])) {
        eprintln!("network namespace {name} stays: {error:#}");
    }
}

fn remove_stale() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for name in entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
    {
        let owner = name
            .strip_prefix("lockstep-")
            .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            delete(&name);
        }
    }
}
