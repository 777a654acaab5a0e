//! The run loop, one for recording and replaying, and one for every machine.

use lockstep_proto::Turn;

use super::body::{self, Body, Came, Cause};
use super::turn::take;
use super::{Delta, Machine, MachineError, Seen, Stop, StopKind, Taken};
use crate::sys::vcpu::Exit;

/// How the vCPU came out of a slice.
enum Left {
    /// By a natural stop.
    Natural(Cause),
    /// By force.
    Forced,
    /// It has not left it.
    Inside,
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
///
/// The run loop calls it in this order, and no other; an error of any call ends the step at once:
///
/// ```text
///          step
///            │  not halted                                    halted (restored, or the oracle let go of it there)
///            ▼                                                  │
///          slice ── End ──► the step is over, nothing has run   │
///            │  │                                               │
///            │  └── Carry ── the delta is applied ──────┐       │
///            │                                          │       │
///            │  Run, RunToWindow: the guest runs        │       │
///            ├──► is_due   at every kick and window;    │       │
///            │      │      any number of times          │       │
///            │      └ true, and an interrupt can enter  │       │
///            │          ▼                               │       │
///            │        forced ─────────────┐             │       │
///            │  a natural stop: numbered  │             │       │
///            └────────────┐               │             │       │
///                         ▼               ▼             ▼       │
///                  ┌──► turn ◄──────────────────────────────────┘
///                  │      │   clock, access, completion
///                  │      ├──► disk_data   for each completion in the turn, in its order
///                  │      │   inputs, chain, epoch, injection
///                  │      ▼
///                  │    taken ── End, or the guest has ended ──► the step is over
///                  │      │
///                  └──────┤  still halted
///                         ▼  else: the step is over
/// ```
pub trait Oracle {
    /// What an oracle fails with.
    type Error: From<MachineError>;

    /// How does the slice that begins now end?
    ///
    /// Called: once at the beginning of each step of a machine that is not halted; everything before is completed and taken.
    /// Duty: a replayer answers [`Slice::Run`] only when it knows that the slice ends by a natural stop, and [`Slice::Carry`]
    /// only with the delta that was taken after this very stop. May wait for the log.
    /// Next: nothing after [`Slice::End`]; [`Oracle::turn`] of a forced stop after [`Slice::Carry`]; else any call but this one.
    fn slice(&mut self, machine: &dyn Seen) -> Result<Slice, Self::Error>;

    /// The vCPU was kicked, or the window that was asked for is open: is anything due that justifies a forced stop?
    ///
    /// Called: in the middle of a slice, anywhere, as often as kicks come: where they do differs from run to run, and what this
    /// does must have no influence on the machine. Registers and memory are in motion: only the position is to be relied on.
    /// Duty: not to wait. A replayer says no, or gives the slice up by an error: its log would have had a delta.
    /// Next: [`Oracle::forced`] after a yes, if an interrupt can enter here; if not, the guest runs on and this is asked again
    /// as soon as one can. After a no, the guest runs on.
    fn is_due(&mut self, machine: &dyn Seen) -> Result<bool, Self::Error>;

    /// A forced stop was made.
    ///
    /// Called: after an [`Oracle::is_due`] that was true, and only by a slice that ran: a delta that is applied does not come
    /// by here. The machine stands where an interrupt can enter; the stop has no number of its own.
    /// Duty: a recorder takes its delta ([`Seen::take_delta`]) here, once and nowhere else; whoever records nothing may leave it.
    /// Next: [`Oracle::turn`].
    fn forced(&mut self, machine: &mut dyn Seen) -> Result<(), Self::Error>;

    /// What enters at this stop.
    ///
    /// Called: once for each stop; while the guest is halted, again after each turn that did not wake it. At a natural stop
    /// the number is the new one, and everything else as it was before: the access is not made yet, the exit not completed,
    /// the registers those of the stop before.
    /// Duty: a clock where [`Stop::wants_time`] and a value where [`Stop::wants_random`]; no epoch at a forced stop; no more
    /// than devices have room for. Where [`Stop::halted`], it should wait: the loop would spin. An oracle that logs says
    /// here what enters and logs it in [`Oracle::taken`], when the machine has not refused it.
    /// Next: [`Oracle::disk_data`] for each completion, then [`Oracle::taken`].
    fn turn(&mut self, machine: &dyn Seen, stop: &Stop) -> Result<Turn, Self::Error>;

    /// The data that a disk read brought, from this replica's own image; waits until it is there.
    ///
    /// Called: between [`Oracle::turn`] and [`Oracle::taken`], for each completion of the turn in its order; the requests were
    /// effects of turns before.
    /// Duty: the content as of the request's place among the disk's requests, on every replica.
    fn disk_data(&mut self, disk: u32, request: u64) -> Result<Option<Vec<u8>>, Self::Error>;

    /// The machine has taken the turn; these are the effects.
    ///
    /// Called: once after each [`Oracle::turn`] that the machine did not refuse. The stop is completed: position, chain and
    /// registers are those after it, an interrupt may have been injected and the guest be awake (`machine.is_halted()`, while
    /// `stop.halted` tells how it was).
    /// Duty: nothing of the effects may leave before the turn is on its way to whoever goes on with the machine.
    /// Next: the next step, or [`Oracle::turn`] of a guest that is still halted. [`Flow::End`] ends the step here: a halted guest
    /// has its next turn at the same stop, without a slice.
    fn taken(&mut self, machine: &dyn Seen, stop: &Stop, turn: Turn, taken: Taken) -> Result<Flow, Self::Error>;
}

impl Machine {
    /// Runs until the oracle or the guest ends it.
    pub fn run<O: Oracle>(&mut self, oracle: &mut O) -> Result<(), O::Error> {
        while self.step(oracle)? == Flow::Continue {}
        Ok(())
    }

    /// One slice and all turns at the stop that ends it.
    pub fn step<O: Oracle>(&mut self, oracle: &mut O) -> Result<Flow, O::Error> {
        step(self, oracle)
    }

    /// Enters the guest until there is something to decide.
    pub(super) fn enter_guest(&mut self) -> Result<Came, MachineError> {
        loop {
            let exit = self
                .vm
                .vcpu
                .enter(self.kicks.as_ref())
                .map_err(|cause| MachineError::Io { what: "KVM_RUN", cause })?;
            match exit {
                Exit::Interrupted | Exit::Window => return Ok(Came::Kicked),
                Exit::EmulationFailed => {
                    if let Some((trapped, length)) = self.assist()? {
                        self.disarm_step()?;
                        return Ok(Came::Natural(Cause::Declined(trapped, length)));
                    }
                    if self.trace.step {
                        return Ok(Came::Inside);
                    }
                }
                Exit::Debug { .. } if self.is_traced() => return Ok(Came::Inside),
                Exit::Debug { rip, dr6 } => return Err(self.unknown_exit(kvm_bindings::KVM_EXIT_DEBUG, dr6, rip)),
                Exit::Other { reason, detail } => {
                    let rip = self.vm.vcpu.regs_at_exit().map_or(0, |regs| regs.rip);
                    return Err(self.unknown_exit(reason, detail, rip));
                }
                natural => {
                    self.disarm_step()?;
                    return Ok(Came::Natural(Cause::Exit(natural)));
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

    pub(super) fn set_window(&mut self, wanted: bool) {
        if self.window_requested != wanted {
            self.vm.vcpu.request_window(wanted);
            self.window_requested = wanted;
        }
    }
}

/// One slice and all turns at the stop that ends it.
pub(crate) fn step<M: Body, O: Oracle>(machine: &mut M, oracle: &mut O) -> Result<Flow, O::Error> {
    if machine.is_halted() {
        // Restored from a snapshot of a halted guest: its turns go on at the stop where it was saved.
        return take_turns(machine, oracle, StopKind::Halt, None);
    }
    match oracle.slice(machine)? {
        Slice::End => Ok(Flow::End),
        Slice::Carry(delta) => {
            machine.apply_delta(&delta)?;
            machine.state().counters.forced += 1;
            take_turns(machine, oracle, StopKind::Forced, None)
        }
        slice @ (Slice::Run | Slice::RunToWindow) => {
            match run_slice(machine, oracle, matches!(slice, Slice::RunToWindow))? {
                Left::Natural(cause) => {
                    let stop = machine.state().stop;
                    *stop = stop.plus(1);
                    take_turns(machine, oracle, body::kind(&cause), Some(cause))
                }
                Left::Forced => {
                    machine.hold()?;
                    machine.state().counters.forced += 1;
                    oracle.forced(machine)?;
                    take_turns(machine, oracle, StopKind::Forced, None)
                }
                Left::Inside => {
                    machine.left_inside();
                    Ok(Flow::End)
                }
            }
        }
    }
}

fn take_turns<M: Body, O: Oracle>(
    machine: &mut M,
    oracle: &mut O,
    kind: StopKind,
    cause: Option<Cause>,
) -> Result<Flow, O::Error> {
    *machine.state().halted = kind == StopKind::Halt;
    let mut cause = cause;
    loop {
        let mut stop = body::describe(machine, kind);
        if stop.halted && cause.is_some() && !machine.can_wake() {
            // No interrupt can wake it: the guest ends here, and the oracle must not wait for one.
            stop.halted = false;
        }
        let turn = oracle.turn(machine, &stop)?;
        let taken = take(machine, &stop, cause.take(), &turn, oracle)?;
        let ended = taken.ended;
        if oracle.taken(machine, &stop, turn, taken)? == Flow::End || ended.is_some() {
            return Ok(Flow::End);
        }
        if !machine.is_halted() {
            return Ok(Flow::Continue);
        }
    }
}

/// Runs the guest to its next stop. `window`: or to where an interrupt can enter, if the oracle stops it there.
fn run_slice<M: Body, O: Oracle>(machine: &mut M, oracle: &mut O, window: bool) -> Result<Left, O::Error> {
    machine.begin_slice()?;
    machine.want_window(window);
    loop {
        match machine.enter()? {
            Came::Kicked => {
                let due = oracle.is_due(machine)?;
                if due && machine.is_ready() {
                    // Completing may end readiness (seen on kvm-pvm right after STI); a forced stop is made only
                    // where an interrupt can be injected, so that no replica need ask its KVM.
                    machine.want_window(false);
                    machine.settle()?;
                    if machine.is_ready() {
                        return Ok(Left::Forced);
                    }
                }
                machine.want_window(due);
            }
            Came::Natural(cause) => {
                machine.want_window(false);
                return Ok(Left::Natural(cause));
            }
            Came::Inside => return Ok(Left::Inside),
        }
    }
}
