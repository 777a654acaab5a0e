//! A replay that stops wherever ring 0 comes to one of a few addresses.
//!
//! It goes forwards once, at full speed between the hits, and what it replays is compared with the log as ever.

use anyhow::{Result, ensure};
use lockstep_vmm::machine::{BREAKPOINTS, Trace};

use crate::asked::{Carried, Here, warn_of_the_end};
use crate::position::Position;
use crate::timeline::{Advance, Step, Walker};

/// What a replay comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The instruction at this address is next, in ring 0.
    Hit(u64),
    /// A delta carried the machine through this, and nothing was executed.
    Carried(Carried),
    /// The end of what was asked for.
    End,
}

/// A replay with breakpoints.
pub struct Hits {
    walker: Walker,
    to: Position,
    breakpoints: Vec<u64>,
    /// The machine stands at a breakpoint that was told.
    is_told: bool,
    /// What was carried, as long as nothing else comes.
    carried: Option<Carried>,
    /// What was found beside it.
    waiting: Option<Event>,
}

impl Hits {
    /// From where the machine stands up to and including `to`.
    pub fn new(walker: Walker, to: Position) -> Self {
        Self {
            walker,
            to,
            breakpoints: Vec::new(),
            is_told: false,
            carried: None,
            waiting: None,
        }
    }

    /// Where to stop from here on, at most [`BREAKPOINTS`].
    pub fn stop_at(&mut self, addresses: Vec<u64>) -> Result<()> {
        ensure!(
            addresses.len() <= BREAKPOINTS,
            "there are {BREAKPOINTS} hardware breakpoints, and {} were wanted",
            addresses.len()
        );
        self.breakpoints = addresses;
        Ok(())
    }

    /// The machine.
    pub fn walker(&mut self) -> &mut Walker {
        &mut self.walker
    }

    /// Where it stands.
    pub fn here(&self) -> Here {
        Here::at(&self.walker)
    }

    /// Goes on to what comes next.
    pub fn next(&mut self) -> Result<Event> {
        if let Some(event) = self.waiting.take() {
            return Ok(event);
        }
        loop {
            let event = self.find()?;
            let next = match event {
                Event::Carried(next) => Some(next),
                _ => None,
            };
            match (self.carried.take(), next) {
                (None, None) => return Ok(event),
                (None, Some(next)) => self.carried = Some(next),
                (Some(before), None) => {
                    self.waiting = Some(event);
                    return Ok(Event::Carried(before));
                }
                (Some(before), Some(next)) => {
                    let both = before.and(next);
                    self.carried = Some(both.unwrap_or(next));
                    if both.is_none() {
                        return Ok(Event::Carried(before));
                    }
                }
            }
        }
    }

    fn find(&mut self) -> Result<Event> {
        loop {
            let before = self.here();
            if before.is_after(self.to) {
                return Ok(Event::End);
            }
            let was_halted = self.walker.timeline().machine().is_halted();
            match self.advance()? {
                Advance::Inside => {
                    let rip = self.walker.rip()?;
                    if self.breakpoints.contains(&rip) {
                        self.is_told = true;
                        return Ok(Event::Hit(rip));
                    }
                }
                Advance::Turn => {
                    if let Some(carried) = Carried::between(before, self.here(), was_halted) {
                        return Ok(Event::Carried(carried));
                    }
                }
                Advance::End => {
                    warn_of_the_end(before, self.to);
                    return Ok(Event::End);
                }
            }
        }
    }

    /// To the next stop of any kind.
    fn advance(&mut self) -> Result<Advance> {
        if std::mem::take(&mut self.is_told) {
            // Off the breakpoint: it would stop the vCPU again before its instruction.
            let advance = match self.walker.step()? {
                Step::Instruction | Step::User => Advance::Inside,
                Step::Point => Advance::Turn,
                Step::End => Advance::End,
            };
            // The steps of a slice that is not walked name no spot.
            self.walker.arrived();
            return Ok(advance);
        }
        let trace = Trace {
            step: false,
            breakpoints: self.breakpoints.clone(),
        };
        let advance = self.walker.timeline_mut().advance(trace)?;
        self.walker.arrived();
        Ok(advance)
    }
}
