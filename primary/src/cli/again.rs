//! Starting over: a node that has lost its machine begins anew in the same process.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;

use super::leave::Leave;
use crate::host::console::restore_terminal;
use crate::host::inbox::Bell;
use crate::host::tap;
use crate::link::{Role, Status};
use crate::sandbox::{self, Kind};

/// The state that ends a machine for good: another node has the term.
pub(super) const LOST: &str = "frozen (lost-term)";

/// From one look at a machine that is to end to the next.
const LOOK: Duration = Duration::from_secs(1);

/// Replaces this process by a new one of the same program with the same arguments and the same number. All of the old
/// machine is gone then: its memory, its threads, its connections (without a goodbye) and its locks. Can be called on any
/// thread; a log or a recording that should be whole has to be closed before. Returns only if it fails.
///
/// The arbiter's record says what the new process is. Under `--role auto`, or as `lockstep-backup run`, it is a backup
/// when another node has the term by then.
pub fn start_over() -> anyhow::Error {
    restore_terminal();
    // What the program that takes this one's place may do is what the calling thread may.
    sandbox::aside("again", replace).unwrap_or_else(anyhow::Error::from)
}

fn replace() -> anyhow::Error {
    let mut failed = None;
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
        failed = Some(command.args(arguments).exec());
    }
    let cause = failed.map_or_else(String::new, |error| error.to_string());
    anyhow::anyhow!("this process could not be started over: {cause}. Start it by hand")
}

/// Waits for the end of a machine whose bell has been told to quit. False: it is stalled, and never ends.
pub(super) fn ends(status: &Status) -> bool {
    let vcpu = &status.pulses().vcpu;
    while !vcpu.wait_for_end(LOOK) {
        if status.get().stalled {
            // It may have ended just now.
            return vcpu.wait_for_end(LOOK);
        }
    }
    true
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
            let is_lost = |inner: &crate::link::StatusInner| inner.role == Role::Primary && inner.state == LOST;
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
