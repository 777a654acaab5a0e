//! A replay that is watched: what enters and what leaves, each with its stop and guest time.

use std::path::Path;

use anyhow::{Result, bail};
use lockstep_proto::quantity::StopNumber;
use lockstep_proto::{Identity, Turn};
use lockstep_replay::open::{Opened, open};
use lockstep_replay::{Progress, ReplayError, Replayer};
use lockstep_vmm::devices::Effect;
use lockstep_vmm::machine::{Flow, Machine, Oracle, Seen, Slice, Stop, Taken};
use lockstep_vmm::probe::at_start;

use crate::position::Position;

/// What was exchanged at one turn. What left, left before `turn` entered.
pub struct Exchange<'a> {
    /// The natural stop, or the one before it at a forced stop.
    pub stop: StopNumber,
    /// Guest time, in nanoseconds since the machine was made.
    pub guest_ns: u64,
    /// What entered.
    pub turn: &'a Turn,
    /// What left.
    pub effects: &'a [Effect],
    /// The vector of the interrupt that entered after it.
    pub interrupt: Option<u8>,
    /// The guest waited in HLT up to here.
    pub was_halted: bool,
    /// It waits in HLT from here on.
    pub is_halted: bool,
}

/// The replayer with a view on what passes.
struct Watched<S> {
    replayer: Replayer,
    see: S,
}

impl<S: FnMut(&Exchange<'_>)> Oracle for Watched<S> {
    type Error = ReplayError;

    fn slice(&mut self, machine: &dyn Seen) -> Result<Slice, ReplayError> {
        self.replayer.slice(machine)
    }

    fn is_due(&mut self, machine: &dyn Seen) -> Result<bool, ReplayError> {
        self.replayer.is_due(machine)
    }

    fn forced(&mut self, machine: &mut dyn Seen) -> Result<(), ReplayError> {
        self.replayer.forced(machine)
    }

    fn turn(&mut self, machine: &dyn Seen, stop: &Stop) -> Result<Turn, ReplayError> {
        self.replayer.turn(machine, stop)
    }

    fn disk_data(&mut self, disk: u32, request: u64) -> Result<Option<Vec<u8>>, ReplayError> {
        self.replayer.disk_data(disk, request)
    }

    fn taken(&mut self, machine: &dyn Seen, stop: &Stop, turn: Turn, taken: Taken) -> Result<Flow, ReplayError> {
        (self.see)(&Exchange {
            stop: machine.stop(),
            guest_ns: machine.now().ns(),
            turn: &turn,
            effects: &taken.effects,
            interrupt: taken.interrupt,
            was_halted: stop.halted,
            is_halted: machine.is_halted(),
        });
        self.replayer.taken(machine, stop, turn, taken)
    }
}

/// A recording that is about to be replayed.
pub struct Replay {
    opened: Opened,
}

impl Replay {
    /// Opens the recording in `directory`.
    pub fn open(directory: &Path) -> Result<Self> {
        Ok(Self {
            opened: open(directory, &at_start()?)?,
        })
    }

    /// Who was recorded.
    pub fn identity(&self) -> &Identity {
        &self.opened.identity
    }

    /// The stop and the guest time, in nanoseconds, where the recording begins.
    pub fn start(&self) -> (StopNumber, u64) {
        (self.opened.machine.stop(), self.opened.machine.now().ns())
    }

    /// Replays up to and including `to`, and shows `see` what passes; after every step `go_on` is asked whether to. A
    /// divergence is an error that tells where: what was shown of the batches before it is as it was recorded.
    pub fn show(
        self,
        to: Position,
        mut see: impl FnMut(&Exchange<'_>),
        mut go_on: impl FnMut(&mut Machine) -> Result<()>,
    ) -> Result<()> {
        let (mut stop, mut guest_ns) = self.start();
        if to.order_of(stop, guest_ns).is_gt() {
            return Ok(());
        }
        let within = |exchange: &Exchange<'_>| {
            if !to.order_of(exchange.stop, exchange.guest_ns).is_gt() {
                see(exchange);
            }
        };
        let watched = self.watch(within, |machine, _| {
            go_on(machine)?;
            (stop, guest_ns) = (machine.stop(), machine.now().ns());
            Ok(!to.order_of(stop, guest_ns).is_gt())
        })?;
        if watched.is_at_end && to != Position::End && to.order_of(stop, guest_ns).is_lt() {
            tracing::warn!("the log ends at stop {stop}, {}, before {to}", Position::Time(guest_ns));
        }
        Ok(())
    }

    /// Replays, and shows `see` all that passes; after every step `go_on` is told what was compared so far, and ends it by
    /// saying false. A divergence is an error that tells where.
    pub fn watch(
        self,
        see: impl FnMut(&Exchange<'_>),
        mut go_on: impl FnMut(&mut Machine, Progress) -> Result<bool>,
    ) -> Result<Compared> {
        let Opened {
            mut machine, replayer, ..
        } = self.opened;
        let mut watched = Watched { replayer, see };
        loop {
            let flow = machine.step(&mut watched);
            let wanted = go_on(&mut machine, watched.replayer.progress())?;
            match flow {
                Ok(Flow::Continue) if wanted => {}
                Ok(Flow::Continue) => {
                    return Ok(Compared {
                        progress: watched.replayer.progress(),
                        is_at_end: false,
                    });
                }
                Ok(Flow::End) => {
                    watched.replayer.finish(&machine)?;
                    return Ok(Compared {
                        progress: watched.replayer.progress(),
                        is_at_end: true,
                    });
                }
                Err(error) => match watched.replayer.explain(&machine, error) {
                    ReplayError::Diverged(divergence) => bail!("the replay is not what was recorded: {divergence}"),
                    error => return Err(error.into()),
                },
            }
        }
    }
}

/// What a replay came to.
pub struct Compared {
    /// What was compared, and was equal.
    pub progress: Progress,
    /// The log ends there.
    pub is_at_end: bool,
}
