//! `lockstep-debug strace`: the guest's system calls, as strace(1) tells them.
//!
//! They are seen in the kernel, where it dispatches a call and where it goes back to the program: on hosts without VMX and
//! SVM a call comes in as a page fault, and is dispatched there all the same.

mod decode;
mod flags;
mod lines;
mod memory;
mod structs;
mod summary;
mod table;

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use lockstep_vmm::machine::Machine;

use crate::asked::{Asked, Here, Stretch, current, require_stops};
use crate::dwarf::{self, Entry, Parameter};
use crate::hits::{Event, Hits};
use crate::show::kernel::Kernel;
use crate::show::tasks::Task;
use crate::show::view::View;
use crate::timeline::read_virtual;
use decode::Call;
use lines::{Lines, Made, Output, Unseen};
use memory::Memory;
use summary::Summary;

/// Where the kernel dispatches a system call, and where each goes back to its program: both get the program's registers.
const DISPATCH: &str = "do_syscall_64";
const GOES_BACK: &str = "syscall_exit_to_user_mode";
/// Calls that are open: one a task.
const MOST_OPEN: usize = 65_536;
/// `struct pt_regs`: R10, R9, R8, RAX, RDX, RSI, RDI, the number of the call, RIP, CS and RSP.
const R10: u64 = 56;
const R9: u64 = 64;
const R8: u64 = 72;
const RAX: u64 = 80;
const RDX: u64 = 96;
const RSI: u64 = 104;
const RDI: u64 = 112;
const NUMBER: u64 = 120;
const IP: u64 = 128;
const CS: u64 = 136;
const SP: u64 = 152;

#[derive(Args)]
pub struct StraceOptions {
    #[command(flatten)]
    asked: Asked,
    /// Only the calls of this process (of all of its threads) or this thread.
    #[arg(long, value_name = "N")]
    pid: Option<u32>,
    /// Only the calls of tasks that have this name when they make them.
    #[arg(long, value_name = "NAME")]
    task: Option<String>,
    /// Count calls, errors and guest time instead of listing them.
    #[arg(short = 'c', long)]
    summary: bool,
}

impl StraceOptions {
    fn wants(&self, task: &Task) -> bool {
        self.pid.is_none_or(|pid| task.pid == pid || task.tgid == pid)
            && self.task.as_ref().is_none_or(|name| task.comm == *name)
    }
}

/// A machine's memory as its kernel sees it.
struct Guest<'a>(&'a View<'a>);

impl Memory for Guest<'_> {
    fn read(&self, address: u64, data: &mut [u8]) -> usize {
        read_virtual(self.0.ram, &self.0.sregs, address, data)
    }
}

/// A function of the kernel that is given `struct pt_regs`.
struct Gate {
    address: u64,
    /// Which of its parameters that is; without DWARF the first.
    registers: Option<Parameter>,
}

impl Gate {
    fn of(kernel: &Kernel, name: &str) -> Result<Self> {
        let address = kernel.symbol(name).with_context(|| {
            format!(
                "{} has no function `{name}`, where system calls are seen: kernels from 5.10 on have it",
                kernel.path().display()
            )
        })?;
        let parameters = dwarf::function(kernel.path(), address)?.map(|function| function.parameters);
        let registers = parameters
            .into_iter()
            .flatten()
            .find(|parameter| parameter.typed.name == "struct pt_regs *");
        Ok(Self { address, registers })
    }

    /// Where the program's registers are.
    fn registers(&self, view: &View<'_>, kernel: &Kernel) -> Option<u64> {
        match &self.registers {
            Some(Parameter {
                typed,
                place: Some(place),
                ..
            }) => Entry { view, kernel }.value(typed, Some(place)).bits,
            _ => Some(view.regs.rdi),
        }
    }
}

pub fn run(options: &StraceOptions) -> Result<ExitCode> {
    require_stops()?;
    let stretch = options.asked.open()?;
    let (dispatch, goes_back) = {
        let kernel = stretch.kernel()?;
        (Gate::of(kernel, DISPATCH)?, Gate::of(kernel, GOES_BACK)?)
    };
    let Stretch { walker, to, kernel } = stretch;
    let kernel = kernel.context("the kernel was there")?;
    let mut hits = Hits::new(walker, to);
    hits.stop_at(vec![dispatch.address, goes_back.address])?;
    let mut search = Search {
        options,
        hits,
        kernel: &kernel,
        open: HashMap::new(),
        carried: 0,
        output: match (options.summary, options.asked.json) {
            (true, is_json) => Output::Summary(Summary::new(is_json)),
            (false, true) => Output::Json,
            (false, false) => Output::Text(Lines::default()),
        },
    };
    loop {
        match search.hits.next()? {
            Event::Hit(rip) if rip == dispatch.address => search.enter(&dispatch)?,
            Event::Hit(_) => search.leave(&goes_back)?,
            Event::Carried(carried) => {
                search.carried += 1;
                search.output.carried(&carried);
            }
            Event::End => break,
        }
    }
    search.end();
    Ok(ExitCode::SUCCESS)
}

struct Search<'a> {
    options: &'a StraceOptions,
    hits: Hits,
    kernel: &'a Kernel,
    /// By the address of the task that has made it.
    open: HashMap<u64, Made>,
    /// Stretches that were carried by now.
    carried: u64,
    output: Output,
}

impl Search<'_> {
    /// The task that runs, if it is one of those that are wanted.
    fn task(&mut self) -> Result<Option<Task>> {
        let task = current(self.hits.walker(), Some(self.kernel))?;
        Ok(task.filter(|task| self.options.wants(task)))
    }

    /// The guest dispatches a call.
    fn enter(&mut self, gate: &Gate) -> Result<()> {
        let at = self.hits.here();
        let Some(task) = self.task()? else { return Ok(()) };
        let (machine, kernel) = (machine(&mut self.hits), self.kernel);
        let present = machine.present_registers()?;
        let view = View::of(machine, present);
        let registers = gate.registers(&view, kernel);
        let Some((call, place)) = registers.and_then(|registers| call(&view, registers)) else {
            return Ok(());
        };
        let memory = Guest(&view);
        let made = Made {
            at,
            shown: call.begin(&memory),
            call,
            place,
            carried: self.carried,
            task,
        };
        let key = made.task.address;
        if let Some(before) = self.open.remove(&key) {
            self.unseen(&before, at);
        }
        self.output.begins(&made);
        if !made.call.is_exit() && self.open.len() < MOST_OPEN {
            self.open.insert(key, made);
        }
        Ok(())
    }

    /// The guest goes back to a program.
    fn leave(&mut self, gate: &Gate) -> Result<()> {
        let at = self.hits.here();
        let Some(task) = self.task()? else { return Ok(()) };
        // A new task goes back without a call of its own.
        let Some(mut made) = self.open.remove(&task.address) else {
            return Ok(());
        };
        let (machine, kernel) = (machine(&mut self.hits), self.kernel);
        let present = machine.present_registers()?;
        let view = View::of(machine, present);
        let Some(registers) = gate.registers(&view, kernel) else {
            return Ok(());
        };
        let Ok(result) = view.word(registers.wrapping_add(RAX)) else {
            return Ok(());
        };
        // After a stretch that was carried it may be another call's return: then the program stands elsewhere, or calls otherwise.
        let is_same = || call(&view, registers) == Some((made.call, made.place));
        if made.carried != self.carried && !is_same() {
            self.unseen(&made, at);
            return Ok(());
        }
        let result = result.cast_signed();
        let memory = Guest(&view);
        let rest = made.call.end(result, &memory);
        let text = made.call.result(result, &memory);
        let from = made.shown.len();
        made.shown.extend(rest);
        self.output.ends(&made, from, at, result, &text);
        Ok(())
    }

    fn unseen(&mut self, made: &Made, at: Here) {
        let why = if made.carried == self.carried {
            Unseen::Lost
        } else {
            Unseen::Carried
        };
        self.output.unseen(made, at, why);
    }

    fn end(mut self) {
        let mut open: Vec<_> = self.open.into_values().collect();
        open.sort_by_key(|made| (made.at.point, made.task.pid));
        for made in open {
            self.output.unfinished(&made);
        }
        self.output.end();
    }
}

fn machine(hits: &mut Hits) -> &mut Machine {
    hits.walker().timeline_mut().machine_mut()
}

/// The call that a program's registers make, and where the program stands: RIP and RSP.
fn call(view: &View<'_>, registers: u64) -> Option<(Call, (u64, u64))> {
    let word = |at: u64| view.word(registers.wrapping_add(at)).ok();
    if word(CS)? & 3 != 3 {
        return None;
    }
    let mut arguments = [0; 6];
    for (argument, at) in arguments.iter_mut().zip([RDI, RSI, RDX, R10, R8, R9]) {
        *argument = word(at)?;
    }
    let call = Call {
        // The kernel takes it as 32 bits.
        number: u64::from(word(NUMBER)? as u32),
        arguments,
    };
    Some((call, (word(IP)?, word(SP)?)))
}
