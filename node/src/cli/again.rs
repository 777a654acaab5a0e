//! Starting over: a node that has lost its machine, or whose guest has reset, begins anew in the same process.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;

use super::leave::{LOST, Leave, ends};
use crate::host::console::restore_terminal;
use crate::host::inbox::Bell;
use crate::host::tap;
use crate::out::queue;
use crate::restart::Restarts;
use crate::sandbox::{self, Kind};
use crate::status::{Role, Status};

/// Environment variable with the node's [`Restarts`], for the program that takes this one's place.
pub const RESTARTED: &str = "LOCKSTEP_RESTARTED";
/// Environment variable that is there where an operator has suspended the protection of the machine that it boots anew.
pub const SUSPENDED: &str = "LOCKSTEP_SUSPENDED";

/// Replaces this process by a new one of the same program with the same arguments and the same number. All of the old
/// machine is gone then: its memory, its threads, its connections (without a goodbye) and its locks. Can be called on any
/// thread; a log or a recording that should be whole has to be closed before. Returns only if it fails.
///
/// The arbiter's record says what the new process is. Under `--role auto`, or as `lockstep-backup run`, it is a backup
/// when another node has the term by then.
pub fn start_over() -> anyhow::Error {
    begin_anew(None)
}

/// As [`start_over`], to boot the machine whose guest has reset: with this one so often. What an operator has said of its
/// protection goes on to hold.
pub fn start_over_after_reset(restarts: &Restarts, suspended: bool) -> anyhow::Error {
    begin_anew(Some((restarts.to_string(), suspended)))
}

fn begin_anew(reset: Option<(String, bool)>) -> anyhow::Error {
    restore_terminal();
    queue::settle();
    // What the program that takes this one's place may do is what the calling thread may.
    sandbox::aside("again", move || replace(reset)).unwrap_or_else(anyhow::Error::from)
}

fn replace(reset: Option<(String, bool)>) -> anyhow::Error {
    let mut failed = None;
    let (restarts, suspended) = reset.map_or((None, false), |(restarts, suspended)| (Some(restarts), suspended));
    // The second one is this very file, also where another has taken its place.
    for program in [std::env::current_exe().ok(), Some(PathBuf::from("/proc/self/exe"))] {
        let mut arguments = std::env::args_os();
        let name = arguments.next();
        let Some(program) = program else { continue };
        let mut command = Command::new(program);
        if let Some(name) = name {
            command.arg0(name);
        }
        if let Some(mark) = sandbox::mark() {
            command.env(sandbox::MARK, mark);
        }
        command.env(tap::BRIDGED, tap::bridged());
        // A machine that the other node has is that one's to suspend.
        if suspended {
            command.env(SUSPENDED, "1");
        } else {
            command.env_remove(SUSPENDED);
        }
        // Otherwise the new one has what this one has.
        if let Some(restarts) = &restarts {
            command.env(RESTARTED, restarts);
        }
        failed = Some(command.args(arguments).exec());
    }
    let cause = failed.map_or_else(String::new, |error| error.to_string());
    anyhow::anyhow!("this process could not be started over: {cause}. Start it by hand")
}

/// Whether the term was lost, since [`Watch::start`].
#[derive(Clone, Default)]
pub struct Watch(Arc<AtomicBool>);

impl Watch {
    /// Ends the machine by `bell` once its node has lost the term. The process of a stalled one, whose thread does not hear the
    /// bell, starts over from here, unless it leaves.
    pub fn start(&self, status: &Status, bell: Bell, leave: &Leave) -> Result<()> {
        let (lost, status, leave) = (self.0.clone(), status.clone(), leave.clone());
        sandbox::spawn(Kind::Waits, "term", move || {
            let is_lost = |inner: &crate::status::StatusInner| inner.role == Role::Primary && inner.state == LOST;
            while !status.wait_for(is_lost, Duration::from_secs(3600)) {}
            lost.store(true, Ordering::Release);
            bell.quit();
            if !ends(&status) && !leave.is_asked() {
                tracing::warn!("the other node has the machine, which does not stop here: this one starts over");
                tracing::error!("{:#}", start_over());
            }
        })?;
        Ok(())
    }

    /// Whether that was why the machine ended.
    pub fn is_lost(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
