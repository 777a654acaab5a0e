//! Stops inside a slice, for a debugger: single steps and hardware breakpoints.
//!
//! None of this is numbered or logged, and nobody but the debugger may ask for it. What KVM keeps for a step (the trap
//! flag) is taken away before an exit is completed, so that it is in no state that anybody reads.

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug, kvm_regs, kvm_sregs,
};

use super::{Machine, MachineError};

/// Breakpoints that a CPU has.
pub const BREAKPOINTS: usize = 4;

/// Where the vCPU is to stop inside a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// After every instruction.
    pub step: bool,
    /// Before the instructions at these addresses, at most [`BREAKPOINTS`].
    pub breakpoints: Vec<u64>,
}

impl Trace {
    fn is_off(&self) -> bool {
        !self.step && self.breakpoints.is_empty()
    }
}

impl Machine {
    /// Says where the vCPU is to stop inside slices, from its next entry on. [`Machine::step`] then returns
    /// [`super::Flow::End`] there, and the next one goes on in the same slice.
    pub fn trace(&mut self, trace: Trace) {
        self.trace = trace;
    }

    /// Whether the machine stands inside a slice.
    pub fn is_in_slice(&self) -> bool {
        self.in_slice
    }

    /// The instruction pointer wherever the machine stands.
    pub fn present_rip(&mut self) -> Result<u64, MachineError> {
        Ok(self.read_regs()?.rip)
    }

    /// General and special registers wherever the machine stands.
    pub fn present_registers(&mut self) -> Result<(kvm_regs, kvm_sregs), MachineError> {
        let io = |what: &'static str| move |cause: std::io::Error| MachineError::Io { what, cause };
        let shared = self.vm.vcpu.shared_registers().map_err(io("KVM_RUN"))?;
        if let Some(registers) = shared {
            return Ok((registers.regs, registers.sregs));
        }
        let fd = self.vm.vcpu.fd();
        Ok((
            fd.get_regs().map_err(|error| io("KVM_GET_REGS")(error.into()))?,
            fd.get_sregs().map_err(|error| io("KVM_GET_SREGS")(error.into()))?,
        ))
    }

    pub(super) fn is_traced(&self) -> bool {
        !self.armed.is_off()
    }

    /// Before an entry.
    pub(super) fn arm(&mut self) -> Result<(), MachineError> {
        self.in_slice = false;
        if self.trace == self.armed {
            return Ok(());
        }
        self.set_guest_debug(&self.trace.clone())
    }

    /// After an exit that is to be completed: a step's trap flag must be in no state that is kept.
    pub(super) fn disarm_step(&mut self) -> Result<(), MachineError> {
        if self.armed.step {
            self.set_guest_debug(&Trace::default())?;
        }
        Ok(())
    }

    fn set_guest_debug(&mut self, trace: &Trace) -> Result<(), MachineError> {
        let mut debug = kvm_guest_debug::default();
        if !trace.is_off() {
            debug.control = KVM_GUESTDBG_ENABLE;
        }
        if trace.step {
            debug.control |= KVM_GUESTDBG_SINGLESTEP;
        }
        if !trace.breakpoints.is_empty() {
            debug.control |= KVM_GUESTDBG_USE_HW_BP;
            // The bit that is always one, and an enabled execution breakpoint of one byte each.
            debug.arch.debugreg[7] = 0x400;
            for (index, address) in trace.breakpoints.iter().take(BREAKPOINTS).enumerate() {
                debug.arch.debugreg[index] = *address;
                debug.arch.debugreg[7] |= 1 << (2 * index);
            }
        }
        // What waits for the next entry must not be overwritten by KVM's own idea of RFLAGS.
        self.vm.vcpu.settle().map_err(|cause| MachineError::Io {
            what: "KVM_SET_REGS",
            cause,
        })?;
        let set = self.vm.vcpu.fd().set_guest_debug(&debug);
        set.map_err(|cause| MachineError::Io {
            what: "KVM_SET_GUEST_DEBUG",
            cause: cause.into(),
        })?;
        self.armed = trace.clone();
        Ok(())
    }
}
