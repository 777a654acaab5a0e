//! A replay that is sampled: which turns are looked at, and what time their samples stand for.
//!
//! A tick of a stretch that ended in HLT is idle time. One that a delta carried has the state at the delta's end. Every other one
//! has the state at the first natural stop at or after it.

use anyhow::{Result, ensure};
use lockstep_proto::quantity::StopNumber;

use super::facts::Facts;
use super::moments::{Moment, Moments};
use super::stacks::{Frame, Stack, Stacks, Task, Weight};
use super::ticks::{Stretch, Ticks, overlap};
use crate::position::Position;

/// A turn, as far as time is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The natural stop, or the one before it.
    pub stop: StopNumber,
    /// Guest time after it.
    pub guest_ns: u64,
    /// It sampled the clock.
    pub has_clock: bool,
    /// A delta carried the machine there.
    pub is_forced: bool,
    /// The guest waited in HLT up to here.
    pub was_halted: bool,
}

/// Looks at the machine where it stands.
pub trait Look {
    /// The task that runs.
    fn task(&mut self) -> Result<Task>;
    /// That and the stack, the outermost frame first.
    fn sample(&mut self) -> Result<(Task, Vec<Frame>)>;
}

/// What to sample.
pub struct Wanted {
    /// Where it begins.
    pub from: Position,
    /// Where it ends, included.
    pub to: Position,
    /// In a second.
    pub rate: u32,
    /// Names and numbers of tasks; none: all.
    pub tasks: Vec<String>,
    /// When each sample was, too.
    pub moments: bool,
}

impl Wanted {
    fn has(&self, task: &Task) -> bool {
        let is = |name: &String| *name == task.comm || name.parse() == Ok(task.pid);
        self.tasks.is_empty() || self.tasks.iter().any(is)
    }
}

/// Samples that are not counted yet.
struct Pending {
    /// How many ticks came before the first of them.
    first: u64,
    stack: Stack,
    weight: Weight,
}

/// A profile that is being made, with the stretches of its log.
pub struct Course<I> {
    wanted: Wanted,
    stretches: I,
    now: Option<Stretch>,
    /// From where it begins on.
    ticks: Option<Ticks>,
    /// Samples of this stretch: its end says what it was.
    pending: Vec<Pending>,
    /// The task at the beginning of the slice that a delta carries next.
    before: Option<Task>,
    is_over: bool,
    facts: Facts,
    stacks: Stacks,
    moments: Moments,
}

impl<I: Iterator<Item = Result<Stretch>>> Course<I> {
    /// Of a recording that begins at this guest time.
    pub fn new(wanted: Wanted, start_ns: u64, mut stretches: I) -> Result<Self> {
        let from_ns = match wanted.from {
            Position::Time(ns) => Some(ns.max(start_ns)),
            Position::Stop(StopNumber::START) => Some(start_ns),
            Position::Stop(_) | Position::End => None,
        };
        Ok(Self {
            now: stretches.next().transpose()?,
            ticks: from_ns.map(|ns| Ticks::from(ns, wanted.rate)),
            facts: Facts {
                from_ns: from_ns.unwrap_or(start_ns),
                to_ns: from_ns.unwrap_or(start_ns),
                rate: wanted.rate,
                ..Facts::default()
            },
            wanted,
            stretches,
            pending: Vec::new(),
            before: None,
            is_over: false,
            stacks: Stacks::default(),
            moments: Moments::default(),
        })
    }

    /// Whether all that was wanted is there.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.ticks.is_some() && self.facts.to_ns > self.facts.from_ns
    }

    /// What was sampled.
    pub fn end(self) -> (Facts, Stacks, Moments) {
        (self.facts, self.stacks, self.moments)
    }

    /// The turns of one step were taken; the machine stands after the last of them.
    pub fn step(&mut self, events: &[Event], look: &mut dyn Look) -> Result<()> {
        for event in events {
            if self.is_over {
                return Ok(());
            }
            self.event(event, look)?;
        }
        let carries = |stretch: &Stretch| {
            let stop = events.last().map(|event| event.stop);
            stretch.carried.is_some() && Some(stretch.to_stop) == stop
        };
        let is_next = self.now.as_ref().is_some_and(carries) && self.is_within();
        self.before = if is_next { Some(look.task()?) } else { None };
        Ok(())
    }

    /// Whether ticks of this stretch are wanted.
    fn is_within(&self) -> bool {
        self.ticks.is_some() && self.now.is_some_and(|stretch| stretch.to_ns > self.facts.from_ns)
    }

    fn event(&mut self, event: &Event, look: &mut dyn Look) -> Result<()> {
        // After the last sample of the clock no time passes.
        let Some(stretch) = self.now else { return Ok(()) };
        if let Position::Stop(last) = self.wanted.to
            && event.stop > last
        {
            let end = if event.was_halted {
                stretch.from_ns
            } else {
                stretch.time_at(last)
            };
            self.settle(&stretch, end, false)?;
            self.is_over = true;
            return Ok(());
        }
        if event.has_clock {
            ensure!(
                (event.stop, event.guest_ns) == (stretch.to_stop, stretch.to_ns),
                "the log is not what was replayed: it samples the clock at stop {}, and the replay at stop {}",
                stretch.to_stop,
                event.stop
            );
            self.clock(event, &stretch, look)?;
            self.now = self.stretches.next().transpose()?;
        } else if !event.is_forced {
            self.take(stretch.time_at(event.stop), false, look)?;
        }
        let begins = matches!(self.wanted.from, Position::Stop(from) if event.stop >= from);
        if begins && self.ticks.is_none() {
            let at = if event.has_clock {
                event.guest_ns
            } else {
                stretch.time_at(event.stop)
            };
            self.ticks = Some(Ticks::from(at, self.wanted.rate));
            (self.facts.from_ns, self.facts.to_ns) = (at, at);
        }
        Ok(())
    }

    /// A stretch ends.
    fn clock(&mut self, event: &Event, stretch: &Stretch, look: &mut dyn Look) -> Result<()> {
        let limit = match self.wanted.to {
            Position::Time(ns) => ns,
            _ => u64::MAX,
        };
        let end = stretch.to_ns.min(limit);
        if event.was_halted {
            // What had no sample of the clock of its own before it is short, and cannot be told from it.
            let pending = std::mem::take(&mut self.pending);
            let ticks = self.ticks.as_mut().map_or(0, |ticks| ticks.take(end));
            let before: u64 = pending.iter().map(|pending| pending.weight.samples).sum();
            self.facts.idle = self.facts.idle.saturating_add(ticks).saturating_add(before);
        } else {
            self.take(end, event.is_forced, look)?;
            if let Some(before) = self.before.take()
                && before != look.task()?
            {
                self.facts.switched_ns += overlap(self.facts.from_ns, end, stretch.carried_from(), stretch.to_ns);
            }
        }
        self.settle(stretch, end, event.was_halted)?;
        self.is_over |= stretch.to_ns >= limit;
        Ok(())
    }

    /// Ticks up to `ns` have the state that the machine is in.
    fn take(&mut self, ns: u64, is_carried: bool, look: &mut dyn Look) -> Result<()> {
        let limit = match self.wanted.to {
            Position::Time(limit) => limit,
            _ => u64::MAX,
        };
        let Some(ticks) = &mut self.ticks else { return Ok(()) };
        let first = ticks.taken();
        let samples = ticks.take(ns.min(limit));
        if samples == 0 {
            return Ok(());
        }
        let (task, frames) = look.sample()?;
        let weight = Weight {
            samples,
            carried: if is_carried { samples } else { 0 },
        };
        if !self.wanted.has(&task) {
            self.facts.others.add(weight);
            return Ok(());
        }
        let frames = frames.into_iter().map(|frame| self.stacks.number(frame)).collect();
        let stack = Stack { task, frames };
        match self.pending.last_mut() {
            Some(last) if last.stack == stack && last.first + last.weight.samples == first => last.weight.add(weight),
            _ => self.pending.push(Pending { first, stack, weight }),
        }
        Ok(())
    }

    /// Counts a stretch up to `end`, and what was sampled in it.
    fn settle(&mut self, stretch: &Stretch, end: u64, is_idle: bool) -> Result<()> {
        for Pending { first, stack, weight } in self.pending.drain(..) {
            let stack = self.stacks.add(stack, weight);
            if self.wanted.moments {
                self.moments.add(Moment { first, stack, weight })?;
            }
        }
        if self.ticks.is_none() {
            return Ok(());
        }
        let within = |from: u64, to: u64| overlap(self.facts.from_ns, end, from, to);
        let carried_from = stretch.carried_from();
        if is_idle {
            self.facts.idle_ns += within(stretch.from_ns, stretch.to_ns);
        } else {
            self.facts.replayed_ns += within(stretch.from_ns, carried_from);
            self.facts.carried_ns += within(carried_from, stretch.to_ns);
        }
        self.facts.to_ns = self.facts.to_ns.max(end);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A machine in which each stop has a task.
    struct Scripted {
        at: StopNumber,
        forced: bool,
        looked: Vec<u64>,
    }

    impl Look for Scripted {
        fn task(&mut self) -> Result<Task> {
            let comm = if self.forced { "spin" } else { "shell" };
            Ok(Task {
                comm: comm.into(),
                pid: 1,
            })
        }

        fn sample(&mut self) -> Result<(Task, Vec<Frame>)> {
            self.looked.push(self.at.get());
            let name = format!("at {}", self.at);
            Ok((self.task()?, vec![Frame::user(Some(&name), "/bin/x", 0)]))
        }
    }

    fn event(stop: u64, ms: u64, has_clock: bool) -> Event {
        Event {
            stop: StopNumber::new(stop),
            guest_ns: ms * MS,
            has_clock,
            is_forced: false,
            was_halted: false,
        }
    }

    fn stretch(from: (u64, u64), to: (u64, u64), carried: Option<u64>) -> Stretch {
        Stretch {
            from_stop: StopNumber::new(from.0),
            from_ns: from.1 * MS,
            to_stop: StopNumber::new(to.0),
            to_ns: to.1 * MS,
            carried: carried.map(|ms| ms * MS),
        }
    }

    /// Ten stops in 10 ms of which the last samples the clock, 10 ms in HLT, a delta of 8 ms in 10, and 10 ms to one stop.
    fn script() -> (Vec<Stretch>, Vec<Event>) {
        let stretches = vec![
            stretch((0, 0), (10, 10), None),
            stretch((10, 10), (11, 20), None),
            stretch((11, 20), (12, 30), Some(8)),
            stretch((12, 30), (13, 40), None),
        ];
        let mut events: Vec<_> = (1..=9).map(|stop| event(stop, 0, false)).collect();
        events.push(event(10, 10, true));
        events.push(Event {
            was_halted: true,
            ..event(11, 20, true)
        });
        events.push(event(12, 20, false));
        events.push(Event {
            is_forced: true,
            ..event(12, 30, true)
        });
        events.push(event(13, 40, true));
        (stretches, events)
    }

    fn run(from: Position, to: Position, tasks: &[&str]) -> (Facts, Vec<(String, Weight)>) {
        let (stretches, events) = script();
        let wanted = Wanted {
            from,
            to,
            rate: 1000,
            tasks: tasks.iter().map(|name| (*name).to_owned()).collect(),
            moments: true,
        };
        let mut course = Course::new(wanted, 0, stretches.into_iter().map(Ok)).unwrap();
        let mut look = Scripted {
            at: StopNumber::START,
            forced: false,
            looked: Vec::new(),
        };
        for event in events {
            (look.at, look.forced) = (event.stop, event.is_forced);
            course.step(&[event], &mut look).unwrap();
        }
        let (facts, stacks, moments) = course.end();
        check_moments(&facts, &stacks, &moments);
        let rows = stacks.iter().map(|(stack, weight)| {
            let frame = stack.frames.iter().map(|number| stacks.frame(*number).name.clone());
            (frame.collect::<Vec<_>>().join(";"), weight)
        });
        (facts, rows.collect())
    }

    /// Moments are in order, no tick is in two, and by stacks they are what was counted.
    fn check_moments(facts: &Facts, stacks: &Stacks, moments: &Moments) {
        let mut next = 0;
        let mut sums = vec![Weight::default(); stacks.by_number().len()];
        for Moment { first, stack, weight } in moments.iter() {
            assert!(*first >= next && weight.samples > 0, "{moments:?}");
            next = first + weight.samples;
            sums[*stack as usize].add(*weight);
        }
        assert!(facts.tick_ns(next) <= facts.span_ns(), "{moments:?}");
        let by_number = stacks.by_number();
        for (stack, weight) in stacks.iter() {
            let number = by_number.iter().position(|other| *other == stack);
            assert_eq!(number.map(|number| sums[number]), Some(weight));
        }
    }

    fn whole() -> Position {
        Position::Stop(StopNumber::START)
    }

    #[test]
    fn each_tick_has_the_state_at_the_stop_after_it() {
        let (facts, rows) = run(whole(), Position::End, &[]);
        assert_eq!((facts.from_ns, facts.to_ns), (0, 40 * MS));
        assert_eq!(
            (facts.replayed_ns, facts.carried_ns, facts.idle_ns, facts.idle),
            (22 * MS, 8 * MS, 10 * MS, 10)
        );
        // The delta began in the shell, and ended in another task.
        assert_eq!(facts.switched_ns, 8 * MS);
        let weight = |name: &str| {
            let of = |row: &&(String, Weight)| row.0 == name;
            rows.iter()
                .filter(of)
                .fold((0, 0), |sum, row| (sum.0 + row.1.samples, sum.1 + row.1.carried))
        };
        for stop in 1..=10 {
            assert_eq!(weight(&format!("at {stop}")), (1, 0), "{rows:?}");
        }
        assert_eq!(weight("at 11"), (0, 0), "idle");
        assert_eq!(weight("at 12"), (10, 8), "two before the delta and its eight");
        assert_eq!(weight("at 13"), (10, 0));
    }

    #[test]
    fn the_parts_are_the_whole_wherever_the_ends_lie() {
        let stop = |number| Position::Stop(StopNumber::new(number));
        let time = |ms| Position::Time(ms * MS);
        let froms = [
            whole(),
            stop(3),
            stop(10),
            stop(11),
            time(0),
            time(3),
            time(15),
            time(24),
            time(35),
        ];
        for from in froms {
            for to in [
                stop(4),
                stop(10),
                stop(12),
                stop(13),
                time(5),
                time(12),
                time(26),
                time(40),
                Position::End,
            ] {
                let (facts, rows) = run(from, to, &[]);
                let parts = facts.replayed_ns + facts.carried_ns + facts.idle_ns;
                assert_eq!(parts, facts.span_ns(), "{from} to {to}: {facts:?}");
                let samples: u64 = rows.iter().map(|row| row.1.samples).sum();
                let ticks = facts.span_ns() / MS;
                assert_eq!(samples + facts.idle, ticks, "{from} to {to}: {facts:?} {rows:?}");
            }
        }
    }

    #[test]
    fn tasks_that_were_not_asked_for_are_counted_apart() {
        let (facts, rows) = run(whole(), Position::End, &["spin"]);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].1.samples, facts.others.samples), (8, 22));
        let (facts, _) = run(whole(), Position::End, &["1"]);
        assert_eq!(facts.others.samples, 0, "by its number");
    }

    #[test]
    fn another_log_than_the_replays_is_told() {
        let (stretches, _) = script();
        let wanted = Wanted {
            from: whole(),
            to: Position::End,
            rate: 1000,
            tasks: Vec::new(),
            moments: false,
        };
        let mut course = Course::new(wanted, 0, stretches.into_iter().map(Ok)).unwrap();
        let mut look = Scripted {
            at: StopNumber::START,
            forced: false,
            looked: Vec::new(),
        };
        let error = course.step(&[event(9, 9, true)], &mut look).unwrap_err().to_string();
        assert!(error.contains("stop 10") && error.contains("stop 9"), "{error}");
    }
}
