//! What stops a machine.

use lockstep_proto::quantity::StopNumber;
use thiserror::Error;

use crate::cpu::assist::AssistError;
use crate::cpu::{StateError, VmError};
use crate::devices::DeviceError;
use crate::memory::MemoryError;

/// Why a machine cannot go on. Nothing that was acknowledged is lost by any of these.
#[derive(Debug, Error)]
pub enum MachineError {
    /// No VM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// vCPU state.
    #[error(transparent)]
    State(#[from] StateError),
    /// A device refused an input that cannot be.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// An instruction that neither KVM nor we can execute.
    #[error(transparent)]
    Assist(#[from] AssistError),
    /// A host call failed.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Its error.
        cause: std::io::Error,
    },
    /// The CPU profile's name is unknown.
    #[error("CPU profile `{0}` is not one of this program's: use the program version that made it")]
    Profile(String),
    /// The CPU profile is for other hosts.
    #[error("CPU profile `{0}` is for hosts of another CPU vendor: replay on a host like the one that recorded")]
    ForeignProfile(String),
    /// An exit that the design does not know.
    #[error(
        "KVM exit {reason} (detail {detail:#x}) after stop {stop}, RIP {rip:#x}: unknown to this program; please report it"
    )]
    UnknownExit {
        /// The exit reason.
        reason: u32,
        /// A detail of it.
        detail: u64,
        /// The last natural stop.
        stop: StopNumber,
        /// Where the guest stood.
        rip: u64,
    },
    /// An IN on a trap port that no rewritten instruction made.
    #[error(
        "IN from reserved port {port:#x} at stop {stop}, RIP {rip:#x} (bytes {bytes:02x?}): \
         the guest uses a port that Lockstep keeps for itself"
    )]
    TrapPort {
        /// The port.
        port: u16,
        /// The stop.
        stop: StopNumber,
        /// Where.
        rip: u64,
        /// The instruction's first bytes.
        bytes: [u8; 2],
    },
    /// The guest's kernel writes something into CR4 that this KVM does not take.
    #[error("the guest writes {value:#x} into CR4 at stop {stop}, RIP {rip:#x}, and KVM does not take it: {cause}")]
    Cr4 {
        /// The value.
        value: u64,
        /// The stop.
        stop: StopNumber,
        /// Where.
        rip: u64,
        /// KVM's answer.
        cause: std::io::Error,
    },
    /// The guest's kernel finishes a module, and its stack cannot be written.
    #[error(
        "the guest finishes a kernel module at stop {stop}, RIP {rip:#x}, and its stack at {stack:#x} cannot be written: {why}"
    )]
    ModuleStack {
        /// The stop.
        stop: StopNumber,
        /// Where.
        rip: u64,
        /// Where the PUSH writes.
        stack: u64,
        /// Why not.
        why: String,
    },
    /// A turn from outside does not fit the stop.
    #[error("the turn at stop {stop} does not fit the machine: {what}; the log is damaged or of another machine")]
    Turn {
        /// The stop.
        stop: StopNumber,
        /// What is wrong.
        what: &'static str,
    },
}
