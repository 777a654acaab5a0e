//! What the commands have in common that ask a stretch of the past: which recording, from where to where, whose kernel.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use lockstep_node::out::one_line;
use lockstep_vmm::micro::Ring;
use lockstep_vmm::probe::bench::Lab;
use lockstep_vmm::probe::debugging;
use serde_json::{Value, json};

use crate::Recording;
use crate::place::{Place, help};
use crate::position::Position;
use crate::show::kernel::Kernel;
use crate::show::tasks::{self, Task};
use crate::show::view::View;
use crate::show::{go, kernel};
use crate::timeline::{Point, Timeline, TimelineOptions, Walker};

/// Time of one experiment with this host's KVM.
const LIMIT: Duration = Duration::from_millis(300);

/// Which stretch of which recording.
#[derive(Args)]
pub struct Asked {
    #[command(flatten)]
    recording: Recording,
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, help = help("Where it begins (the recording's start)"))]
    from: Option<Place>,
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, help = help("Where it ends, included"))]
    to: Option<Place>,
    /// The recorded kernel's vmlinux. Without it, the one that is found by its name or its build id.
    #[arg(long, value_name = "FILE")]
    vmlinux: Option<PathBuf>,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    timeline: TimelineOptions,
}

/// A stretch that was asked for: the machine stands where it begins.
pub struct Stretch {
    pub walker: Walker,
    pub to: Position,
    pub kernel: Option<Kernel>,
}

impl Asked {
    /// Opens the recording and goes to where the stretch begins.
    pub fn open(&self) -> Result<Stretch> {
        let places: Vec<_> = self.from.into_iter().chain(self.to).collect();
        let (directory, positions) = self.recording.at(&places)?;
        let from = self.from.and_then(|_| positions.first().copied());
        let to = self.to.and_then(|_| positions.last().copied());
        let mut timeline = Timeline::open(&directory, &self.timeline)?;
        let kernel = kernel(self.vmlinux.as_deref(), timeline.identity())?;
        if let Some(from) = from {
            go(&mut timeline, from, self.json)?;
        }
        if let Some(kernel) = &kernel {
            let present = timeline.machine_mut().present_registers()?;
            kernel.check(&View::of(timeline.machine(), present))?;
        }
        let walker = Walker::new(timeline);
        let (here, to) = (Here::at(&walker), to.unwrap_or(Position::End));
        ensure!(!here.is_after(to), "{to} lies before {here}, where it is to begin");
        Ok(Stretch { walker, to, kernel })
    }
}

impl Stretch {
    /// The guest's kernel, for a command that cannot do without.
    pub fn kernel(&self) -> Result<&Kernel> {
        let wanted = "this needs the symbols and the DWARF of the guest's kernel: give its vmlinux with --vmlinux";
        self.kernel.as_ref().context(wanted)
    }
}

/// Refuses where KVM does not stop the vCPU at every instruction of ring 0 that it is told to: what is asked would be found
/// in part, and look like all.
pub fn require_stops() -> Result<()> {
    // A thread of its own: a thread has one receiver of kicks, and this one runs the machine.
    let survey = || debugging::survey(&mut Lab::for_this_thread()?.bench()?, Ring::Kernel, LIMIT);
    let aids = thread::spawn(survey)
        .join()
        .map_err(|_| anyhow::anyhow!("the thread that looks at this host's KVM failed"))??;
    for (name, aid) in [("single steps", &aids.step), ("hardware breakpoints", &aids.hardware)] {
        ensure!(
            aid.works(),
            "this host's KVM has no {name} in ring 0 that can be relied on ({aid}): look on a host whose `lockstep-primary \
             probe` has `hardware breakpoint in ring 0` and `single-step in ring 0` exact"
        );
    }
    Ok(())
}

/// A place in a recording, as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Here {
    pub point: Point,
    /// Guest time, in nanoseconds.
    pub guest_ns: u64,
}

impl Here {
    /// Where a machine stands, or the point before.
    pub fn at(walker: &Walker) -> Self {
        let timeline = walker.timeline();
        Self {
            point: timeline.point(),
            guest_ns: timeline.machine().now().ns(),
        }
    }

    /// Whether it lies after the end of what was asked for.
    pub fn is_after(self, to: Position) -> bool {
        to.order_of(self.point.stop, self.guest_ns).is_gt()
    }

    /// Its members of a JSON object.
    pub fn json(self) -> Value {
        json!({
            "stop": self.point.stop.get(),
            "turn": self.point.turn,
            "guest_ns": self.guest_ns,
        })
    }

    /// `12.345678901`, seconds.
    pub fn seconds(self) -> String {
        seconds(self.guest_ns)
    }
}

impl std::fmt::Display for Here {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "stop {} and {} s of guest time", self.point.stop, self.seconds())
    }
}

fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// A stretch in which nothing was executed that could be looked at: a delta carried the machine through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    pub from: Here,
    pub to: Here,
}

impl Carried {
    /// What lies between two points next to each other, where a delta has carried the machine. A halted guest has further
    /// turns at a stop too.
    pub fn between(from: Here, to: Here, was_halted: bool) -> Option<Self> {
        (from.point.stop == to.point.stop && !was_halted).then_some(Self { from, to })
    }

    /// It and what follows it, where that begins where this one ends.
    pub fn and(self, next: Self) -> Option<Self> {
        (self.to == next.from).then_some(Self { to: next.to, ..self })
    }

    pub fn text(&self) -> String {
        format!(
            "{:>10}  {:>16}  carried by a delta up to {} s: no instruction was executed here",
            self.from.point.stop,
            self.from.seconds(),
            self.to.seconds()
        )
    }

    pub fn json(&self) -> Value {
        json!({ "carried": { "from": self.from.json(), "to": self.to.json() } })
    }
}

/// The task that runs where a machine stands, as far as its memory tells.
pub fn current(walker: &mut Walker, kernel: Option<&Kernel>) -> Result<Option<Task>> {
    let pointer = pointer(walker, kernel)?;
    task_at(walker, kernel, pointer)
}

/// Where the task that runs has its `task_struct`.
pub fn pointer(walker: &mut Walker, kernel: Option<&Kernel>) -> Result<Option<u64>> {
    with_view(walker, kernel, tasks::pointer)
}

/// The task at an address.
pub fn task_at(walker: &mut Walker, kernel: Option<&Kernel>, pointer: Option<u64>) -> Result<Option<Task>> {
    let Some(pointer) = pointer else { return Ok(None) };
    with_view(walker, kernel, |view, kernel| tasks::at(view, kernel, pointer))
}

/// What a guest's memory tells; before its kernel is there, it tells nothing.
fn with_view<T>(
    walker: &mut Walker,
    kernel: Option<&Kernel>,
    look: impl FnOnce(&View<'_>, &Kernel) -> Result<T>,
) -> Result<Option<T>> {
    let Some(kernel) = kernel else { return Ok(None) };
    let machine = walker.timeline_mut().machine_mut();
    let present = machine.present_registers()?;
    Ok(look(&View::of(machine, present), kernel).ok())
}

/// `init (1)`; a program chooses its name.
pub fn name(task: Option<&Task>) -> String {
    task.map_or_else(|| "?".into(), |task| format!("{} ({})", one_line(&task.comm), task.pid))
}

/// A task's members of a JSON object.
pub fn task_json(task: Option<&Task>) -> Value {
    task.map_or(
        Value::Null,
        |task| json!({ "comm": task.comm, "pid": task.pid, "tgid": task.tgid }),
    )
}

/// Warns where a recording ends before what was asked for.
pub fn warn_of_the_end(here: Here, to: Position) {
    if to != Position::End && to.order_of(here.point.stop, here.guest_ns).is_lt() {
        tracing::warn!("the log ends at {here}, before {to}");
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::quantity::StopNumber;

    use super::*;

    fn here(stop: u64, turn: u32, guest_ns: u64) -> Here {
        Here {
            point: Point {
                stop: StopNumber::new(stop),
                turn,
            },
            guest_ns,
        }
    }

    #[test]
    fn what_a_delta_carried_is_no_natural_stop_and_no_halt() {
        let (a, b, c) = (here(7, 0, 5), here(7, 1, 1_000_000_009), here(7, 2, 3_000_000_000));
        assert_eq!(Carried::between(a, here(8, 0, 6), false), None);
        assert_eq!(Carried::between(a, b, true), None);
        let first = Carried::between(a, b, false).unwrap();
        let both = first.and(Carried::between(b, c, false).unwrap()).unwrap();
        assert_eq!((both.from, both.to), (a, c));
        assert_eq!(both.and(first), None);
        assert!(
            first
                .text()
                .contains("0.000000005  carried by a delta up to 1.000000009 s")
        );
    }
}
