//! The recording as a target of gdb's remote protocol.

use std::fmt::Display;
use std::path::PathBuf;

use gdbstub::common::Signal;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::reverse_exec::{ReverseCont, ReverseContOps, ReverseStep, ReverseStepOps};
use gdbstub::target::ext::base::singlethread::{
    SingleThreadBase, SingleThreadResume, SingleThreadResumeOps, SingleThreadSingleStep, SingleThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use lockstep_node::out::printable;
use lockstep_node::tell;
use lockstep_vmm::machine::BREAKPOINTS;

use super::arch::{Pc, PcRegisters};
use crate::timeline::{MAX_WATCH, Step, Stops, Walker, Watch, Why, read_virtual};

/// Watchpoints at a time.
const MAX_WATCHES: usize = 16;
/// Addresses of ring 3.
const USER_END: u64 = 1 << 47;

/// What gdb has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Continue,
    Step,
    ReverseContinue,
    ReverseStep,
}

/// A recording under gdb.
pub struct Debuggee {
    /// Where the recording lies.
    pub recording: PathBuf,
    pub walker: Walker,
    stops: Stops,
    /// Of the breakpoints, those that gdb thinks are in memory.
    software: Vec<u64>,
    action: Action,
    /// Why something was refused, or what to know of the last stop.
    pub note: Option<String>,
    /// What ends the session.
    pub failure: Option<anyhow::Error>,
}

impl Debuggee {
    pub fn new(walker: Walker, recording: PathBuf) -> Self {
        Self {
            recording,
            walker,
            stops: Stops::default(),
            software: Vec::new(),
            action: Action::Continue,
            note: None,
            failure: None,
        }
    }

    /// Says something beside the protocol, which has no room for reasons.
    pub fn say(&mut self, text: impl Display) {
        let text = text.to_string();
        tell!("lockstep-debug: {text}");
        self.note = Some(text);
    }

    /// Does what gdb asked for. `ask` says whether to go on.
    pub fn run(&mut self, ask: &mut dyn FnMut() -> bool) -> anyhow::Result<Stopped> {
        let why = match self.action {
            Action::Continue => self.walker.go_on(&self.stops, ask)?,
            Action::ReverseContinue => self.walker.go_back(&self.stops, ask)?,
            Action::Step => return self.step(),
            Action::ReverseStep => return self.step_back(),
        };
        if let Why::Watch { unseen: true, .. } = why {
            self.say(
                "the watched memory was changed by no instruction that can be stepped: by user code, a device, or a \
                 slice that a delta carried",
            );
        }
        Ok(match why {
            Why::Breakpoint(address) if self.software.contains(&address) => Stopped::SoftwareBreakpoint,
            Why::Breakpoint(_) => Stopped::Breakpoint,
            Why::Watch { address, .. } => Stopped::Watch(address),
            Why::Begin => Stopped::Begin,
            Why::End => Stopped::End,
            Why::Interrupted => Stopped::Interrupted,
        })
    }

    fn step(&mut self) -> anyhow::Result<Stopped> {
        let before = self.walker.spot().point;
        Ok(match self.walker.step()? {
            Step::Instruction => Stopped::Step,
            Step::User => {
                self.say("user code has run: this host can step in ring 0 only");
                Stopped::Step
            }
            Step::Point => {
                if self.walker.spot().point.stop == before.stop {
                    self.say(format_args!(
                        "no instruction was stepped after stop {}: the guest was halted, or a delta carried it",
                        before.stop
                    ));
                }
                Stopped::Step
            }
            Step::End => Stopped::End,
        })
    }

    fn step_back(&mut self) -> anyhow::Result<Stopped> {
        let before = self.walker.spot().point;
        let Some(_) = self.walker.step_back()? else {
            return Ok(Stopped::Begin);
        };
        let here = self.walker.spot();
        if here.point < before && here.point.stop == before.stop {
            self.say(format_args!(
                "no instruction was stepped back after stop {}: the guest was halted, or a delta carried it",
                before.stop
            ));
        }
        Ok(Stopped::Step)
    }

    fn add_breakpoint(&mut self, address: u64) -> bool {
        if address < USER_END {
            self.say(format_args!(
                "no breakpoint at {address:#x}: it is in user code, where this host's breakpoints never fire"
            ));
            return false;
        }
        if self.stops.breakpoints.contains(&address) {
            return true;
        }
        if self.stops.breakpoints.len() == BREAKPOINTS {
            self.say(format_args!(
                "no breakpoint at {address:#x}: the CPU has {BREAKPOINTS}, and all are in use; delete one"
            ));
            return false;
        }
        self.stops.breakpoints.push(address);
        true
    }

    fn remove_breakpoint(&mut self, address: u64) -> bool {
        let before = self.stops.breakpoints.len();
        self.stops.breakpoints.retain(|known| *known != address);
        before > self.stops.breakpoints.len()
    }

    fn watch(&mut self, address: u64, length: u64) -> anyhow::Result<Watch> {
        anyhow::ensure!(
            (1..=MAX_WATCH).contains(&length) && self.stops.watches.len() < MAX_WATCHES,
            "no watchpoint at {address:#x}: there can be {MAX_WATCHES}, of at most {MAX_WATCH} bytes"
        );
        let watch = self.walker.watch(address, length)?;
        watch.ok_or_else(|| anyhow::anyhow!("no watchpoint at {address:#x}: it is not mapped here"))
    }
}

/// How a run ended, for gdb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    Step,
    SoftwareBreakpoint,
    Breakpoint,
    Watch(u64),
    Begin,
    End,
    Interrupted,
}

impl Target for Debuggee {
    type Arch = Pc;
    type Error = anyhow::Error;

    fn base_ops(&mut self) -> BaseOps<'_, Self::Arch, Self::Error> {
        BaseOps::SingleThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadBase for Debuggee {
    fn read_registers(&mut self, registers: &mut PcRegisters) -> TargetResult<(), Self> {
        let machine = self.walker.timeline_mut().machine_mut();
        let (regs, sregs) = machine.present_registers().map_err(fatal)?;
        let state = machine.vcpu_state().map_err(fatal)?;
        *registers = PcRegisters::new(&regs, &sregs, &state);
        Ok(())
    }

    fn write_registers(&mut self, _: &PcRegisters) -> TargetResult<(), Self> {
        self.say("registers are not changed: what was recorded has happened");
        Err(TargetError::NonFatal)
    }

    fn read_addrs(&mut self, address: u64, data: &mut [u8]) -> TargetResult<usize, Self> {
        let sregs = self.walker.sregs().map_err(TargetError::Fatal)?;
        let ram = self.walker.timeline().machine().memory().ram();
        match read_virtual(ram, &sregs, address, data) {
            // EFAULT
            0 if !data.is_empty() => Err(TargetError::Errno(14)),
            length => Ok(length),
        }
    }

    fn write_addrs(&mut self, _: u64, _: &[u8]) -> TargetResult<(), Self> {
        self.say("memory is not changed: what was recorded has happened");
        Err(TargetError::NonFatal)
    }

    fn support_resume(&mut self) -> Option<SingleThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

fn fatal(error: impl Into<anyhow::Error>) -> TargetError<anyhow::Error> {
    TargetError::Fatal(error.into())
}

impl SingleThreadResume for Debuggee {
    fn resume(&mut self, _: Option<Signal>) -> Result<(), Self::Error> {
        self.action = Action::Continue;
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<SingleThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_reverse_step(&mut self) -> Option<ReverseStepOps<'_, (), Self>> {
        Some(self)
    }

    fn support_reverse_cont(&mut self) -> Option<ReverseContOps<'_, (), Self>> {
        Some(self)
    }
}

impl SingleThreadSingleStep for Debuggee {
    fn step(&mut self, _: Option<Signal>) -> Result<(), Self::Error> {
        self.action = Action::Step;
        Ok(())
    }
}

impl ReverseStep<()> for Debuggee {
    fn reverse_step(&mut self, (): ()) -> Result<(), Self::Error> {
        self.action = Action::ReverseStep;
        Ok(())
    }
}

impl ReverseCont<()> for Debuggee {
    fn reverse_cont(&mut self) -> Result<(), Self::Error> {
        self.action = Action::ReverseContinue;
        Ok(())
    }
}

impl Breakpoints for Debuggee {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Debuggee {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        // Memory is what was recorded: an INT3 has no place in it.
        let added = self.add_breakpoint(address);
        if added {
            self.software.push(address);
        }
        Ok(added)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.software.retain(|known| *known != address);
        Ok(self.remove_breakpoint(address))
    }
}

impl HwBreakpoint for Debuggee {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add_breakpoint(address))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove_breakpoint(address))
    }
}

impl HwWatchpoint for Debuggee {
    fn add_hw_watchpoint(&mut self, address: u64, length: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        if kind != WatchKind::Write {
            self.say("loads cannot be watched here: only what changes memory can be found");
            return Ok(false);
        }
        match self.watch(address, length) {
            Ok(watch) => {
                self.stops.watches.push(watch);
                Ok(true)
            }
            Err(error) => {
                self.say(error);
                Ok(false)
            }
        }
    }

    fn remove_hw_watchpoint(&mut self, address: u64, length: u64, _: WatchKind) -> TargetResult<bool, Self> {
        let known = |watch: &Watch| watch.address == address && watch.length == length;
        let found = self.stops.watches.iter().position(known);
        Ok(found.map(|index| self.stops.watches.remove(index)).is_some())
    }
}

impl MonitorCmd for Debuggee {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), Self::Error> {
        let command = String::from_utf8_lossy(command).into_owned();
        let answer = self.monitor(&command).unwrap_or_else(|error| format!("{error:#}"));
        gdbstub::outputln!(out, "{}", printable(&answer));
        Ok(())
    }
}
