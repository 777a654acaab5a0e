//! What stops a recording.

use lockstep_vmm::machine::MachineError;
use thiserror::Error;

/// What stops a recording.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The link's thread is gone: nothing can leave the machine any more.
    #[error("the link to the backup has failed; see the messages before this one")]
    Link,
    /// The recorder made a turn that the log's limits forbid.
    #[error("the log refuses a turn: {0}")]
    Refused(#[from] lockstep_logcodec::Violation),
    /// The host failed.
    #[error("{what}: {cause}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Its error.
        cause: std::io::Error,
    },
}
