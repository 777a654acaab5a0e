//! The oracle that asks the questions: it writes down each call and what it saw.

use std::collections::VecDeque;

use lockstep_proto::Turn;
use lockstep_proto::end::Reason;
use lockstep_proto::quantity::{GuestTime, StopNumber};
use lockstep_vmm::machine::{Chain, Delta, EpochReport, Flow, Oracle, Seen, Slice, Stop, Taken};

use super::super::harness::Fault;

/// What an oracle sees at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    pub stop: StopNumber,
    pub now: GuestTime,
    pub chain: Chain,
    pub halted: bool,
    pub waits: bool,
}

impl Sight {
    pub fn of(machine: &dyn Seen) -> Self {
        Self {
            stop: machine.stop(),
            now: machine.now(),
            chain: machine.chain(),
            halted: machine.is_halted(),
            waits: machine.interrupt_waits(),
        }
    }
}

/// A turn that was taken.
pub struct Took {
    pub stop: Stop,
    /// When it was asked for, and when it was taken.
    pub before: Sight,
    pub after: Sight,
    pub interrupt: Option<u8>,
    pub ended: Option<Reason>,
    pub epoch: Option<EpochReport>,
}

type Turns = Box<dyn FnMut(&dyn Seen, &Stop) -> Turn>;

pub struct Examiner {
    /// All calls but those of `is_due`, whose number differs from run to run.
    pub calls: Vec<&'static str>,
    pub took: Vec<Took>,
    pub deltas: Vec<Delta>,
    /// How slices end, before all others run.
    pub slices: VecDeque<Slice>,
    /// The answer at every kick.
    pub due: bool,
    /// A halted guest is let go of after each turn.
    pub lets_go: bool,
    turns: Turns,
    asked: Option<Sight>,
}

impl Examiner {
    /// Nothing enters.
    pub fn new() -> Self {
        Self::giving(|_, _| Turn::default())
    }

    /// This enters.
    pub fn giving(turns: impl FnMut(&dyn Seen, &Stop) -> Turn + 'static) -> Self {
        Self {
            calls: Vec::new(),
            took: Vec::new(),
            deltas: Vec::new(),
            slices: VecDeque::new(),
            due: false,
            lets_go: false,
            turns: Box::new(turns),
            asked: None,
        }
    }

    /// The calls since the last time.
    pub fn calls(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.calls)
    }

    pub fn last(&self) -> &Took {
        self.took.last().expect("a turn")
    }
}

impl Oracle for Examiner {
    type Error = Fault;

    fn slice(&mut self, _: &dyn Seen) -> Result<Slice, Fault> {
        self.calls.push("slice");
        Ok(self.slices.pop_front().unwrap_or(Slice::Run))
    }

    fn is_due(&mut self, _: &dyn Seen) -> Result<bool, Fault> {
        assert_eq!(self.calls.last(), Some(&"slice"), "asked in a slice alone");
        Ok(self.due)
    }

    fn forced(&mut self, machine: &mut dyn Seen) -> Result<(), Fault> {
        self.calls.push("forced");
        self.deltas.push(machine.take_delta()?);
        Ok(())
    }

    fn turn(&mut self, machine: &dyn Seen, stop: &Stop) -> Result<Turn, Fault> {
        self.calls.push("turn");
        self.asked = Some(Sight::of(machine));
        Ok((self.turns)(machine, stop))
    }

    fn disk_data(&mut self, _: u32, _: u64) -> Result<Option<Vec<u8>>, Fault> {
        self.calls.push("disk_data");
        Ok(None)
    }

    fn taken(&mut self, machine: &dyn Seen, stop: &Stop, _: Turn, taken: Taken) -> Result<Flow, Fault> {
        self.calls.push("taken");
        self.took.push(Took {
            stop: *stop,
            before: self.asked.take().expect("it was asked for"),
            after: Sight::of(machine),
            interrupt: taken.interrupt,
            ended: taken.ended,
            epoch: taken.epoch,
        });
        let lets_go = self.lets_go && machine.is_halted();
        Ok(if lets_go { Flow::End } else { Flow::Continue })
    }
}
