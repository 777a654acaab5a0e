//! Threads with the filters of their kinds. Without a sandbox they are plain ones.

use std::io;
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{Sender, bounded, unbounded};

use super::filter::{self, Kind};
use super::{SandboxError, privileges};
use crate::tell;

type Job = Box<dyn FnOnce() + Send>;

/// Where the thread that starts the others gets its work; it has the base filter. Set where there is a sandbox.
static STARTER: OnceLock<Sender<Job>> = OnceLock::new();

/// Starts the thread that starts the others.
pub(super) fn start() -> Result<(), SandboxError> {
    let (jobs, work) = unbounded::<Job>();
    Builder::new()
        .name("threads".into())
        .spawn(move || work.into_iter().for_each(|job| job()))
        .map_err(SandboxError::Thread)?;
    // A second one would be the same.
    let _ = STARTER.set(jobs);
    Ok(())
}

/// Starts a thread for `work`, with the filter of `kind`.
pub fn spawn<T: Send + 'static>(
    kind: Kind,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let builder = Builder::new().name(name.into());
    let Some(starter) = STARTER.get() else {
        return builder.spawn(work);
    };
    let (tell, told) = bounded(1);
    let job = move || {
        let begun = builder.spawn(move || {
            if let Err(error) = confine(kind) {
                // Nothing runs that is not confined.
                tell!("lockstep: a {} thread is not confined: {error}", kind.name());
                crate::out::queue::settle();
                std::process::exit(1);
            }
            work()
        });
        // Who asked waits.
        let _ = tell.send(begun);
    };
    let gone = || io::Error::other("the thread that starts others has ended");
    starter.send(Box::new(job)).map_err(|_| gone())?;
    told.recv().map_err(|_| gone())?
}

/// Does what this thread may not, on one with the base filter, and waits for it.
pub fn aside<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    if STARTER.get().is_none() {
        return Ok(work());
    }
    spawn(Kind::Base, name, work)?
        .join()
        .map_err(|_| io::Error::other("it panicked"))
}

/// Puts the filter of `kind` around this thread from here on, and takes its capabilities. Nothing where there is no
/// sandbox.
pub fn confine(kind: Kind) -> Result<(), SandboxError> {
    if STARTER.get().is_none() || kind == Kind::Base {
        return Ok(());
    }
    privileges::give_up().map_err(SandboxError::Privileges)?;
    filter::enter(kind)
}
