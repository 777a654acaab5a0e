//! What the world outside can do wrong to the devices. (What the guest does wrong is never an error of ours.)

use lockstep_proto::program::newest_revision;

/// An input, a configuration or a saved state that cannot be. The machine's answer to it is to stop: a log that holds
/// such an input does not belong to this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The machine's configuration cannot be built.
    #[error("machine configuration: {0}")]
    Config(String),
    /// The machine's device model is none of this program's.
    #[error(
        "the machine has device model revision {wanted} and this program 1 to {}: use a program of the version that made it",
        newest_revision()
    )]
    Revision {
        /// The machine's.
        wanted: u32,
    },
    /// The machine has no keyboard.
    #[error("the machine has no keyboard")]
    NoKeyboard,
    /// The machine has no power button.
    #[error("the machine has no power button")]
    NoPowerButton,
    /// There is no such network interface.
    #[error("there is no network interface {0}")]
    UnknownNic(u32),
    /// There is no such disk.
    #[error("there is no disk {0}")]
    UnknownDisk(u32),
    /// A completion came for a disk request that is not outstanding.
    #[error("request {request} of disk {disk} is not outstanding")]
    NotOutstanding {
        /// The disk's index.
        disk: u32,
        /// The request's number on its disk.
        request: u64,
    },
    /// A completion's status is none of those in virtio 1.2, section 5.2.6.
    #[error("disk status {0} does not exist")]
    UnknownStatus(u8),
    /// Data came with a completion that carries none.
    #[error("a completion carries data that its request did not ask for")]
    UnexpectedData,
    /// Data of the wrong length came.
    #[error("{what}: {expected} bytes expected, {got} came")]
    WrongLength {
        /// What it was.
        what: &'static str,
        /// How many bytes, at most or exactly.
        expected: usize,
        /// How many bytes came.
        got: usize,
    },
    /// Entropy came that the guest did not ask for.
    #[error("no entropy request is outstanding")]
    NoEntropyRequest,
    /// A saved state is not one of this machine's.
    #[error("saved device state: {0}")]
    State(&'static str),
}
