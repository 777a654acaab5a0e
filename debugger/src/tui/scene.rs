//! What is shown of the machine.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Result;
use lockstep_node::out::{one_line, works};
use lockstep_proto::quantity::StopNumber;

use crate::show::kernel::Kernel;
use crate::show::view::View;
use crate::show::{code, tasks, text};
use crate::timeline::Timeline;

/// Bytes of the guest's console that are kept; earlier ones are dropped.
const MAX_PRINTED: usize = 16 << 20;

/// An instruction, and the function that it is in.
pub struct Instruction {
    /// Where it lies.
    pub address: u64,
    /// `name+0x12`.
    pub symbol: Option<String>,
    /// As gdb writes it.
    pub text: String,
}

/// The machine at a stop.
pub struct Scene {
    /// The natural stop.
    pub stop: StopNumber,
    /// Guest time in nanoseconds.
    pub guest_ns: u64,
    /// The guest waits in HLT.
    pub halted: bool,
    /// Ring 3 is interrupted.
    pub is_user: bool,
    /// Names and values of registers.
    pub registers: Vec<(&'static str, u64)>,
    /// The code from the instruction on that comes next.
    pub code: Vec<Instruction>,
    /// The current task, if the kernel's vmlinux is there; or why there are no symbols.
    pub task: Option<String>,
    /// How long the way took.
    pub took: Duration,
}

impl Scene {
    /// Of the machine where it stands.
    pub fn of(timeline: &mut Timeline, kernel: Option<&Kernel>, took: Duration) -> Result<Self> {
        let present = timeline.machine_mut().present_registers()?;
        let machine = timeline.machine();
        let view = View::of(machine, present);
        // Symbols of another kernel would be wrong ones. Early in a boot the right one cannot be told yet.
        let (kernel, task) = match kernel.map(|kernel| (kernel, kernel.check(&view))) {
            None => (None, None),
            Some((_, Err(why))) => (None, Some(format!("no symbols: {why:#}"))),
            Some((kernel, Ok(()))) => {
                let task = match tasks::current(&view, kernel) {
                    Ok(task) => format!("task {} ({})", one_line(&task.comm), task.pid),
                    Err(why) => format!("task unknown: {why:#}"),
                };
                (Some(kernel), Some(task))
            }
        };
        let instruction = |line: code::Line| Instruction {
            address: line.address,
            symbol: text::name(kernel, line.address),
            text: line.text,
        };
        Ok(Self {
            stop: machine.stop(),
            guest_ns: machine.now().ns(),
            halted: machine.is_halted(),
            is_user: view.is_user(),
            registers: text::registers(&view.regs),
            code: code::disassemble(&view, kernel).into_iter().map(instruction).collect(),
            task,
            took,
        })
    }
}

/// What the guest printed, by stop. A replay prints again what it passes again: only what is new is added.
#[derive(Default)]
pub struct Printed {
    pieces: VecDeque<(StopNumber, Vec<u8>)>,
    bytes: usize,
    last: StopNumber,
}

impl Printed {
    /// Adds all that was printed at a stop.
    pub fn add(&mut self, stop: StopNumber, bytes: &[u8]) {
        if stop <= self.last {
            return;
        }
        self.last = stop;
        self.bytes += bytes.len();
        self.pieces.push_back((stop, bytes.to_vec()));
        while self.bytes > MAX_PRINTED
            && let Some((_, dropped)) = self.pieces.pop_front()
        {
            self.bytes -= dropped.len();
        }
    }

    /// The last lines that were printed up to a stop, without control characters.
    pub fn lines(&self, stop: StopNumber, count: usize) -> Vec<String> {
        let end = self.pieces.partition_point(|piece| piece.0 <= stop);
        let mut newest: Vec<&[u8]> = Vec::new();
        let mut breaks = 0;
        for (_, bytes) in self.pieces.range(..end).rev() {
            breaks += bytes.split(|byte| *byte == b'\n').count() - 1;
            newest.push(bytes);
            if breaks > count {
                break;
            }
        }
        newest.reverse();
        let text = newest.concat();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..]
            .iter()
            .map(|line| line.chars().filter(|letter| !works(*letter)).collect())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_again_is_not_printed_twice() {
        let mut printed = Printed::default();
        for (stop, text) in [
            (1, "one\r\n"),
            (3, "tw"),
            (4, "o\n"),
            (3, "tw"),
            (4, "o\n"),
            (9, "three\n"),
        ] {
            printed.add(StopNumber::new(stop), text.as_bytes());
        }
        assert_eq!(printed.lines(StopNumber::NO_LIMIT, 10), ["one", "two", "three"]);
        assert_eq!(printed.lines(StopNumber::new(3), 10), ["one", "tw"]);
        assert_eq!(printed.lines(StopNumber::new(9), 2), ["two", "three"]);
        assert_eq!(printed.lines(StopNumber::START, 5), Vec::<String>::new());
    }

    #[test]
    fn old_output_is_dropped_where_there_is_much() {
        let mut printed = Printed::default();
        for stop in 1..=20 {
            printed.add(StopNumber::new(stop), &vec![b'x'; 1 << 20]);
        }
        assert!(printed.bytes <= MAX_PRINTED);
        assert_eq!(printed.pieces.back().map(|piece| piece.0), Some(StopNumber::new(20)));
    }
}
