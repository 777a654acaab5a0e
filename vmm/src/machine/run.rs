//! The run loop, one for recording and replaying.

use lockstep_proto::Turn;

use super::access::classify;
use super::{Delta, Machine, MachineError, Stop, StopKind, Taken};
use crate::loader::trap::Trapped;
use crate::sys::vcpu::Exit;

/// How the vCPU came out of a slice.
enum Left {
    /// By a natural stop.
    Natural(Cause),
    /// By force.
    Forced,
    /// It has not left it: a debugger wanted a stop inside.
    Inside,
}

/// What ended a slice by a natural stop.
pub(super) enum Cause {
    /// An exit of KVM.
    Exit(Exit),
    /// An instruction that KVM declined and whose result comes from outside, and its length.
    Declined(Trapped, u8),
}

/// How the slice that begins now ends.
pub enum Slice {
    /// By whatever stops the vCPU.
    Run,
    /// The same; and as soon as an interrupt can enter, [`Oracle::is_due`] is asked.
    RunToWindow,
    /// By a delta, without running.
    Carry(Box<Delta>),
    /// Not at all: there is no more log.
    End,
}

/// Whether the machine goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It does.
    Continue,
    /// It ends here.
    End,
}

/// Where the outside world comes from: the world itself when recording, the log when replaying. The only difference
/// between the two.
pub trait Oracle {
    /// What an oracle fails with.
    type Error: From<MachineError>;

    /// How does the slice that begins now end?
    fn slice(&mut self, machine: &Machine) -> Result<Slice, Self::Error>;

    /// The vCPU was kicked, or the window that was asked for is open: is anything due that justifies a forced stop?
    fn is_due(&mut self, machine: &Machine) -> Result<bool, Self::Error>;

    /// A forced stop was made. A recorder takes its delta ([`Machine::take_delta`]) here. [`Oracle::turn`] follows.
    fn forced(&mut self, machine: &mut Machine) -> Result<(), Self::Error>;

    /// What enters at this stop. While the guest is halted this is asked again and again and should wait.
    fn turn(&mut self, machine: &Machine, stop: &Stop) -> Result<Turn, Self::Error>;

    /// The data that a disk read brought, from this replica's own image; waits until it is there.
    fn disk_data(&mut self, disk: u32, request: u64) -> Result<Option<Vec<u8>>, Self::Error>;

    /// The machine has taken the turn; these are the effects.
    fn taken(&mut self, machine: &Machine, stop: &Stop, turn: Turn, taken: Taken) -> Result<Flow, Self::Error>;
}

impl Machine {
    /// Runs until the oracle or the guest ends it.
    pub fn run<O: Oracle>(&mut self, oracle: &mut O) -> Result<(), O::Error> {
        while self.step(oracle)? == Flow::Continue {}
        Ok(())
    }

    /// One slice and all turns at the stop that ends it.
    pub fn step<O: Oracle>(&mut self, oracle: &mut O) -> Result<Flow, O::Error> {
        if self.halted {
            // Restored from a snapshot of a halted guest: its turns go on at the stop where it was saved.
            return self.take_turns(oracle, StopKind::Halt, None);
        }
        match oracle.slice(self)? {
            Slice::End => Ok(Flow::End),
            Slice::Carry(delta) => {
                self.apply_delta(&delta)?;
                self.counters.forced += 1;
                self.take_turns(oracle, StopKind::Forced, None)
            }
            slice @ (Slice::Run | Slice::RunToWindow) => {
                match self.run_slice(oracle, matches!(slice, Slice::RunToWindow))? {
                    Left::Natural(cause) => {
                        self.stop += 1;
                        let kind = match &cause {
                            Cause::Exit(exit) => classify(exit),
                            Cause::Declined(trapped, _) => StopKind::Trap(*trapped),
                        };
                        self.take_turns(oracle, kind, Some(cause))
                    }
                    Left::Forced => {
                        self.regs = self.read_regs()?;
                        self.counters.forced += 1;
                        oracle.forced(self)?;
                        self.take_turns(oracle, StopKind::Forced, None)
                    }
                    Left::Inside => {
                        self.in_slice = true;
                        Ok(Flow::End)
                    }
                }
            }
        }
    }

    fn take_turns<O: Oracle>(
        &mut self,
        oracle: &mut O,
        kind: StopKind,
        cause: Option<Cause>,
    ) -> Result<Flow, O::Error> {
        self.halted = kind == StopKind::Halt;
        let mut cause = cause;
        loop {
            let mut stop = self.describe(kind);
            if self.halted && cause.is_some() && !self.vm.vcpu.if_flag() {
                // No interrupt can wake it: the guest ends here, and the oracle must not wait for one.
                stop.halted = false;
            }
            let turn = oracle.turn(self, &stop)?;
            let taken = self.take(&stop, cause.take(), &turn, oracle)?;
            let ended = taken.ended;
            if oracle.taken(self, &stop, turn, taken)? == Flow::End || ended.is_some() {
                return Ok(Flow::End);
            }
            if !self.halted {
                return Ok(Flow::Continue);
            }
        }
    }

    /// Runs the guest to its next stop. `window`: or to where an interrupt can enter, if the oracle stops it there.
    fn run_slice<O: Oracle>(&mut self, oracle: &mut O, window: bool) -> Result<Left, O::Error> {
        self.arm()?;
        self.set_window(window);
        loop {
            let exit = self
                .vm
                .vcpu
                .enter(self.kicks.as_ref())
                .map_err(|cause| MachineError::Io { what: "KVM_RUN", cause })?;
            match exit {
                Exit::Interrupted | Exit::Window => {
                    let due = oracle.is_due(self)?;
                    if due && self.vm.vcpu.ready_for_interrupt() {
                        // Completing may end readiness (seen on kvm-pvm right after STI); a forced stop is made only
                        // where an interrupt can be injected, so that no replica need ask its KVM.
                        self.set_window(false);
                        self.complete_quietly()?;
                        if self.vm.vcpu.ready_for_interrupt() {
                            return Ok(Left::Forced);
                        }
                    }
                    self.set_window(due);
                }
                Exit::EmulationFailed => {
                    if let Some((trapped, length)) = self.assist()? {
                        self.disarm_step()?;
                        self.set_window(false);
                        return Ok(Left::Natural(Cause::Declined(trapped, length)));
                    }
                    if self.trace.step {
                        return Ok(Left::Inside);
                    }
                }
                Exit::Debug { .. } if self.is_traced() => return Ok(Left::Inside),
                Exit::Debug { rip, dr6 } => {
                    return Err(self.unknown_exit(kvm_bindings::KVM_EXIT_DEBUG, dr6, rip).into());
                }
                Exit::Other { reason, detail } => {
                    let rip = self.vm.vcpu.regs_at_exit().map_or(0, |regs| regs.rip);
                    return Err(self.unknown_exit(reason, detail, rip).into());
                }
                natural => {
                    self.disarm_step()?;
                    self.set_window(false);
                    return Ok(Left::Natural(Cause::Exit(natural)));
                }
            }
        }
    }

    fn unknown_exit(&self, reason: u32, detail: u64, rip: u64) -> MachineError {
        MachineError::UnknownExit {
            reason,
            detail,
            stop: self.stop,
            rip,
        }
    }

    fn set_window(&mut self, wanted: bool) {
        if self.window_requested != wanted {
            self.vm.vcpu.request_window(wanted);
            self.window_requested = wanted;
        }
    }
}
