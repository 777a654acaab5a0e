//! How far a replay goes, and when it is there.

use anyhow::Result;
use lockstep_replay::Replayer;
use lockstep_replay::replayer::Pause;
use lockstep_vmm::machine::{Flow, Machine};

use super::Point;
use crate::position::Position;

/// How far a replay is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// To this point, or the first one after it.
    Point(Point),
    /// To the first point with this guest time, in nanoseconds, or a later one.
    Time(u64),
    /// To the log's end.
    End,
}

impl From<Position> for Goal {
    fn from(position: Position) -> Self {
        match position {
            Position::Stop(stop) => Self::Point(Point::at(stop)),
            Position::Time(time) => Self::Time(time),
            Position::End => Self::End,
        }
    }
}

/// Why a replay stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// It is where it was to go.
    Goal,
    /// The log ends here.
    End,
    /// The one who watched wanted it.
    Interrupted,
}

/// Where a replay stands.
pub fn point(machine: &Machine, replayer: &Replayer) -> Point {
    Point {
        stop: machine.stop(),
        turn: replayer.further_turns(),
    }
}

impl Goal {
    /// Tells the replayer where to let go. `Some`: the goal is reached before anything runs.
    pub fn begin(self, machine: &Machine, replayer: &mut Replayer) -> Option<Reached> {
        let there = match self {
            Self::Point(goal) => point(machine, replayer) >= goal,
            Self::Time(time) => machine.now().ns() >= time,
            Self::End => false,
        };
        if there {
            return Some(Reached::Goal);
        }
        if replayer.is_at_end() {
            return Some(if self == Self::End { Reached::Goal } else { Reached::End });
        }
        replayer.pause(match self {
            // The turns after a stop's own are counted one by one.
            Self::Point(goal) if goal.turn == 0 => Pause::At(goal.stop),
            Self::Point(_) | Self::Time(_) => Pause::EveryTurn,
            Self::End => Pause::Never,
        });
        None
    }

    /// Replays one step, of a whole halt or of one turn. `Some`: this is it.
    pub fn step(self, machine: &mut Machine, replayer: &mut Replayer) -> Result<Option<Reached>> {
        let before = point(machine, replayer);
        let flow = match machine.step(replayer) {
            Ok(flow) => flow,
            Err(error) => return Err(replayer.explain(machine, error).into()),
        };
        if flow == Flow::Continue {
            return Ok(None);
        }
        let here = point(machine, replayer);
        let there = match self {
            Self::Point(goal) => here >= goal,
            Self::Time(time) => machine.now().ns() >= time,
            Self::End => replayer.is_at_end(),
        };
        Ok(if there {
            Some(Reached::Goal)
        } else if here == before || replayer.is_at_end() {
            Some(Reached::End)
        } else {
            None
        })
    }
}

/// Replays straight to a goal; `watch` is told after each step.
pub fn straight(
    goal: Goal,
    machine: &mut Machine,
    replayer: &mut Replayer,
    watch: &mut dyn FnMut(&Machine),
) -> Result<Reached> {
    let mut reached = goal.begin(machine, replayer);
    loop {
        if let Some(reached) = reached {
            return Ok(reached);
        }
        reached = goal.step(machine, replayer)?;
        watch(machine);
    }
}
