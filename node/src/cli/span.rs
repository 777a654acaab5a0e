//! What ends a run from outside: signals, time, a text on the console. And what disturbs it on purpose.

use std::cell::RefCell;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use lockstep_vmm::sys::kick::KickHandle;

use super::args::SpanArgs;
use super::leave::Leave;
use super::signals::on_signal;
use crate::host::console::{RawTerminal, start_input};
use crate::host::inbox::{Bell, Outside};
use crate::kicker::Kicker;
use crate::sandbox::{self, Kind};
use crate::tell;

/// A run's console, its end and its kicks.
pub struct Span {
    args: SpanArgs,
    terminal: Option<RawTerminal>,
    told: crossbeam_channel::Receiver<()>,
    tell: crossbeam_channel::Sender<()>,
    kicker: RefCell<Option<Kicker>>,
}

impl Span {
    /// Takes the terminal.
    pub fn begin(args: &SpanArgs) -> Result<Self> {
        let terminal = RawTerminal::enter().context("cannot put the terminal into raw mode")?;
        if terminal.as_ref().is_some_and(RawTerminal::is_raw) {
            tell!("lockstep: the guest's console; Ctrl-] ends the run\r");
        }
        let (tell, told) = crossbeam_channel::bounded(1);
        Ok(Self {
            args: args.clone(),
            terminal,
            told,
            tell,
            kicker: RefCell::new(None),
        })
    }

    /// Where console output goes.
    pub fn console(&self) -> Box<dyn Write + Send> {
        match &self.args.until {
            Some(text) => Box::new(Watch {
                inner: io::stdout(),
                text: text.clone(),
                seen: Vec::new(),
                found: self.tell.clone(),
            }),
            None => Box::new(io::stdout()),
        }
    }

    /// Watches over a machine that is about to run. `leave`: of a pair's, what signals do to it.
    pub fn watch(&self, outside: Outside, handle: KickHandle, leave: Option<&Leave>) -> Result<()> {
        let bell = outside.bell().clone();
        match leave {
            Some(leave) => leave.ends_machine(bell)?,
            None => on_signal(move |_| bell.quit())?,
        }
        if let Some(seconds) = self.args.r#for {
            end_after(
                outside.bell().clone(),
                Duration::try_from_secs_f64(seconds).context("--for")?,
            )?;
        }
        end_when_told(outside.bell().clone(), self.told.clone())?;
        if let Some(rate) = self.args.kicks {
            *self.kicker.borrow_mut() = Some(Kicker::start(handle, rate)?);
        }
        start_input(outside).context("cannot start the console's input thread")
    }

    /// Gives the terminal back. Returns how many kicks there were, if there were to be any.
    pub fn end(self) -> Option<u64> {
        drop(self.terminal);
        self.kicker.take().map(Kicker::stop)
    }
}

fn end_after(bell: Bell, duration: Duration) -> Result<()> {
    sandbox::spawn(Kind::Waits, "for", move || {
        std::thread::sleep(duration);
        bell.quit();
    })?;
    Ok(())
}

fn end_when_told(bell: Bell, told: crossbeam_channel::Receiver<()>) -> Result<()> {
    sandbox::spawn(Kind::Waits, "until", move || {
        if told.recv().is_ok() {
            bell.quit();
        }
    })?;
    Ok(())
}

/// Passes console output on and tells when a text has gone by.
struct Watch {
    inner: io::Stdout,
    text: String,
    seen: Vec<u8>,
    found: crossbeam_channel::Sender<()>,
}

impl Write for Watch {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.seen.extend_from_slice(bytes);
        if self
            .seen
            .windows(self.text.len().max(1))
            .any(|window| window == self.text.as_bytes())
        {
            // A full channel has been told already.
            let _ = self.found.try_send(());
        }
        let keep = self.seen.len().saturating_sub(self.text.len());
        self.seen.drain(..keep);
        self.inner.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
