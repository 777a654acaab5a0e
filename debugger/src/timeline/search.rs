//! Going on, forwards or backwards, to the next breakpoint or change of watched memory.
//!
//! Slices run at full speed with hardware breakpoints, and watched bytes are compared at every point. Where something is
//! in a slice, the slice is walked to find the spot. Backwards, the recording is searched checkpoint by checkpoint for
//! the last such slice.
//!
//! A watchpoint sees a change that lasts up to a point; one that is taken back within its slice is not seen.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lockstep_vmm::cpu::walk::translate;
use lockstep_vmm::machine::Trace;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::walk::{READ, Spot, Step, Walker};
use super::{Advance, Point};

/// Watched bytes, by their place in physical memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The address that was asked for.
    pub address: u64,
    /// Pieces: where they begin, and their bytes.
    pub pieces: Vec<(u64, usize)>,
    /// Bytes in all.
    pub length: u64,
}

/// Bytes that one watch may have.
pub const MAX_WATCH: u64 = 4096;

/// What to stop for.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    /// Addresses of instructions of ring 0.
    pub breakpoints: Vec<u64>,
    /// Watched memory.
    pub watches: Vec<Watch>,
}

/// Why the machine stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Before the instruction at a breakpoint.
    Breakpoint(u64),
    /// Watched memory changes: forwards after the instruction that does it, backwards before it.
    Watch {
        /// The watch's address.
        address: u64,
        /// No instruction that can be walked has done it: it was done by user code, a device or a delta.
        unseen: bool,
    },
    /// The recording begins here.
    Begin,
    /// The recording ends here.
    End,
    /// The one who watches wants it.
    Interrupted,
}

/// The content of all watched memory.
type Values = Vec<Vec<u8>>;

/// Asks now and then whether to go on.
struct Pulse<'a> {
    ask: &'a mut dyn FnMut() -> bool,
    asked: Instant,
}

impl Pulse<'_> {
    fn goes_on(&mut self) -> bool {
        if self.asked.elapsed() < Duration::from_millis(50) {
            return true;
        }
        self.asked = Instant::now();
        (self.ask)()
    }
}

impl Walker {
    /// The physical memory behind a virtual address as ring 0 sees it here. `None`: it is not mapped.
    pub fn watch(&mut self, address: u64, length: u64) -> Result<Option<Watch>> {
        let sregs = self.sregs()?;
        let ram = self.timeline().machine().memory().ram();
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < length.min(MAX_WATCH) {
            let at = address.wrapping_add(done);
            let piece = (length - done).min(0x1000 - (at & 0xfff));
            let Ok(physical) = translate(ram, &sregs, at, READ) else {
                return Ok(None);
            };
            pieces.push((physical, piece as usize));
            done += piece;
        }
        Ok(Some(Watch {
            address,
            pieces,
            length,
        }))
    }

    /// Physical memory. `None`: some of it is not there.
    pub fn watch_physical(&self, address: u64, length: u64) -> Option<Watch> {
        let ram = self.timeline().machine().memory().ram();
        let length = length.min(MAX_WATCH);
        ram.check_range(GuestAddress(address), length as usize, Permissions::Read)
            .then(|| Watch {
                address,
                pieces: vec![(address, length as usize)],
                length,
            })
    }

    /// What watched memory has here.
    pub fn watched(&self, watch: &Watch) -> Vec<u8> {
        let ram = self.timeline().machine().memory().ram();
        let mut bytes = Vec::with_capacity(watch.length as usize);
        for &(physical, length) in &watch.pieces {
            let start = bytes.len();
            bytes.resize(start + length, 0);
            // Watched memory lies in RAM: it was looked up when it was set.
            let _ = ram.read_slice(&mut bytes[start..], GuestAddress(physical));
        }
        bytes
    }

    fn values(&self, stops: &Stops) -> Values {
        stops.watches.iter().map(|watch| self.watched(watch)).collect()
    }

    fn breakpoint_here(&mut self, stops: &Stops) -> Result<Option<u64>> {
        if stops.breakpoints.is_empty() {
            return Ok(None);
        }
        let rip = self.rip()?;
        Ok(stops.breakpoints.contains(&rip).then_some(rip))
    }

    /// Goes on to what `stops` tell. `ask` says whether to go on looking.
    pub fn go_on(&mut self, stops: &Stops, ask: &mut dyn FnMut() -> bool) -> Result<Why> {
        let mut pulse = Pulse {
            ask,
            asked: Instant::now(),
        };
        let mut before = self.values(stops);
        // Off the breakpoint, and out of a slice that was begun.
        while self.spot().steps > 0 || self.breakpoint_here(stops)?.is_some() {
            let step = self.step()?;
            if step == Step::End {
                return Ok(Why::End);
            }
            let now = self.values(stops);
            if let Some(address) = changed(stops, &before, &now) {
                let unseen = step != Step::Instruction;
                return Ok(Why::Watch { address, unseen });
            }
            if let Some(address) = self.breakpoint_here(stops)? {
                return Ok(Why::Breakpoint(address));
            }
            before = now;
            if step == Step::Point {
                break;
            }
            if !pulse.goes_on() {
                return Ok(Why::Interrupted);
            }
        }
        // From here on undisturbed, so that checkpoints can be taken.
        if self.timeline().is_disturbed() {
            let here = self.spot().point;
            self.go_to_point(here)?;
        }
        let trace = Trace {
            step: false,
            breakpoints: stops.breakpoints.clone(),
        };
        loop {
            let point = self.spot().point;
            let advance = self.timeline_mut().advance(trace.clone())?;
            self.arrived();
            let now = self.values(stops);
            match advance {
                Advance::End => return Ok(Why::End),
                Advance::Inside => {
                    // A hit, or before it a change: whichever comes first.
                    return self.first_in_slice(point, stops);
                }
                Advance::Turn => {
                    if changed(stops, &before, &now).is_some() {
                        return self.first_in_slice(point, stops);
                    }
                    if let Some(address) = self.breakpoint_here(stops)? {
                        return Ok(Why::Breakpoint(address));
                    }
                }
            }
            before = now;
            if !pulse.goes_on() {
                return Ok(Why::Interrupted);
            }
        }
    }

    /// The first thing to stop for after `point`; there is one up to and including the next point.
    fn first_in_slice(&mut self, point: Point, stops: &Stops) -> Result<Why> {
        self.go_to_point(point)?;
        self.timeline_mut().checkpoint()?;
        let mut before = self.values(stops);
        loop {
            let step = self.step()?;
            ensure!(
                step != Step::End,
                "the recording ended where it went on before: please report it"
            );
            let now = self.values(stops);
            if let Some(address) = changed(stops, &before, &now) {
                let unseen = step != Step::Instruction && !(step == Step::Point && self.is_executed(point));
                return Ok(Why::Watch { address, unseen });
            }
            if let Some(address) = self.breakpoint_here(stops)? {
                return Ok(Why::Breakpoint(address));
            }
            ensure!(
                step != Step::Point,
                "a breakpoint was hit in kernel code that this host cannot walk to: it was entered from user code by \
                 another way than #PF, #GP, #UD or #DE"
            );
            before = now;
        }
    }

    /// Whether the way from `point` to here was executed, and not carried or waited for.
    fn is_executed(&self, point: Point) -> bool {
        self.spot().point.stop > point.stop
    }

    /// Goes back to what `stops` tell.
    pub fn go_back(&mut self, stops: &Stops, ask: &mut dyn FnMut() -> bool) -> Result<Why> {
        let mut pulse = Pulse {
            ask,
            asked: Instant::now(),
        };
        let origin = self.spot();
        if origin.steps > 0
            && let Some((spot, why)) = self.last_in_slice(origin.point, Some(origin.steps), stops)?
        {
            self.go(spot)?;
            return Ok(why);
        }
        let mut upper = origin.point;
        while let Some(lower) = self.timeline().checkpoint_before(upper) {
            let mut last = None;
            if !self.last_slice(lower..upper, stops, &mut pulse, &mut last)? {
                self.go(origin)?;
                return Ok(Why::Interrupted);
            }
            if let Some(point) = last {
                let found = self.last_in_slice(point, None, stops)?;
                let (spot, why) = found.ok_or_else(|| {
                    anyhow::anyhow!(
                        "a breakpoint was hit in kernel code after stop {} that this host cannot walk to",
                        point.stop
                    )
                })?;
                self.go(spot)?;
                return Ok(why);
            }
            upper = lower;
        }
        let start = self.timeline().start();
        self.go_to_point(start)?;
        Ok(Why::Begin)
    }

    /// Puts the last point in `range` whose slice has something to stop for into `last`. False: interrupted.
    fn last_slice(
        &mut self,
        range: Range<Point>,
        stops: &Stops,
        pulse: &mut Pulse<'_>,
        last: &mut Option<Point>,
    ) -> Result<bool> {
        self.go_to_point(range.start)?;
        let mut before = self.values(stops);
        let trace = Trace {
            step: false,
            breakpoints: stops.breakpoints.clone(),
        };
        loop {
            let point = self.spot().point;
            if point >= range.end {
                return Ok(true);
            }
            let advance = if self.breakpoint_here(stops)?.is_some() {
                *last = Some(point);
                // Off the breakpoint.
                match self.step()? {
                    Step::Instruction | Step::User => Advance::Inside,
                    Step::Point => Advance::Turn,
                    Step::End => Advance::End,
                }
            } else {
                self.timeline_mut().advance(trace.clone())?
            };
            match advance {
                Advance::End => return Ok(true),
                Advance::Inside => {
                    if self.breakpoint_here(stops)?.is_some() {
                        *last = Some(point);
                    }
                }
                Advance::Turn => {
                    self.arrived();
                    let now = self.values(stops);
                    if changed(stops, &before, &now).is_some() {
                        *last = Some(point);
                    }
                    before = now;
                }
            }
            if !pulse.goes_on() {
                return Ok(false);
            }
        }
    }

    /// The last thing to stop for, backwards, in the slice after `point`, before its step `limit` or its end.
    fn last_in_slice(&mut self, point: Point, limit: Option<u64>, stops: &Stops) -> Result<Option<(Spot, Why)>> {
        self.go_to_point(point)?;
        self.timeline_mut().checkpoint()?;
        let mut found = None;
        let mut before = self.values(stops);
        loop {
            let spot = self.spot();
            if limit.is_some_and(|limit| spot.steps >= limit) {
                return Ok(found);
            }
            if let Some(address) = self.breakpoint_here(stops)? {
                found = Some((spot, Why::Breakpoint(address)));
            }
            let step = self.step()?;
            let now = self.values(stops);
            if let Some(address) = changed(stops, &before, &now) {
                let unseen = step != Step::Instruction && !(step == Step::Point && self.is_executed(point));
                found = Some((spot, Why::Watch { address, unseen }));
            }
            if matches!(step, Step::Point | Step::End) {
                return Ok(found);
            }
            before = now;
        }
    }

    /// One step back. `None`: the recording begins here.
    pub fn step_back(&mut self) -> Result<Option<Step>> {
        let here = self.spot();
        if here.steps > 0 {
            self.go(Spot {
                steps: here.steps - 1,
                ..here
            })?;
            return Ok(Some(Step::Instruction));
        }
        let Some(point) = self.point_before(here.point)? else {
            return Ok(None);
        };
        self.go_to_point(point)?;
        self.timeline_mut().checkpoint()?;
        let mut last = self.spot();
        while !matches!(self.step()?, Step::Point | Step::End) {
            last = self.spot();
        }
        self.go(last)?;
        Ok(Some(Step::Point))
    }

    /// The point before another one.
    fn point_before(&mut self, point: Point) -> Result<Option<Point>> {
        if let Some(turn) = point.turn.checked_sub(1) {
            return Ok(Some(Point { turn, ..point }));
        }
        let Some(lower) = self.timeline().checkpoint_before(point) else {
            return Ok(None);
        };
        self.go_to_point(lower)?;
        let mut last = lower;
        while self.timeline_mut().advance(Trace::default())? == Advance::Turn {
            let here = self.timeline().point();
            if here >= point {
                break;
            }
            last = here;
        }
        self.arrived();
        Ok(Some(last))
    }
}

fn changed(stops: &Stops, before: &Values, now: &Values) -> Option<u64> {
    let pairs = before.iter().zip(now);
    let index = pairs.enumerate().find(|(_, (before, now))| before != now)?.0;
    Some(stops.watches[index].address)
}
