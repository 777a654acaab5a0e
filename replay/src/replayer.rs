//! The replayer: the oracle that reads the log, and compares as it goes.
//!
//! Invariants:
//! - A slice is entered only when the log says how it ends: by a natural stop that the batch in work covers, or by a
//!   delta.
//! - The digest chain is compared at the end of every batch, memory at every epoch, before any delta overwrites it.
//! - A divergence is a result with a position, never a hang: a guest that makes no stop is kicked and given up.

use std::collections::VecDeque;

use lockstep_logcodec::{Ending, LogError};
use lockstep_node::history::History;
use lockstep_node::host::disk::Disks;
use lockstep_proto::end::Reason;
use lockstep_proto::quantity::{BatchNumber, StopNumber};
use lockstep_proto::{End, Epoch, Turn};
use lockstep_vmm::devices::Effect;
use lockstep_vmm::machine::{Chain, EpochReport, Flow, MachineError, Oracle, Seen, Slice, Stop, StopKind, Taken};
use thiserror::Error;

use crate::divergence::kvm_regs_display::Registers;
use crate::divergence::{Divergence, Mismatch};
use crate::feed::{Feed, Next, Placed, Source};
use crate::pages;
use crate::patience::Patience;

mod saved;

pub use saved::SavedReplay;

/// Turns that a divergence report shows.
const AROUND: usize = 12;

/// What stops a replay.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The machine failed for a reason of this host.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// This side's disk failed.
    #[error("this node's disk has failed: {0}")]
    Disk(std::io::Error),
    /// The replay is not what was recorded.
    #[error("{0}")]
    Diverged(Box<Divergence>),
}

/// What was compared so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Batches whose chain was equal.
    pub batches: u64,
    /// Turns taken from the log.
    pub turns: u64,
    /// Epochs that were equal.
    pub epochs: u64,
    /// Dirty pages compared in them.
    pub epoch_pages: u64,
    /// Deltas applied.
    pub deltas: u64,
    /// Pages that they carried.
    pub carried_pages: u64,
    /// Host time that the recorder spent in carried slices, in nanoseconds.
    pub carried_ns: u64,
    /// Frames that entered.
    pub frames: u64,
    /// Bytes in those frames.
    pub frame_bytes: u64,
    /// Console bytes that the guest printed.
    pub console_bytes: u64,
    /// Whether the memory at the end was compared and equal.
    pub final_memory: bool,
}

/// Takes what leaves the machine, with the number of the batch in work, from 0.
type EffectSink = Box<dyn FnMut(BatchNumber, Effect)>;
/// Told when the chain at the end of a batch was equal: how many batches there were, and the stop.
type BatchSink = Box<dyn FnMut(u64, StopNumber)>;
/// Told what the guest prints: the stop, and the bytes.
type ConsoleSink = Box<dyn FnMut(StopNumber, &[u8])>;

/// Where a replay lets go of the machine before the log ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pause {
    /// Nowhere.
    #[default]
    Never,
    /// After the first turn of this stop.
    At(StopNumber),
    /// After every turn.
    EveryTurn,
    /// Where a batch ends, before the next one is looked for.
    BatchEnd,
}

/// Replays a log.
pub struct Replayer {
    feed: Feed,
    disks: Disks,
    end: Option<Box<End>>,
    at_end: bool,
    around: VecDeque<(StopNumber, String)>,
    progress: Progress,
    patience: Patience,
    effects: Option<EffectSink>,
    console: Option<ConsoleSink>,
    verified: Option<BatchSink>,
    history: Option<History>,
    pause: Pause,
    /// The last natural stop whose turn was taken.
    taken_stop: StopNumber,
    /// Turns taken since then: of a halted guest, or forced.
    further_turns: u32,
    last_kind: Option<StopKind>,
    guest_ended: Option<Reason>,
}

impl Replayer {
    /// A replayer of `source` for a machine that stands at the log's start.
    pub fn new(source: Box<dyn Source>, machine: &dyn Seen, disks: Disks, patience: Patience) -> Self {
        let max_frame = machine.memory().end();
        Self {
            feed: Feed::new(source, machine.stop(), max_frame),
            disks,
            end: None,
            at_end: false,
            around: VecDeque::new(),
            progress: Progress::default(),
            patience,
            effects: None,
            console: None,
            verified: None,
            history: None,
            pause: Pause::Never,
            taken_stop: machine.stop(),
            further_turns: 0,
            last_kind: None,
            guest_ended: None,
        }
    }

    /// How the guest has ended, if it has.
    pub fn guest_ended(&self) -> Option<Reason> {
        self.guest_ended
    }

    /// Gives what leaves the machine to `sink`, with the number of the batch in work, from 0.
    pub fn on_effect(&mut self, sink: impl FnMut(BatchNumber, Effect) + 'static) {
        self.effects = Some(Box::new(sink));
    }

    /// Tells `sink` what the guest prints: the natural stop, and all bytes of that stop at once.
    pub fn on_console(&mut self, sink: impl FnMut(StopNumber, &[u8]) + 'static) {
        self.console = Some(Box::new(sink));
    }

    /// Tells `sink` of each batch whose chain was equal: how many there were, and the stop.
    pub fn on_batch(&mut self, sink: impl FnMut(u64, StopNumber) + 'static) {
        self.verified = Some(Box::new(sink));
    }

    /// Keeps the registers at the last natural stops there.
    pub fn keep_history(&mut self, history: History) {
        self.history = Some(history);
    }

    /// Says where the replay lets go of the machine.
    pub fn pause(&mut self, pause: Pause) {
        self.pause = pause;
    }

    /// Whether the log has nothing more for the machine.
    pub fn is_at_end(&self) -> bool {
        self.at_end && self.feed.turns.is_empty()
    }

    /// Whether the machine stands where a batch ends, with the digest chain that the log has there, and nothing was taken
    /// from the log behind it.
    pub fn is_between_batches(&self, machine: &dyn Seen) -> bool {
        let mark = &self.feed.mark;
        let stands =
            self.feed.turns.is_empty() && mark.last_stop == machine.stop() && self.taken_stop == machine.stop();
        stands && (mark.digest.is_empty() || Chain::from_bytes(&mark.digest) == Some(machine.chain()))
    }

    /// Waits for what follows a batch. False where there is no more.
    pub fn goes_on(&mut self, machine: &dyn Seen) -> Result<bool, ReplayError> {
        self.look_ahead(machine)?;
        Ok(!self.is_at_end())
    }

    /// How many turns the machine has taken at its stop since the stop's own: of a halted guest, or forced.
    pub fn further_turns(&self) -> u32 {
        self.further_turns
    }

    /// What was compared so far.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The End record, once it was reached.
    pub fn end(&self) -> Option<&End> {
        self.end.as_deref()
    }

    /// How the log ends, as the reader knows by now.
    pub fn ending(&self) -> Ending {
        if let Some(end) = &self.end {
            return Ending::Clean((**end).clone());
        }
        self.feed.ending()
    }

    /// Resubmits what was in flight at the start.
    pub fn resume(&mut self, machine: &dyn Seen) -> Result<(), ReplayError> {
        for request in machine.devices().outstanding_disk_requests() {
            self.disks.submit(request).map_err(ReplayError::Disk)?;
        }
        Ok(())
    }

    /// Compares the machine with the log's end; call after the run.
    pub fn finish(&mut self, machine: &dyn Seen) -> Result<(), ReplayError> {
        let Some(end) = self.end.clone() else { return Ok(()) };
        if end.last_stop != machine.stop().get() || Chain::from_bytes(&end.digest) != Some(machine.chain()) {
            return Err(self.diverged(machine, Mismatch::Chain));
        }
        if end.memory_digest.is_empty() {
            return Ok(());
        }
        if end.memory_digest != machine.full_memory_digest()[..] {
            return Err(self.diverged(machine, Mismatch::Memory));
        }
        self.progress.final_memory = true;
        Ok(())
    }

    fn diverged(&self, machine: &dyn Seen, mismatch: Mismatch) -> ReplayError {
        ReplayError::Diverged(Box::new(Divergence {
            mismatch,
            batch: self.feed.mark.clone(),
            stop: machine.stop(),
            kind: self.last_kind,
            registers: Registers::of(machine),
            guest_time: machine.now(),
            around: self.around.iter().cloned().collect(),
        }))
    }

    /// Turns an error that the machine raised on the log's data into a divergence.
    pub fn explain(&self, machine: &dyn Seen, error: ReplayError) -> ReplayError {
        match error {
            ReplayError::Machine(
                error @ (MachineError::Turn { .. } | MachineError::Device(_) | MachineError::TrapPort { .. }),
            ) => self.diverged(machine, Mismatch::Refused(error.to_string())),
            other => other,
        }
    }

    /// Makes sure that the log says what comes next: a turn in the queue, or a batch that covers more stops.
    fn look_ahead(&mut self, machine: &dyn Seen) -> Result<(), ReplayError> {
        while !self.at_end && self.feed.turns.is_empty() && self.feed.mark.last_stop <= self.taken_stop {
            if self.feed.mark.batch > BatchNumber::FIRST || !self.feed.mark.digest.is_empty() {
                if Chain::from_bytes(&self.feed.mark.digest) != Some(machine.chain()) {
                    return Err(self.diverged(machine, Mismatch::Chain));
                }
                self.progress.batches += 1;
                if let Some(sink) = &mut self.verified {
                    sink(self.progress.batches, machine.stop());
                }
            }
            match self.feed.advance()? {
                Next::Batch => {}
                Next::End(end) => {
                    self.end = Some(end);
                    self.at_end = true;
                }
                Next::Stop => self.at_end = true,
            }
        }
        Ok(())
    }

    fn next_turn(&mut self, machine: &dyn Seen, forced: bool) -> Option<Placed> {
        let fits = self
            .feed
            .turns
            .front()
            .is_some_and(|placed| placed.stop == machine.stop() && placed.turn.forced.is_some() == forced);
        if fits { self.feed.turns.pop_front() } else { None }
    }

    fn remember(&mut self, placed_at: StopNumber, turn: &Turn) {
        if self.around.len() == AROUND {
            self.around.pop_front();
        }
        self.around
            .push_back((placed_at, lockstep_logcodec::describe::turn(turn)));
    }

    fn compare_epoch(&mut self, machine: &dyn Seen, logged: &Epoch, here: &EpochReport) -> Result<(), ReplayError> {
        if here.is_as_logged(logged) {
            self.progress.epochs += 1;
            self.progress.epoch_pages += here.pages.len() as u64;
            return Ok(());
        }
        let mismatch = pages::compare(machine.memory(), logged, here);
        Err(self.diverged(machine, mismatch))
    }
}

impl Oracle for Replayer {
    type Error = ReplayError;

    fn slice(&mut self, machine: &dyn Seen) -> Result<Slice, ReplayError> {
        self.look_ahead(machine)?;
        if matches!(self.pause, Pause::At(stop) if machine.stop() >= stop) {
            return Ok(Slice::End);
        }
        self.patience.begin();
        if let Some(placed) = self.feed.turns.front_mut() {
            if placed.stop == machine.stop() {
                let pages = placed.pages.0.len() as u64;
                let Some(delta) = placed.take_delta() else {
                    let mismatch = Mismatch::Stop {
                        logged: "a further turn",
                        here: self.last_kind.unwrap_or(StopKind::Forced),
                    };
                    return Err(self.diverged(machine, mismatch));
                };
                self.progress.deltas += 1;
                self.progress.carried_pages += pages;
                return Ok(Slice::Carry(Box::new(delta)));
            }
            return Ok(Slice::Run);
        }
        Ok(if self.at_end { Slice::End } else { Slice::Run })
    }

    fn is_due(&mut self, machine: &dyn Seen) -> Result<bool, ReplayError> {
        if self.patience.is_over() || self.feed.is_given_up() {
            return Err(self.diverged(machine, Mismatch::Silent));
        }
        Ok(false)
    }

    fn forced(&mut self, machine: &mut dyn Seen) -> Result<(), ReplayError> {
        Err(self.diverged(machine, Mismatch::Silent))
    }

    fn turn(&mut self, machine: &dyn Seen, stop: &Stop) -> Result<Turn, ReplayError> {
        self.last_kind = Some(stop.kind);
        if self.taken_stop == machine.stop() {
            // A further turn of a halted guest may be in a batch of its own.
            self.look_ahead(machine)?;
        }
        match self.next_turn(machine, stop.kind == StopKind::Forced) {
            Some(placed) => {
                self.progress.turns += 1;
                self.progress.frames += placed.turn.frames.len() as u64;
                self.progress.frame_bytes += placed.turn.frames.iter().map(|f| f.data.len() as u64).sum::<u64>();
                self.progress.carried_ns += placed.turn.forced.as_ref().map_or(0, |forced| forced.slice_ns);
                self.remember(placed.stop, &placed.turn);
                Ok(placed.turn)
            }
            None if stop.halted || stop.kind == StopKind::Forced => Err(self.diverged(
                machine,
                Mismatch::Stop {
                    logged: "no turn",
                    here: stop.kind,
                },
            )),
            None => Ok(Turn::default()),
        }
    }

    fn disk_data(&mut self, disk: u32, request: u64) -> Result<Option<Vec<u8>>, ReplayError> {
        let done = self.disks.take(disk, request).map_err(ReplayError::Disk)?;
        if done.failed() {
            // Whatever the recorder's did: this side's image is no longer what the log makes of it.
            return Err(ReplayError::Disk(std::io::Error::other(format!(
                "request {request} of disk {disk} has failed here"
            ))));
        }
        Ok(done.data)
    }

    fn taken(&mut self, machine: &dyn Seen, stop: &Stop, turn: Turn, taken: Taken) -> Result<Flow, ReplayError> {
        self.further_turns = if self.taken_stop == machine.stop() {
            self.further_turns.saturating_add(1)
        } else {
            0
        };
        // Stops are numbered one by one, and each has a turn: a replica that has left one out compares nothing any more.
        assert!(
            machine.stop().distance(self.taken_stop) <= 1,
            "a turn is taken at stop {}, and the one before was at {}",
            machine.stop(),
            self.taken_stop
        );
        self.taken_stop = machine.stop();
        if let Some(history) = &self.history {
            history.keep(machine);
        }
        self.guest_ended = self.guest_ended.or(taken.ended);
        tracing::trace!(stop = machine.stop().get(), kind = %stop.kind, rip = format!("{:x}", machine.regs().rip), rflags = format!("{:x}", machine.regs().rflags), interrupt = ?taken.interrupt, waits = machine.interrupt_waits(), "taken");
        if let (Some(logged), Some(here)) = (&turn.epoch, &taken.epoch) {
            self.compare_epoch(machine, logged, here)?;
        }
        if let Some(sink) = &mut self.console {
            let printed: Vec<u8> = taken
                .effects
                .iter()
                .filter_map(|effect| match effect {
                    Effect::Console(bytes) => Some(&bytes[..]),
                    _ => None,
                })
                .collect::<Vec<_>>()
                .concat();
            if !printed.is_empty() {
                sink(machine.stop(), &printed);
            }
        }
        for effect in taken.effects {
            match effect {
                Effect::Disk(request) => self.disks.submit(request).map_err(ReplayError::Disk)?,
                Effect::Console(_) | Effect::Frame { .. } => {
                    if let Effect::Console(bytes) = &effect {
                        self.progress.console_bytes += bytes.len() as u64;
                    }
                    if let Some(sink) = &mut self.effects {
                        sink(self.feed.mark.batch, effect);
                    }
                }
                Effect::Entropy { .. } | Effect::Reset | Effect::PowerOff => {}
            }
        }
        if self.pause == Pause::BatchEnd && taken.ended.is_none() && self.is_between_batches(machine) {
            // Also while the guest is halted: the next batch may be long in coming.
            return Ok(Flow::End);
        }
        if taken.ended.is_some() || machine.is_halted() {
            self.look_ahead(machine)?;
            if self.at_end && self.feed.turns.is_empty() {
                return Ok(Flow::End);
            }
            if taken.ended.is_some() {
                return Err(self.diverged(machine, Mismatch::Ending));
            }
        }
        let reached = match self.pause {
            Pause::Never | Pause::BatchEnd => false,
            Pause::At(at) => stop.number >= at,
            Pause::EveryTurn => true,
        };
        Ok(if reached { Flow::End } else { Flow::Continue })
    }
}
