//! `lockstep-debug console`.

use std::cell::RefCell;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use lockstep_node::out::Out;
use lockstep_vmm::devices::Effect;

use crate::Recording;
use crate::place::{Place, help};
use crate::terminal::Terminal;
use crate::watched::Replay;

#[derive(Args)]
pub struct ConsoleOptions {
    #[command(flatten)]
    recording: Recording,
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, help = help("Where to end, included"))]
    to: Option<Place>,
    /// Begin each line with the guest time, in seconds, at which its first byte was printed.
    #[arg(long)]
    timestamps: bool,
    /// Print the bytes as they are on a terminal, too, where they may do anything. Without it, lines and colours work there, and
    /// other control characters are shown as escapes. A file or pipe always gets the bytes.
    #[arg(long)]
    raw: bool,
}

pub fn run(options: &ConsoleOptions) -> Result<ExitCode> {
    let (directory, to) = options.recording.up_to(options.to)?;
    let replay = Replay::open(&directory)?;
    let out: Box<dyn Write> = if io::stdout().is_terminal() && !options.raw {
        Box::new(Terminal::new(BufWriter::new(Out)))
    } else {
        Box::new(BufWriter::new(Out))
    };
    let console = RefCell::new(Console {
        out,
        timestamps: options.timestamps,
        line_begins: true,
        result: Ok(()),
    });
    let result = replay.show(
        to,
        |exchange| {
            for effect in exchange.effects {
                if let Effect::Console(bytes) = effect {
                    console.borrow_mut().write(exchange.guest_ns, bytes);
                }
            }
        },
        |_| console.borrow_mut().take_result(),
    );
    // Before an error, too: what was printed is what led there.
    console.borrow_mut().out.flush()?;
    result.map(|()| ExitCode::SUCCESS)
}

/// The guest's console as a stream of bytes, with or without time stamps.
struct Console<W> {
    out: W,
    timestamps: bool,
    line_begins: bool,
    result: io::Result<()>,
}

impl<W: Write> Console<W> {
    fn write(&mut self, guest_ns: u64, bytes: &[u8]) {
        if self.result.is_ok() {
            self.result = self.try_write(guest_ns, bytes);
        }
    }

    fn try_write(&mut self, guest_ns: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.timestamps {
            return self.out.write_all(bytes);
        }
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            if self.line_begins {
                let (seconds, rest) = (guest_ns / 1_000_000_000, guest_ns % 1_000_000_000);
                write!(self.out, "[{seconds:>6}.{rest:09}] ")?;
            }
            self.out.write_all(line)?;
            self.line_begins = line.ends_with(b"\n");
        }
        Ok(())
    }

    fn take_result(&mut self) -> Result<()> {
        Ok(std::mem::replace(&mut self.result, Ok(()))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_the_time_of_its_first_byte() {
        let mut console = Console {
            out: Vec::new(),
            timestamps: true,
            line_begins: true,
            result: Ok(()),
        };
        for (ns, bytes) in [(1_500_000_000, &b"a"[..]), (2_000_000_000, b"b\r\n\nc"), (3, b"d\n")] {
            console.write(ns, bytes);
        }
        assert_eq!(
            String::from_utf8(console.out).unwrap(),
            "[     1.500000000] ab\r\n[     2.000000000] \n[     2.000000000] cd\n"
        );
    }
}
