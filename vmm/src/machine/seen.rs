//! What an oracle sees of a machine.

use kvm_bindings::kvm_regs;
use lockstep_proto::MachineConfig;
use lockstep_proto::quantity::{GuestTime, StopNumber};

use super::{Chain, Counters, Delta, Machine, MachineError};
use crate::devices::Devices;
use crate::memory::{Memory, MemoryDigest};

/// A machine as its oracle sees it: the one that KVM runs, or a scripted one ([`crate::scripted`]). An oracle looks, and takes
/// deltas; it changes nothing but by the turns that it gives.
///
/// Oracles take it as `dyn`: a stop costs microseconds and a call by table a nanosecond, and neither recorder nor replayer
/// need a type parameter.
pub trait Seen {
    /// What the machine is built from.
    fn config(&self) -> &MachineConfig;

    /// Guest memory.
    fn memory(&self) -> &Memory;

    /// The devices.
    fn devices(&self) -> &Devices;

    /// Guest time. In [`Oracle::turn`](super::Oracle::turn), before the turn's clock.
    fn now(&self) -> GuestTime;

    /// Number of the last natural stop. In [`Oracle::turn`](super::Oracle::turn) the one whose turn is asked for has it already.
    fn stop(&self) -> StopNumber;

    /// The digest chain after the last turn that was taken.
    fn chain(&self) -> Chain;

    /// General registers after the last completed stop. In [`Oracle::turn`](super::Oracle::turn) a natural stop is not completed.
    fn regs(&self) -> &kvm_regs;

    /// What happened so far.
    fn counters(&self) -> Counters;

    /// Whether the guest waits in HLT.
    fn is_halted(&self) -> bool;

    /// Whether the vCPU stands in the guest's user code: no natural stop need be near there.
    fn is_in_user_mode(&self) -> Result<bool, MachineError>;

    /// Takes the delta of the forced stop where the machine stands: only from [`Oracle::forced`](super::Oracle::forced), and once.
    /// What was written since the last collection is in it, and counts as collected.
    fn take_delta(&mut self) -> Result<Delta, MachineError>;

    /// When the next device timer is due that the guest would notice.
    fn deadline(&self) -> Option<GuestTime> {
        self.devices().deadline().map(GuestTime::from_ns)
    }

    /// Whether an interrupt waits for IF=1.
    fn interrupt_waits(&self) -> bool {
        self.devices().interrupt_pending()
    }

    /// Digest of all memory, computed afresh: it does not rest on dirty tracking.
    fn full_memory_digest(&self) -> [u8; 16] {
        MemoryDigest::of(self.memory()).total()
    }
}

impl Seen for Machine {
    fn config(&self) -> &MachineConfig {
        &self.config
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn devices(&self) -> &Devices {
        &self.devices
    }

    fn now(&self) -> GuestTime {
        self.now
    }

    fn stop(&self) -> StopNumber {
        self.stop
    }

    fn chain(&self) -> Chain {
        self.chain
    }

    fn regs(&self) -> &kvm_regs {
        &self.regs
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn is_halted(&self) -> bool {
        self.halted
    }

    fn is_in_user_mode(&self) -> Result<bool, MachineError> {
        let sregs = self.vm.vcpu.fd().get_sregs();
        let sregs = sregs.map_err(|cause| MachineError::Io {
            what: "KVM_GET_SREGS",
            cause: cause.into(),
        })?;
        Ok(sregs.ss.dpl == 3)
    }

    fn take_delta(&mut self) -> Result<Delta, MachineError> {
        self.carry_out()
    }
}
