//! The sandbox of a machine that is run: whether there is one, and which files its command line is about.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::args::DeviceArgs;
use super::boot::BootArgs;
use super::pair::PairArgs;
use super::serve::ApiArgs;
use super::sockets;
use crate::api;
use crate::arbiter::{Kept, Spec};
use crate::host::size::{marked_as, seen_directory};
use crate::sandbox::{self, Entered, Needs, Paths, SandboxError};
use crate::start::Kernel;

/// Whether there is a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sandbox {
    /// System calls are filtered, paths are restricted, privileges are given up.
    On,
    /// The process may do what its user may.
    Off,
}

/// Whether there is a sandbox.
#[derive(Args, Clone, Debug)]
pub struct SandboxArgs {
    /// Whether the process filters its system calls, restricts its paths, and gives up its privileges [default: on, but off
    /// in a debug build].
    #[arg(long, value_name = "ON|OFF", value_enum)]
    pub sandbox: Option<Sandbox>,
}

impl SandboxArgs {
    /// Enters it, where there is one. Before the first thread.
    pub fn enter(&self, needs: impl FnOnce() -> Needs) -> Result<Option<Entered>, SandboxError> {
        let default = if cfg!(debug_assertions) {
            Sandbox::Off
        } else {
            Sandbox::On
        };
        match self.sandbox.unwrap_or(default) {
            Sandbox::On => sandbox::enter(&needs()).map(Some),
            Sandbox::Off => Ok(None),
        }
    }
}

/// Tells what is in force.
pub fn tell(entered: Result<Option<Entered>, SandboxError>) -> Result<()> {
    match entered? {
        None => tracing::warn!("there is no sandbox (--sandbox off): the process may do whatever its user may"),
        Some(Entered { paths }) => match paths {
            Paths::Open(why) => tracing::warn!(
                "the sandbox is on, but paths are not restricted: {why}. The user's permissions are all that protects files"
            ),
            Paths::Restricted(version) => tracing::info!("the sandbox is on: seccomp, Landlock version {version}"),
            Paths::Kept => tracing::info!("the sandbox is on, as before this process was started over"),
        },
    }
    if sandbox::is_root() {
        tracing::warn!(
            "this process is root's: files of root are protected by the sandbox alone. Run it as another user"
        );
    }
    Ok(())
}

/// Finds out what a process works with.
#[derive(Default)]
pub struct Finder(Needs);

impl Finder {
    /// The configuration file: it is read again when the process is started over, then perhaps from another file of that
    /// name.
    pub fn config(&mut self, file: Option<&Path>) {
        self.0.read.extend(file.map(home));
    }

    /// What a machine is made from, and its devices.
    pub fn machine(&mut self, boot: &BootArgs, devices: &DeviceArgs) {
        let needs = &mut self.0;
        let kernel = boot.kernel.as_ref().and_then(Kernel::file);
        for file in [kernel, boot.initrd.as_deref(), boot.snapshot.as_deref()] {
            needs.read.extend(file.map(Path::to_owned));
        }
        for disk in &devices.disk {
            if disk.read_only {
                needs.read.push(disk.path.clone());
            } else {
                needs.write.push(disk.path.clone());
            }
            // Its marks lie beside it, or a block device's where they survive a reboot. What is not there can have none.
            if let Ok(marked) = marked_as(&disk.path) {
                let directory = parent(&marked);
                // Only what is there can be allowed. Who uses it tells what is wrong.
                let _ = fs::create_dir_all(&directory);
                needs.make.push(directory);
            }
        }
        needs.devices.push("/dev/kvm".into());
        if !devices.net.is_empty() {
            needs.devices.push("/dev/net/tun".into());
            needs.taps = true;
        }
    }

    /// What is recorded or saved.
    pub fn files(&mut self, record: Option<&Path>, save: Option<&Path>) {
        if let Some(directory) = record {
            // An empty one is as good as none, and only what is there can be allowed. Who uses it tells what is wrong.
            let _ = fs::create_dir_all(directory);
            self.0.make.push(directory.into());
        }
        self.0.make.extend(save.map(parent));
    }

    /// What the end of a pair works with.
    pub fn pair(&mut self, pair: &PairArgs, api: &ApiArgs) {
        let needs = &mut self.0;
        needs.read.push(pair.pki.clone());
        for file in [
            &pair.arbiter_ca,
            &pair.arbiter_cert,
            &pair.arbiter_key,
            &pair.arbiter_password_file,
        ] {
            // Renewed ones take their places.
            needs.read.extend(file.as_deref().map(home));
        }
        match &pair.arbiter {
            Spec::File(directory) => needs.make.push(directory.clone()),
            Spec::Etcd(members) => {
                needs.read.extend(NAMES.iter().map(PathBuf::from));
                needs.connect.extend(members.iter().map(crate::arbiter::Endpoint::port));
                needs.connect.push(DNS_PORT);
            }
        }
        let seen = Kept::directory(&seen_directory(), &pair.name);
        // Who keeps something there tells what is wrong.
        let _ = fs::create_dir_all(&seen);
        needs.make.push(seen);
        let socket = api.api.clone().unwrap_or_else(|| sockets::of(&pair.name));
        // Who serves it tells what is wrong.
        let _ = api::make_directory(&socket);
        needs.make.push(parent(&socket));
        let reports = pair.reports.clone().unwrap_or_else(|| sockets::reports_of(&pair.name));
        needs
            .make
            .extend(reports.ancestors().find(|path| path.is_dir()).map(Path::to_owned));
        needs.listen.extend(api.metrics.map(|address| address.port()));
        needs.execute.extend(std::env::current_exe());
        needs.execute.push("/proc/self/exe".into());
        let notified = std::env::var_os("NOTIFY_SOCKET").unwrap_or_default();
        needs.abstract_sockets = notified.to_string_lossy().starts_with('@');
    }

    /// All of it.
    pub fn found(self) -> Needs {
        self.0
    }
}

/// How the arbiter's name is looked up: files of `/etc` are replaced, and some lead elsewhere.
const NAMES: [&str; 5] = [
    "/etc",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
    "/run/nscd",
];
/// Of name servers, for answers that are too long for a datagram.
const DNS_PORT: u16 = 53;

/// The directory that a file lies in.
fn parent(file: &Path) -> PathBuf {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    directory.unwrap_or(Path::new(".")).into()
}

/// The same for a file that is read, unless that would be all files.
fn home(file: &Path) -> PathBuf {
    let directory = parent(file);
    if directory == Path::new("/") {
        file.into()
    } else {
        directory
    }
}
