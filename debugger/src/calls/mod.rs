//! `lockstep-debug calls`: all calls of a function of the guest's kernel.

mod line;

use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use lockstep_node::tell;
use lockstep_vmm::machine::BREAKPOINTS;

use crate::asked::{Asked, Carried, Stretch, current, require_stops};
use crate::dwarf::{self, Entry, Function, Kind, Typed};
use crate::hits::{Event, Hits};
use crate::returns::{Open, Returns};
use crate::show::kernel::Kernel;
use crate::show::view::View;
use line::{Call, Lines, Outcome};

/// Addresses of ring 0.
const KERNEL_HALF: u64 = 1 << 63;

#[derive(Args)]
pub struct CallsOptions {
    #[command(flatten)]
    asked: Asked,
    /// A function of the guest's vmlinux, by its name, or by its address (0x...) where several have the name.
    #[arg(value_name = "FUNCTION")]
    function: String,
    /// End after so many calls.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

pub fn run(options: &CallsOptions) -> Result<ExitCode> {
    require_stops()?;
    let stretch = options.asked.open()?;
    let address = address(&options.function, stretch.kernel()?)?;
    let Stretch { walker, to, kernel } = stretch;
    let kernel = kernel.context("the kernel was there")?;
    let function = dwarf::function(kernel.path(), address)?;
    if function.is_none() {
        tell!("lockstep-debug: the DWARF of vmlinux does not tell of this function: arguments are not known");
    }
    let mut search = Search {
        hits: Hits::new(walker, to),
        address,
        function: function.as_ref(),
        kernel: &kernel,
        returns: Returns::new(),
        carried: 0,
        lines: Lines::begin(&options.function, options.asked.json),
        limit: options.limit.unwrap_or(u64::MAX),
    };
    search.run()
}

/// Where the function begins.
fn address(text: &str, kernel: &Kernel) -> Result<u64> {
    let number = text
        .strip_prefix("0x")
        .and_then(|digits| u64::from_str_radix(digits, 16).ok());
    if let Some(address) = number {
        ensure!(
            address >= KERNEL_HALF,
            "{address:#x} is in user code, where this host's breakpoints never fire"
        );
        return Ok(address);
    }
    let mut found: Vec<u64> = kernel
        .functions()
        .iter()
        .filter(|(_, name)| name == text)
        .map(|(address, _)| *address)
        .collect();
    found.dedup();
    match found[..] {
        [address] => Ok(address),
        [] => bail!(
            "{} has no function `{text}`: the compiler may have made it part of its callers, or of another name",
            kernel.path().display()
        ),
        _ => {
            let places: Vec<_> = found.iter().map(|address| format!("{address:#x}")).collect();
            bail!(
                "several functions have the name `{text}`: give the address, one of {}",
                places.join(", ")
            )
        }
    }
}

struct Search<'a> {
    hits: Hits,
    address: u64,
    function: Option<&'a Function>,
    kernel: &'a Kernel,
    returns: Returns<Call>,
    /// Stretches that were carried by now.
    carried: u64,
    lines: Lines,
    limit: u64,
}

impl Search<'_> {
    fn run(&mut self) -> Result<ExitCode> {
        loop {
            // One is the function's.
            let mut addresses = self.returns.watched(BREAKPOINTS - 1);
            addresses.push(self.address);
            self.hits.stop_at(addresses)?;
            match self.hits.next()? {
                Event::Hit(rip) if rip == self.address => self.enter()?,
                Event::Hit(rip) => self.leave(rip)?,
                Event::Carried(carried) => self.carry(&carried),
                Event::End => break,
            }
            if self.lines.count() >= self.limit {
                tell!("lockstep-debug: ended after {} calls, as asked by --limit", self.limit);
                return Ok(ExitCode::SUCCESS);
            }
        }
        for open in std::mem::replace(&mut self.returns, Returns::new()).into_open() {
            self.end_unseen(&open, "it has not returned by the end");
        }
        Ok(ExitCode::SUCCESS)
    }

    fn enter(&mut self) -> Result<()> {
        let at = self.hits.here();
        let walker = self.hits.walker();
        let task = current(walker, Some(self.kernel))?;
        let machine = walker.timeline_mut().machine_mut();
        let present = machine.present_registers()?;
        let view = View::of(machine, present);
        let slot = view.regs.rsp;
        let Ok(caller) = view.word(slot) else { return Ok(()) };
        let entry = Entry {
            view: &view,
            kernel: self.kernel,
        };
        let parameters = self.function.map_or(&[][..], |function| &function.parameters[..]);
        let arguments = parameters
            .iter()
            .map(|parameter| {
                let shown = entry.value(&parameter.typed, parameter.place.as_ref());
                (parameter.name.clone(), parameter.typed.name.clone(), shown)
            })
            .collect();
        let left = self.returns.enter(Open {
            task: task.as_ref().map_or(0, |task| task.address),
            slot,
            address: caller,
            was_unwatched: false,
            what: Call {
                at,
                task,
                arguments,
                caller: (
                    caller,
                    self.kernel
                        .function(caller)
                        .map(|(name, offset)| format!("{name}+{offset:#x}")),
                ),
                carried: self.carried,
            },
        });
        self.end_left(&left);
        Ok(())
    }

    fn leave(&mut self, rip: u64) -> Result<()> {
        let at = self.hits.here();
        let machine = self.hits.walker().timeline_mut().machine_mut();
        let present = machine.present_registers()?;
        let view = View::of(machine, present);
        let (returned, left) = self.returns.leave(rip, view.regs.rsp);
        let Some(open) = returned else { return Ok(()) };
        let unknown = Typed {
            name: "long".into(),
            kind: Kind::Signed(8),
        };
        let result = self.function.map_or(&unknown, |function| &function.result);
        let entry = Entry {
            view: &view,
            kernel: self.kernel,
        };
        let value = (result.kind != Kind::Void).then(|| entry.shown(result, view.regs.rax));
        self.end_left(&left);
        let is_sure = open.what.carried == self.carried;
        self.lines.call(&open.what, &Outcome::Returned { at, value, is_sure });
        Ok(())
    }

    fn carry(&mut self, carried: &Carried) {
        self.carried += 1;
        self.lines.carried(carried);
    }

    fn end_left(&mut self, left: &[Open<Call>]) {
        for open in left {
            self.end_unseen(open, "its stack was left without it");
        }
    }

    /// A call whose return was not seen, for the best reason that there is.
    fn end_unseen(&mut self, open: &Open<Call>, reason: &'static str) {
        let reason = if open.what.carried != self.carried {
            "a delta carried the machine since"
        } else if open.was_unwatched {
            "more callers wait than there are breakpoints"
        } else {
            reason
        };
        self.lines.call(&open.what, &Outcome::Unseen(reason));
    }
}
