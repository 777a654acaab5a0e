//! Taking a turn: the fixed order in which a machine takes what enters and gives what comes out.

use lockstep_proto::Turn;
use lockstep_proto::end::Reason;

use super::run::Cause;
use super::{EpochReport, Machine, MachineError, Oracle, Stop, StopKind};
use crate::devices::{Effect, STATUS_OK};

/// RFLAGS.IF.
const INTERRUPT_FLAG: u64 = 1 << 9;
/// Longest step of guest time in one turn, in nanoseconds: a year. More is a damaged log.
const MAX_CLOCK_STEP: u64 = 366 * 24 * 3600 * 1_000_000_000;

/// What taking a turn gave.
#[derive(Debug, Default)]
pub struct Taken {
    /// What the machine gives the outside world.
    pub effects: Vec<Effect>,
    /// The epoch that ended here, if the turn ended one.
    pub epoch: Option<EpochReport>,
    /// The interrupt vector injected here.
    pub interrupt: Option<u8>,
    /// The guest has ended here.
    pub ended: Option<Reason>,
}

impl Machine {
    pub(super) fn take<O: Oracle>(
        &mut self,
        stop: &Stop,
        cause: Option<Cause>,
        turn: &Turn,
        oracle: &mut O,
    ) -> Result<Taken, O::Error> {
        let mut taken = Taken::default();
        if let Some(step) = turn.clock {
            if step > MAX_CLOCK_STEP {
                return Err(self.bad_turn("its clock step is longer than a year").into());
            }
            self.now = self.now.saturating_add(step);
            self.devices.advance(self.now);
        }
        let is_natural = cause.is_some();
        match cause {
            Some(Cause::Exit(exit)) => self.access(stop, exit, turn, &mut taken.effects)?,
            Some(Cause::Declined(trapped, length)) => self.declined(trapped, length, turn)?,
            None => {}
        }
        if is_natural {
            self.look_after_programs()?;
        }
        self.take_inputs(turn, oracle, &mut taken.effects)?;
        self.chain.extend(self.stop, self.now, &self.regs, turn, &taken.effects);
        if turn.epoch.is_some() {
            if stop.kind == StopKind::Forced {
                return Err(self.bad_turn("an epoch cannot end at a forced stop").into());
            }
            taken.epoch = Some(self.end_epoch()?);
        }
        taken.ended = self.ended(stop, &taken.effects);
        if taken.ended.is_none() {
            taken.interrupt = self.inject(stop)?;
        }
        Ok(taken)
    }

    fn take_inputs<O: Oracle>(
        &mut self,
        turn: &Turn,
        oracle: &mut O,
        effects: &mut Vec<Effect>,
    ) -> Result<(), O::Error> {
        let ram = self.memory.ram();
        if !turn.console.is_empty() {
            self.devices.console_input(&turn.console).map_err(MachineError::from)?;
        }
        if !turn.keyboard.is_empty() {
            self.devices
                .keyboard_input(&turn.keyboard)
                .map_err(MachineError::from)?;
        }
        for frame in &turn.frames {
            self.devices
                .frame_input(frame.nic, &frame.data, ram)
                .map_err(MachineError::from)?;
        }
        for done in &turn.disks {
            let status = u8::try_from(done.status).map_err(|_| self.bad_turn("a disk status is above 255"))?;
            let data = oracle.disk_data(done.disk, done.request)?;
            // The recorder's read failed and this replica's did not: the guest is told of a failure.
            let data = data.filter(|_| status == STATUS_OK);
            self.devices
                .disk_completion(
                    done.disk,
                    done.request,
                    status,
                    data.as_deref(),
                    self.memory.ram(),
                    effects,
                )
                .map_err(MachineError::from)?;
        }
        for bytes in &turn.entropy {
            self.devices
                .entropy_input(bytes, self.memory.ram(), effects)
                .map_err(MachineError::from)?;
        }
        Ok(())
    }

    fn ended(&self, stop: &Stop, effects: &[Effect]) -> Option<Reason> {
        if effects.iter().any(|effect| matches!(effect, Effect::Reset)) || stop.kind == StopKind::Shutdown {
            return Some(Reason::Reset);
        }
        (self.halted && self.regs.rflags & INTERRUPT_FLAG == 0).then_some(Reason::Halted)
    }

    /// Injects the interrupt that the 8259A asserts, if the vCPU can take one here. At a natural stop KVM's readiness is
    /// exact. A forced stop is made only where KVM was ready; a replica that was carried there must not ask again.
    fn inject(&mut self, stop: &Stop) -> Result<Option<u8>, MachineError> {
        let ready = stop.kind == StopKind::Forced || self.vm.vcpu.ready_for_interrupt();
        if !self.devices.interrupt_pending() || !ready {
            return Ok(None);
        }
        let vector = self.devices.acknowledge();
        self.vm.vcpu.interrupt(vector).map_err(|cause| MachineError::Io {
            what: "KVM_INTERRUPT",
            cause,
        })?;
        self.counters.interrupts += 1;
        self.halted = false;
        Ok(Some(vector))
    }

    pub(super) fn bad_turn(&self, what: &'static str) -> MachineError {
        MachineError::Turn { stop: self.stop, what }
    }
}
