//! What a process that runs a machine may still do: system calls (seccomp), files (Landlock), privileges.
//!
//! A guest that breaks out of KVM, a peer or a client that breaks the program, gets what is left here and no more:
//! docs/threat-model.md says what that is.
//!
//! Invariants:
//! - [`enter`] comes before the process' other threads: Landlock binds only the thread that calls and those made by it.
//! - A thread gets its kind's filter when it begins; filters only ever take away. So threads are made by [`spawn`], on a
//!   thread that has the base filter alone: a tight thread's children would be as tight.
//! - A filter outlives execve(2): the process is replaced only from a thread with the base filter alone ([`aside`]), and
//!   the new program finds by [`MARK`] that its filter is in force already. Each start over would else add one, and Landlock
//!   takes sixteen.
//! - A call that is not allowed ends the process by SIGSYS; no thread goes on without its filter.

mod calls;
mod filter;
mod landlock;
mod privileges;
mod threads;

use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;

use thiserror::Error;

pub use filter::Kind;
pub use privileges::is_root;
pub use threads::{aside, confine, spawn};

/// Names the variable by which a process tells the one that replaces it which filter it has.
pub const MARK: &str = "LOCKSTEP_SANDBOXED";

/// How a mark ends where Landlock restricts paths, and where it does not.
const RESTRICTED: &str = "restricted";
const OPEN: &str = "open";

/// What Landlock does in this process.
static PATHS: OnceLock<Paths> = OnceLock::new();

/// What the process works with.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Files and directories that are read.
    pub read: Vec<PathBuf>,
    /// Files that are written in place.
    pub write: Vec<PathBuf>,
    /// Directories in which files are made, replaced and removed.
    pub make: Vec<PathBuf>,
    /// Devices.
    pub devices: Vec<PathBuf>,
    /// Programs that may be executed.
    pub execute: Vec<PathBuf>,
    /// TCP ports that are connected to.
    pub connect: Vec<u16>,
    /// TCP ports that are listened at.
    pub listen: Vec<u16>,
    /// An abstract unix socket is talked to: the service manager's, say.
    pub abstract_sockets: bool,
    /// Tap devices are opened, which may be another user's.
    pub taps: bool,
}

/// What is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entered {
    /// What Landlock does here.
    pub paths: Paths,
}

/// What Landlock does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Paths {
    /// Nothing: the reason.
    Open(String),
    /// It restricts paths as this version of its interface can.
    Restricted(i32),
    /// It did so before the process was replaced.
    Kept,
}

/// Why there is no sandbox.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The filter could not be made.
    #[error("the filter of system calls for the {0} threads cannot be made: {1}")]
    Filter(&'static str, String),
    /// The kernel did not take it.
    #[error("the kernel does not take the filter of system calls: {0}")]
    Refused(String),
    /// Landlock is there, and does not do what it says.
    #[error("the paths cannot be restricted (Landlock): {0}")]
    Landlock(String),
    /// Privileges could not be given up.
    #[error("privileges cannot be given up: {0}")]
    Privileges(io::Error),
    /// The thread that makes threads could not be had.
    #[error("the thread that starts the others cannot be had: {0}")]
    Thread(io::Error),
}

/// Restricts this process to what it needs. Before its other threads.
pub fn enter(needs: &Needs) -> Result<Entered, SandboxError> {
    filter::compile()?;
    privileges::keep_only(needs.taps).map_err(SandboxError::Privileges)?;
    let paths = if let Some(paths) = kept() {
        paths
    } else {
        let paths = landlock::restrict(needs)?;
        filter::enter_base()?;
        paths
    };
    let _ = PATHS.set(paths.clone());
    threads::start()?;
    Ok(Entered { paths })
}

/// What [`MARK`] is to be for the program that takes this process' place. On the thread that calls execve(2).
pub fn mark() -> Option<String> {
    let paths = PATHS.get()?;
    let word = if matches!(paths, Paths::Open(_)) {
        OPEN
    } else {
        RESTRICTED
    };
    Some(format!("{}-{word}", filter::mark()?))
}

/// What is in force already, from the program whose place this one has taken. The kernel's word counts: a mark alone
/// switches nothing off.
fn kept() -> Option<Paths> {
    let told = std::env::var(MARK).ok()?;
    let (filter, word) = told.rsplit_once('-')?;
    if filter::mark()? != filter {
        return None;
    }
    match word {
        OPEN => Some(Paths::Open("as before this process was started over".into())),
        RESTRICTED if landlock::is_in_force() => Some(Paths::Kept),
        _ => None,
    }
}
