//! Stops: where the vCPU has returned to us.

use std::fmt;

use lockstep_proto::quantity::StopNumber;

use crate::loader::trap::Trapped;

/// What stopped the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopKind {
    /// Port I/O.
    Port {
        /// The port.
        port: u16,
        /// OUT.
        write: bool,
    },
    /// An access to an address without memory.
    Mmio {
        /// Guest physical address.
        addr: u64,
        /// A store.
        write: bool,
    },
    /// An MSR that KVM does not keep.
    Msr {
        /// Its number.
        index: u32,
        /// WRMSR.
        write: bool,
    },
    /// A rewritten instruction.
    Trap(Trapped),
    /// HLT.
    Halt,
    /// Triple fault.
    Shutdown,
    /// Stopped by force: not numbered.
    Forced,
}

/// A stop, as an oracle sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Number of this natural stop; at a forced stop, of the natural stop before it.
    pub number: StopNumber,
    /// What stopped the vCPU.
    pub kind: StopKind,
    /// The machine's answer depends on guest time: sample the clock.
    pub wants_time: bool,
    /// The machine needs a random value.
    pub wants_random: bool,
    /// The guest waits in HLT: nothing happens until an interrupt.
    pub halted: bool,
}

impl fmt::Display for StopKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = |write: bool| if write { "write" } else { "read" };
        match *self {
            Self::Port { port, write } => write!(f, "port {port:#x} {}", way(write)),
            Self::Mmio { addr, write } => write!(f, "mmio {addr:#x} {}", way(write)),
            Self::Msr { index, write } => write!(f, "msr {index:#x} {}", way(write)),
            Self::Trap(trapped) => write!(f, "trap {trapped:?}"),
            Self::Halt => write!(f, "halt"),
            Self::Shutdown => write!(f, "shutdown"),
            Self::Forced => write!(f, "forced"),
        }
    }
}
