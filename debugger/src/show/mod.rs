//! `lockstep-debug show`: the machine as it was at a position.

pub mod code;
pub mod kernel;
pub mod layout;
pub mod memory;
pub mod tasks;
pub mod text;
pub mod view;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use kernel::Kernel;
use lockstep_node::{say, say_on};
use lockstep_proto::Identity;
use lockstep_proto::quantity::StopNumber;
use memory::Place;
use serde_json::{Value, json};
use tasks::Task;
use view::View;

use crate::Recording;
use crate::files::FilesOptions;
use crate::place::{self, help};
use crate::position::Position;
use crate::replay::{bar, hex};
use crate::timeline::{Goal, Reached, Timeline, TimelineOptions};
use crate::vmlinux::Vmlinux;

#[derive(Args)]
pub struct ShowOptions {
    #[command(flatten)]
    recording: Recording,
    #[arg(long, value_name = "POSITION", required = true, allow_hyphen_values = true, help = help("Where; can be given several times, in any order"))]
    at: Vec<place::Place>,
    /// The recorded kernel's vmlinux, for symbols and tasks. Without it, the one that is found by its name or its build id.
    #[arg(long, value_name = "FILE")]
    vmlinux: Option<PathBuf>,
    /// Show LEN bytes of memory at ADDR: a virtual address as ring 0 sees it, or `phys:` and a physical one. Can be given
    /// several times.
    #[arg(long, num_args = 2, value_names = ["ADDR", "LEN"])]
    mem: Vec<String>,
    /// List the processes of a Linux guest.
    #[arg(long)]
    tasks: bool,
    /// Show the state of the devices.
    #[arg(long)]
    devices: bool,
    /// Tell a digest of registers, devices, memory and disks: equal states have equal digests.
    #[arg(long)]
    digest: bool,
    /// One JSON object for each position.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    files: FilesOptions,
    #[command(flatten)]
    timeline: TimelineOptions,
}

pub fn run(options: &ShowOptions) -> Result<ExitCode> {
    let places: Vec<(Place, usize)> = options
        .mem
        .chunks(2)
        .map(|pair| Ok((pair[0].parse()?, memory::length(&pair[1])?)))
        .collect::<Result<_>>()?;
    options.files.check(options.at.len())?;
    let (directory, positions) = options.recording.at(&options.at)?;
    let mut timeline = Timeline::open(&directory, &options.timeline)?;
    if options.files.are_wanted() {
        let disk = options.files.disk(timeline.machine().config().disks.len())?;
        for position in positions {
            go(&mut timeline, position, options.json)?;
            options.files.show(timeline.disk(disk)?, options.json)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let kernel = kernel(options.vmlinux.as_deref(), timeline.identity())?;
    if options.tasks && kernel.is_none() {
        bail!("tasks need the DWARF of the guest's kernel: give its vmlinux with --vmlinux");
    }
    for position in positions {
        let begin = Instant::now();
        go(&mut timeline, position, options.json)?;
        let seek = begin.elapsed();
        let digest = if options.digest {
            Some(hex(&timeline.digest()?))
        } else {
            None
        };
        let (count, memory, file) = timeline.checkpoints();
        let mut shown = Shown::of(&mut timeline, kernel.as_ref(), &places, options)?;
        shown.digest = digest;
        if options.json {
            let mut value = shown.json(kernel.as_ref());
            value["seek_seconds"] = json!(seek.as_secs_f64());
            value["checkpoints"] = json!(count);
            value["checkpoint_bytes"] = json!(memory);
            value["checkpoint_file_bytes"] = json!(file);
            say!("{value}");
        } else {
            say_on!("{}", shown.text(kernel.as_ref()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The recorded kernel: the one that was given, else the one that is found.
pub fn kernel(given: Option<&Path>, identity: &Identity) -> Result<Option<Kernel>> {
    let found = Vmlinux::find(given, identity)?;
    found.map(|vmlinux| Kernel::of(&vmlinux, identity)).transpose()
}

/// What is shown of one position.
struct Shown {
    stop: StopNumber,
    turn: u32,
    guest_ns: u64,
    halted: bool,
    registers: Vec<(&'static str, u64)>,
    control: Vec<(&'static str, u64)>,
    is_user: bool,
    code: Vec<code::Line>,
    stack: Vec<u64>,
    current: Option<Result<Task, String>>,
    tasks: Option<Vec<Task>>,
    memory: Vec<memory::Dump>,
    devices: Option<String>,
    digest: Option<String>,
}

impl Shown {
    fn of(
        timeline: &mut Timeline,
        kernel: Option<&Kernel>,
        places: &[(Place, usize)],
        options: &ShowOptions,
    ) -> Result<Self> {
        let point = timeline.point();
        let present = timeline.machine_mut().present_registers()?;
        let machine = timeline.machine();
        let view = View::of(machine, present);
        if let Some(kernel) = kernel {
            kernel.check(&view)?;
        }
        let tasks = match kernel {
            Some(kernel) if options.tasks => Some(tasks::list(&view, kernel).context("the list of tasks")?),
            _ => None,
        };
        Ok(Self {
            stop: point.stop,
            turn: point.turn,
            guest_ns: machine.now().ns(),
            halted: machine.is_halted(),
            registers: text::registers(&view.regs),
            control: text::control(&view.sregs),
            is_user: view.is_user(),
            code: code::disassemble(&view, kernel),
            stack: code::stack(&view, kernel),
            current: kernel.map(|kernel| tasks::current(&view, kernel).map_err(|error| format!("{error:#}"))),
            tasks,
            memory: places
                .iter()
                .map(|(place, length)| memory::Dump::of(&view, *place, *length))
                .collect(),
            devices: options.devices.then(|| format!("{:#?}", machine.devices())),
            digest: None,
        })
    }

    fn json(&self, kernel: Option<&Kernel>) -> Value {
        let hexes = |list: &[(&'static str, u64)]| -> Value {
            let pairs = list
                .iter()
                .map(|(name, value)| ((*name).to_owned(), json!(format!("{value:#x}"))));
            Value::Object(pairs.collect())
        };
        let task = |task: &Task| {
            json!({
                "address": format!("{:#x}", task.address),
                "pid": task.pid,
                "tgid": task.tgid,
                "parent": task.parent,
                "comm": task.comm,
                "state": task.state,
                "kernel_thread": task.is_kernel_thread,
            })
        };
        json!({
            "stop": self.stop.get(),
            "turn": self.turn,
            "guest_ns": self.guest_ns,
            "halted": self.halted,
            "ring": if self.is_user { 3 } else { 0 },
            "registers": hexes(&self.registers),
            "control": hexes(&self.control),
            "code": self.code.iter().map(|line| json!({
                "address": format!("{:#x}", line.address),
                "symbol": text::name(kernel, line.address),
                "bytes": hex(&line.bytes),
                "text": line.text,
            })).collect::<Vec<_>>(),
            "stack_by_frame_pointers": self.stack.iter().map(|address| json!({
                "address": format!("{address:#x}"),
                "symbol": text::name(kernel, *address),
            })).collect::<Vec<_>>(),
            "current": self.current.as_ref().map(|current| match current {
                Ok(current) => task(current),
                Err(why) => json!({ "unknown": why }),
            }),
            "tasks": self.tasks.as_ref().map(|tasks| tasks.iter().map(task).collect::<Vec<_>>()),
            "memory": self.memory.iter().map(memory::Dump::json).collect::<Vec<_>>(),
            "devices": self.devices,
            "digest": self.digest,
        })
    }
}

/// Takes the timeline to a position, which must be in the recording.
pub fn go(timeline: &mut Timeline, position: Position, quiet: bool) -> Result<()> {
    let (from, to) = match position {
        Position::Stop(stop) if stop < timeline.start().stop => {
            bail!(
                "{position} is not in this recording: it begins at stop {}",
                timeline.start().stop
            )
        }
        Position::Time(time) if time < timeline.start_time() => {
            bail!(
                "{position} is not in this recording: it begins at {} of guest time",
                Position::Time(timeline.start_time())
            )
        }
        Position::Stop(stop) => (timeline.start().stop, stop),
        _ => (StopNumber::START, StopNumber::START),
    };
    let bar = bar(to.since(from), quiet || to == from);
    let reached = timeline.seek(Goal::from(position), &mut |timeline| {
        bar.set_position(timeline.point().stop.since(from));
        true
    })?;
    bar.finish_and_clear();
    if reached == Reached::End && position != Position::End {
        bail!(
            "{position} is not in this recording: it ends at stop {} and {} of guest time",
            timeline.point().stop,
            Position::Time(timeline.machine().now().ns())
        );
    }
    Ok(())
}
