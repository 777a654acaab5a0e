//! The recorder with a bug planted around it, and what happens counted.

use lockstep_primary::recorder::{RecordError, Recorder};
use lockstep_proto::{Epoch, Turn};
use lockstep_vmm::machine::{Flow, Oracle, Seen, Slice, Stop, StopKind, Taken};

use super::bug::Bug;
use super::counts::Counts;

/// A stop that is logged only where something enters.
const ORDINARY: StopKind = StopKind::Port {
    port: 0x80,
    write: true,
};

pub struct Planted<D> {
    pub recorder: Recorder,
    pub bug: Option<Bug>,
    pub counts: Counts,
    /// Takes what the link has.
    pub drain: D,
    /// Places that the bug leaves alone before it strikes.
    spares: u64,
    /// What is logged later than it should be.
    late: Option<Turn>,
    /// The clock of the turn in work is none of the recorder's.
    unseen: bool,
}

impl<D: FnMut()> Planted<D> {
    pub fn new(recorder: Recorder, bug: Option<Bug>, spares: u64, drain: D) -> Self {
        Self {
            recorder,
            bug,
            counts: Counts::default(),
            drain,
            spares,
            late: None,
            unseen: false,
        }
    }

    /// Whether the bug strikes at this place.
    fn strikes(&mut self) -> bool {
        let spared = self.spares;
        self.spares = spared.wrapping_sub(1);
        spared == 0
    }

    /// What the recorder believes to have happened.
    fn spoilt(&mut self, machine: &dyn Seen, stop: &Stop, turn: Turn, taken: &Taken) -> (Stop, Turn) {
        let not_logged = Stop {
            kind: ORDINARY,
            ..*stop
        };
        let bug = self.bug;
        match bug {
            Some(Bug::HaltNotLogged) if machine.is_halted() && self.strikes() => (not_logged, Turn::default()),
            Some(Bug::UnseenTime) if self.unseen => (*stop, Turn { clock: None, ..turn }),
            Some(Bug::InterruptLate) => {
                if let Some(late) = self.late.take() {
                    (*stop, merged(late, turn))
                } else if taken.interrupt.is_some()
                    && !stop.halted
                    && stop.kind != StopKind::Forced
                    && turn.epoch.is_none()
                    && self.strikes()
                {
                    self.late = Some(turn);
                    (*stop, Turn::default())
                } else {
                    (*stop, turn)
                }
            }
            _ => (*stop, turn),
        }
    }
}

fn merged(mut early: Turn, turn: Turn) -> Turn {
    let clock = early.clock.unwrap_or(0) + turn.clock.unwrap_or(0);
    early.frames.extend(turn.frames);
    early.disks.extend(turn.disks);
    early.entropy.extend(turn.entropy);
    Turn {
        clock: (early.clock.is_some() || turn.clock.is_some()).then_some(clock),
        frames: early.frames,
        disks: early.disks,
        entropy: early.entropy,
        console: [early.console, turn.console].concat().into(),
        ..turn
    }
}

impl<D: FnMut()> Oracle for Planted<D> {
    type Error = RecordError;

    fn slice(&mut self, machine: &dyn Seen) -> Result<Slice, RecordError> {
        self.recorder.slice(machine)
    }

    fn is_due(&mut self, machine: &dyn Seen) -> Result<bool, RecordError> {
        self.recorder.is_due(machine)
    }

    fn forced(&mut self, machine: &mut dyn Seen) -> Result<(), RecordError> {
        if self.bug == Some(Bug::DeltaTwice) && self.strikes() {
            machine.take_delta()?;
        }
        let done = self.recorder.forced(machine);
        (self.drain)();
        done
    }

    fn turn(&mut self, machine: &dyn Seen, stop: &Stop) -> Result<Turn, RecordError> {
        let mut turn = self.recorder.turn(machine, stop)?;
        let bug = self.bug;
        match bug {
            Some(Bug::UnseenTime) => {
                self.unseen = turn.clock.is_none() && self.strikes();
                if self.unseen {
                    turn.clock = Some(1_000);
                }
            }
            Some(Bug::EpochAtForced) if stop.kind == StopKind::Forced && self.strikes() => {
                turn.epoch = Some(Epoch::default());
            }
            _ => {}
        }
        Ok(turn)
    }

    fn disk_data(&mut self, disk: u32, request: u64) -> Result<Option<Vec<u8>>, RecordError> {
        self.recorder.disk_data(disk, request)
    }

    fn taken(&mut self, machine: &dyn Seen, stop: &Stop, turn: Turn, taken: Taken) -> Result<Flow, RecordError> {
        self.counts.turn(stop, &turn, &taken, machine.is_in_user_mode()?);
        let (stop, turn) = self.spoilt(machine, stop, turn, &taken);
        let flow = self.recorder.taken(machine, &stop, turn, taken);
        (self.drain)();
        flow
    }
}
