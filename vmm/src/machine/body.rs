//! What the run loop does with a machine: the part of it that is KVM's in the one, and a script's in the other.

use lockstep_proto::Turn;
use lockstep_proto::quantity::{GuestTime, StopNumber};

use super::access::classify;
use super::{Chain, Counters, Delta, EpochReport, LastWords, Machine, MachineError, Seen, Stop, StopKind};
use crate::cpu::msr;
use crate::devices::{Devices, Effect};
use crate::loader::trap::Trapped;
use crate::memory::Memory;
use crate::sys::vcpu::Exit;

/// Why the vCPU came back to the loop.
pub(crate) enum Came {
    /// It has made a natural stop.
    Natural(Cause),
    /// It was kicked, or an interrupt can enter and that was asked for.
    Kicked,
    /// It has not made a stop: a debugger wanted one inside.
    Inside,
}

/// What ended a slice by a natural stop.
pub(crate) enum Cause {
    /// An exit of KVM.
    Exit(Exit),
    /// An instruction that KVM declined and whose result comes from outside, and its length.
    Declined(Trapped, u8),
}

/// What every machine has, for the run loop to change.
pub(crate) struct State<'a> {
    pub memory: &'a Memory,
    pub devices: &'a mut Devices,
    pub now: &'a mut GuestTime,
    pub stop: &'a mut StopNumber,
    pub halted: &'a mut bool,
    pub chain: &'a mut Chain,
    pub counters: &'a mut Counters,
    pub last_words: &'a mut LastWords,
}

/// A vCPU with memory and devices, as the run loop drives it. The loop alone decides in which order this is done.
pub(crate) trait Body: Seen {
    fn state(&mut self) -> State<'_>;

    /// A slice begins.
    fn begin_slice(&mut self) -> Result<(), MachineError>;

    /// Runs the guest to the next thing that the loop has to decide about.
    fn enter(&mut self) -> Result<Came, MachineError>;

    /// From now on [`Body::enter`] comes back as soon as an interrupt can enter, or no more so.
    fn want_window(&mut self, wanted: bool);

    /// Whether an interrupt can enter where the guest stands.
    fn is_ready(&mut self) -> bool;

    /// Whether an interrupt can wake the guest from the HLT that it has just made.
    fn can_wake(&mut self) -> bool;

    /// Finishes what is half done where no natural stop was made.
    fn settle(&mut self) -> Result<(), MachineError>;

    /// The guest was stopped by force, and is settled: its registers are read.
    fn hold(&mut self) -> Result<(), MachineError>;

    /// A debugger wanted a stop inside the slice.
    fn left_inside(&mut self);

    /// Does what the cause of a natural stop asks for, and completes it.
    fn complete(
        &mut self,
        stop: &Stop,
        cause: Cause,
        turn: &Turn,
        effects: &mut Vec<Effect>,
    ) -> Result<(), MachineError>;

    /// Ends the epoch.
    fn end_epoch(&mut self) -> Result<EpochReport, MachineError>;

    /// Becomes what the delta says.
    fn apply_delta(&mut self, delta: &Delta) -> Result<(), MachineError>;

    /// Injects an interrupt.
    fn interrupt(&mut self, vector: u8) -> Result<(), MachineError>;
}

/// What kind of natural stop it is.
pub(crate) fn kind(cause: &Cause) -> StopKind {
    match cause {
        Cause::Exit(exit) => classify(exit),
        Cause::Declined(trapped, _) => StopKind::Trap(*trapped),
    }
}

/// The stop where `machine` stands, as its oracle sees it.
pub(crate) fn describe(machine: &impl Seen, kind: StopKind) -> Stop {
    let wants_time = match kind {
        StopKind::Port { port, write } => Devices::needs_time(port, write),
        StopKind::Msr { index, write: false } => index == msr::TSC,
        // A program's fault may be its RDTSC.
        StopKind::Trap(trapped) => matches!(trapped, Trapped::Rdtsc | Trapped::Rdtscp | Trapped::GpHandler),
        _ => false,
    };
    let wants_random = matches!(kind, StopKind::Trap(Trapped::Rdrand { .. } | Trapped::Rdseed { .. }));
    Stop {
        number: machine.stop(),
        kind,
        wants_time,
        wants_random,
        halted: machine.is_halted(),
    }
}

impl Body for Machine {
    fn state(&mut self) -> State<'_> {
        State {
            memory: &self.memory,
            devices: &mut self.devices,
            now: &mut self.now,
            stop: &mut self.stop,
            halted: &mut self.halted,
            chain: &mut self.chain,
            counters: &mut self.counters,
            last_words: &mut self.last_words,
        }
    }

    fn begin_slice(&mut self) -> Result<(), MachineError> {
        self.arm()
    }

    fn enter(&mut self) -> Result<Came, MachineError> {
        self.enter_guest()
    }

    fn want_window(&mut self, wanted: bool) {
        self.set_window(wanted);
    }

    fn is_ready(&mut self) -> bool {
        self.vm.vcpu.ready_for_interrupt()
    }

    fn can_wake(&mut self) -> bool {
        self.vm.vcpu.if_flag()
    }

    fn settle(&mut self) -> Result<(), MachineError> {
        self.complete_quietly()
    }

    fn hold(&mut self) -> Result<(), MachineError> {
        self.regs = self.read_regs()?;
        Ok(())
    }

    fn left_inside(&mut self) {
        self.in_slice = true;
    }

    fn complete(
        &mut self,
        stop: &Stop,
        cause: Cause,
        turn: &Turn,
        effects: &mut Vec<Effect>,
    ) -> Result<(), MachineError> {
        match cause {
            Cause::Exit(exit) => self.access(stop, exit, turn, effects)?,
            Cause::Declined(trapped, length) => self.declined(trapped, length, turn)?,
        }
        self.look_after_programs()
    }

    fn end_epoch(&mut self) -> Result<EpochReport, MachineError> {
        self.report_epoch()
    }

    fn apply_delta(&mut self, delta: &Delta) -> Result<(), MachineError> {
        self.carry_in(delta)
    }

    fn interrupt(&mut self, vector: u8) -> Result<(), MachineError> {
        self.vm.vcpu.interrupt(vector).map_err(|cause| MachineError::Io {
            what: "KVM_INTERRUPT",
            cause,
        })
    }
}
