//! Every change of watched memory, one after the other.
//!
//! Slices run at full speed, and the bytes are compared at every point. A slice in which they changed is gone back to and
//! walked. A change that is taken back before the next point is not seen, and neither is a store of what was there already.

use anyhow::{Context, Result, ensure};
use lockstep_node::tell;
use lockstep_vmm::machine::Trace;

use crate::asked::{Carried, Here, current, pointer, task_at, warn_of_the_end};
use crate::position::Position;
use crate::show::kernel::Kernel;
use crate::show::memory::Place;
use crate::show::tasks::Task;
use crate::timeline::{Advance, Point, Step, Walker, Watch};

/// Who changed it, as far as this host can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// An instruction of ring 0, at this address, after so many steps of the slice.
    Instruction { rip: u64, step: u64 },
    /// User code, which was entered by this step of the slice.
    User { step: u64 },
    /// The instruction that ended the slice, or a device at the stop.
    Stop { rip: u64, step: u64 },
    /// A device, at a turn of a halted guest.
    Device,
    /// Nobody here: a delta carried the machine up to this place.
    Delta { until: Here },
}

impl Who {
    /// Steps of the slice before it.
    pub fn step(&self) -> Option<u64> {
        match self {
            Self::Instruction { step, .. } | Self::User { step } | Self::Stop { step, .. } => Some(*step),
            Self::Device | Self::Delta { .. } => None,
        }
    }
}

/// A change.
#[derive(Debug)]
pub struct Write {
    /// The point before it.
    pub at: Here,
    /// Who ran.
    pub task: Option<Task>,
    pub old: Vec<u8>,
    pub new: Vec<u8>,
    pub who: Who,
}

/// A search, from where the machine stands.
pub struct Search<'a> {
    walker: Walker,
    kernel: Option<&'a Kernel>,
    to: Position,
    watch: Watch,
    /// What was there last.
    bytes: Vec<u8>,
}

impl<'a> Search<'a> {
    /// Of `length` bytes at `place`; where they are not mapped yet, from where they are.
    pub fn begin(
        mut walker: Walker,
        kernel: Option<&'a Kernel>,
        to: Position,
        place: Place,
        length: u64,
    ) -> Result<Self> {
        let watch = match place {
            Place::Physical(address) => walker.watch_physical(address, length).with_context(|| {
                format!("phys:{address:#x} and the {length} bytes from there on are not all in the guest's memory")
            })?,
            Place::Virtual(address) => mapped(&mut walker, to, address, length)?,
        };
        let bytes = walker.watched(&watch);
        Ok(Self {
            walker,
            kernel,
            to,
            watch,
            bytes,
        })
    }

    fn here(&self) -> Here {
        Here::at(&self.walker)
    }

    /// Tells every change up to the end, or until `tell` has enough.
    pub fn run(&mut self, tell: &mut dyn FnMut(&Write) -> bool) -> Result<()> {
        loop {
            let before = self.here();
            if before.is_after(self.to) {
                return Ok(());
            }
            let was_halted = self.walker.timeline().machine().is_halted();
            let advance = self.walker.timeline_mut().advance(Trace::default())?;
            self.walker.arrived();
            if advance == Advance::End {
                warn_of_the_end(before, self.to);
                return Ok(());
            }
            let now = self.walker.watched(&self.watch);
            if now == self.bytes {
                continue;
            }
            let after = self.here();
            let who = if was_halted {
                Who::Device
            } else if Carried::between(before, after, was_halted).is_some() {
                Who::Delta { until: after }
            } else {
                if !self.walk(before.point, tell)? {
                    return Ok(());
                }
                continue;
            };
            let task = current(&mut self.walker, self.kernel)?;
            if !self.changed(before, task, now, who, tell) {
                return Ok(());
            }
        }
    }

    /// Tells every change in the slice after `point`, and stands at the next point then.
    fn walk(&mut self, point: Point, tell: &mut dyn FnMut(&Write) -> bool) -> Result<bool> {
        self.walker.go_to_point(point)?;
        self.walker.timeline_mut().checkpoint()?;
        let at = self.here();
        loop {
            let (rip, step, task) = (
                self.walker.rip()?,
                self.walker.spot().steps,
                pointer(&mut self.walker, self.kernel)?,
            );
            let taken = self.walker.step()?;
            ensure!(
                taken != Step::End,
                "the recording ended where it went on before: please report it"
            );
            let now = self.walker.watched(&self.watch);
            if now != self.bytes {
                let who = match taken {
                    Step::User => Who::User { step },
                    Step::Point => Who::Stop { rip, step },
                    Step::Instruction | Step::End => Who::Instruction { rip, step },
                };
                let task = task_at(&mut self.walker, self.kernel, task)?;
                if !self.changed(at, task, now, who, tell) {
                    return Ok(false);
                }
            }
            if taken == Step::Point {
                break;
            }
        }
        // Undisturbed, so that checkpoints can be taken from here on.
        let here = self.walker.spot().point;
        self.walker.go_to_point(here)?;
        Ok(true)
    }

    fn changed(
        &mut self,
        at: Here,
        task: Option<Task>,
        now: Vec<u8>,
        who: Who,
        tell: &mut dyn FnMut(&Write) -> bool,
    ) -> bool {
        let old = std::mem::replace(&mut self.bytes, now.clone());
        tell(&Write {
            at,
            task,
            old,
            new: now,
            who,
        })
    }
}

/// The memory behind a virtual address, as soon as it is mapped.
fn mapped(walker: &mut Walker, to: Position, address: u64, length: u64) -> Result<Watch> {
    let begin = Here::at(walker);
    loop {
        let here = Here::at(walker);
        if let Some(watch) = walker.watch(address, length)? {
            if here != begin {
                tell!("lockstep-debug: {address:#x} is mapped from {here} on");
            }
            return Ok(watch);
        }
        let is_over = here.is_after(to) || walker.timeline_mut().advance(Trace::default())? == Advance::End;
        walker.arrived();
        ensure!(
            !is_over,
            "{address:#x} and the {length} bytes from there on are not mapped from {begin} up to {here}, as ring 0 sees memory \
             there; a --from where their task runs may help"
        );
    }
}
