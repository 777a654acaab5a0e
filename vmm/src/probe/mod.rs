//! The probe: what this host's KVM does, found out by experiments with micro-guests, and the strategies that follow.
//!
//! The program never asks which host it is on; it asks how the host behaves. Each experiment stands in a file of its
//! own with what it decides; any outcome is a result. [`mod@bench`] runs [micro-guests](crate::micro) under a time
//! limit, [`signals`] is what they say there, [`essentials`] is the part that every start needs, [`findings`] makes all
//! of them, [`strategy`] draws the conclusions, `facts` and `report` word them.
//!
//! Experiments run on a thread of their own, so that their kicks do not meet those of a machine on the caller's.

pub mod bench;
pub mod capabilities;
pub mod completion;
pub mod cpuid;
pub mod debugging;
pub mod emulator;
pub mod engine;
pub mod essentials;
mod facts;
pub mod findings;
pub mod interrupts;
pub mod msrs;
mod offers;
pub mod paging;
mod report;
mod rows;
pub mod sensitive;
pub mod signals;
pub mod states;
pub mod strategy;
pub mod syscall;
#[cfg(test)]
mod tests;
pub mod timing;
pub mod transfer;

use std::thread;

use thiserror::Error;

use crate::cpu::{StateError, VmError};
use crate::micro::GuestError;
use bench::Lab;

pub use essentials::Essentials;
pub use findings::Findings;
pub use report::Report;
pub use rows::Fact;
pub use strategy::Strategies;

/// Why the probe could not be made.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// No VM could be had.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The vCPU's state could not be moved.
    #[error(transparent)]
    State(#[from] StateError),
    /// A micro-guest is wrong.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// Kicks could not be prepared.
    #[error("cannot prepare the timer that ends experiments: {0}")]
    Kicks(std::io::Error),
    /// KVM_RUN failed.
    #[error("KVM_RUN failed: {0}")]
    Run(std::io::Error),
    /// The thread of the experiments could not be had, or failed.
    #[error("the thread that makes the experiments {0}")]
    Thread(String),
}

/// What a start needs to know of its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// See [`host_class`].
    pub class: String,
    /// What kind of host this is, for people.
    pub kind: String,
    /// How this host is used.
    pub strategies: Strategies,
}

/// Makes all experiments. Takes seconds.
pub fn run() -> Result<Report, ProbeError> {
    in_own_thread(report::survey)
}

/// What a start needs: the class of this host and the strategies. Takes some tens of milliseconds.
pub fn at_start() -> Result<Start, ProbeError> {
    let found = in_own_thread(essentials::survey)?;
    Ok(Start {
        class: found.class(),
        kind: found.kind(),
        strategies: Strategies::from_findings(&found),
    })
}

/// What is compared between the two hosts of a pair, and between a recording's host and a replaying one: a short text,
/// the same at every start on the same host.
pub fn host_class() -> Result<String, ProbeError> {
    Ok(at_start()?.class)
}

fn in_own_thread<T: Send>(work: impl FnOnce(&Lab) -> Result<T, ProbeError> + Send) -> Result<T, ProbeError> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("probe".into())
            .spawn_scoped(scope, || work(&Lab::for_this_thread()?))
            .map_err(|error| ProbeError::Thread(format!("could not be started: {error}")))?
            .join()
            .unwrap_or_else(|_| Err(ProbeError::Thread("panicked".into())))
    })
}
