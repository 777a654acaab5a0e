//! Taking a turn: the fixed order in which a machine takes what enters and gives what comes out.

use lockstep_proto::Turn;
use lockstep_proto::end::Reason;

use super::body::{Body, Cause};
use super::{EpochReport, Machine, MachineError, Oracle, Seen, Stop, StopKind};
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

/// Takes `turn` at `stop`: the clock, the access that `cause` is of, inputs, chain, epoch and injection, in this order.
pub(super) fn take<M: Body, O: Oracle>(
    machine: &mut M,
    stop: &Stop,
    cause: Option<Cause>,
    turn: &Turn,
    oracle: &mut O,
) -> Result<Taken, O::Error> {
    let mut taken = Taken::default();
    if let Some(step) = turn.clock {
        if step > MAX_CLOCK_STEP {
            return Err(bad_turn(machine, "its clock step is longer than a year").into());
        }
        let state = machine.state();
        *state.now = state.now.plus_ns(step);
        state.devices.advance(state.now.ns());
    }
    if let Some(cause) = cause {
        machine.complete(stop, cause, turn, &mut taken.effects)?;
    }
    take_inputs(machine, turn, oracle, &mut taken.effects)?;
    let regs = *machine.regs();
    let state = machine.state();
    state.last_words.hear(&taken.effects);
    state.chain.extend(*state.stop, *state.now, &regs, turn, &taken.effects);
    if turn.epoch.is_some() {
        if stop.kind == StopKind::Forced {
            return Err(bad_turn(machine, "an epoch cannot end at a forced stop").into());
        }
        taken.epoch = Some(machine.end_epoch()?);
    }
    taken.ended = ended(machine, stop, &taken.effects);
    if taken.ended.is_none() {
        taken.interrupt = inject(machine, stop)?;
    }
    Ok(taken)
}

fn take_inputs<M: Body, O: Oracle>(
    machine: &mut M,
    turn: &Turn,
    oracle: &mut O,
    effects: &mut Vec<Effect>,
) -> Result<(), O::Error> {
    let refuse = |error| MachineError::from(error);
    let statuses = turn.disks.iter().map(|done| u8::try_from(done.status));
    let statuses = statuses.collect::<Result<Vec<_>, _>>();
    let statuses = statuses.map_err(|_| bad_turn(machine, "a disk status is above 255"))?;
    let state = machine.state();
    let ram = state.memory.ram();
    if !turn.console.is_empty() {
        state.devices.console_input(&turn.console).map_err(refuse)?;
    }
    if !turn.keyboard.is_empty() {
        state.devices.keyboard_input(&turn.keyboard).map_err(refuse)?;
    }
    if turn.power_button {
        state.devices.press_power_button().map_err(refuse)?;
    }
    for frame in &turn.frames {
        state.devices.frame_input(frame.nic, &frame.data, ram).map_err(refuse)?;
    }
    for (done, status) in turn.disks.iter().zip(statuses) {
        let data = oracle.disk_data(done.disk, done.request)?;
        // The recorder's read failed and this replica's did not: the guest is told of a failure.
        let data = data.filter(|_| status == STATUS_OK);
        state
            .devices
            .disk_completion(done.disk, done.request, status, data.as_deref(), ram, effects)
            .map_err(refuse)?;
    }
    for bytes in &turn.entropy {
        state.devices.entropy_input(bytes, ram, effects).map_err(refuse)?;
    }
    Ok(())
}

fn ended(machine: &impl Seen, stop: &Stop, effects: &[Effect]) -> Option<Reason> {
    let ends = |effect: &Effect| match effect {
        Effect::Reset => Some(Reason::Reset),
        Effect::PowerOff => Some(Reason::PoweredOff),
        _ => None,
    };
    if let Some(reason) = effects.iter().find_map(ends) {
        return Some(reason);
    }
    if stop.kind == StopKind::Shutdown {
        return Some(Reason::Reset);
    }
    (machine.is_halted() && machine.regs().rflags & INTERRUPT_FLAG == 0).then_some(Reason::Halted)
}

/// Injects the interrupt that the 8259A asserts, if the vCPU can take one here. At a natural stop KVM's readiness is
/// exact. A forced stop is made only where KVM was ready; a replica that was carried there must not ask again.
fn inject<M: Body>(machine: &mut M, stop: &Stop) -> Result<Option<u8>, MachineError> {
    let ready = stop.kind == StopKind::Forced || machine.is_ready();
    if !machine.interrupt_waits() || !ready {
        return Ok(None);
    }
    let vector = machine.state().devices.acknowledge();
    machine.interrupt(vector)?;
    let state = machine.state();
    state.counters.interrupts += 1;
    *state.halted = false;
    Ok(Some(vector))
}

/// The machine refuses the turn.
pub(super) fn bad_turn(machine: &impl Seen, what: &'static str) -> MachineError {
    MachineError::Turn {
        stop: machine.stop(),
        what,
    }
}

impl Machine {
    pub(super) fn bad_turn(&self, what: &'static str) -> MachineError {
        bad_turn(self, what)
    }
}
