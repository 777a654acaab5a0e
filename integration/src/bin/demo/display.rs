//! What the demo says: messages, and how it goes, on a terminal as one line that is rewritten.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use rustix::termios::tcgetwinsize;

/// Columns of a terminal that does not tell.
const COLUMNS: usize = 80;

/// Standard output.
pub struct Display {
    is_terminal: bool,
    /// The cursor is behind a line that is to be rewritten.
    is_open: Cell<bool>,
}

impl Display {
    /// Of this process.
    pub fn new() -> Self {
        Self {
            is_terminal: io::stdout().is_terminal(),
            is_open: Cell::new(false),
        }
    }

    /// From one [`Display::show`] to the next.
    pub fn every(&self) -> Duration {
        Duration::from_secs(if self.is_terminal { 1 } else { 2 })
    }

    /// A message, in a line of its own.
    pub fn say(&self, text: &str) {
        self.close();
        println!("lockstep-demo: {text}");
    }

    /// How it goes.
    pub fn show(&self, text: &str) {
        if !self.is_terminal {
            self.say(text);
            return;
        }
        // A line that goes on in the next one cannot be rewritten.
        let columns = tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_col));
        let columns = if columns == 0 { COLUMNS } else { columns };
        let line: String = format!("lockstep-demo: {text}").chars().take(columns - 1).collect();
        print!("\r{line}\x1b[K");
        // Nothing is lost by a line that is not seen.
        let _ = io::stdout().flush();
        self.is_open.set(true);
    }

    /// Leaves the line as it is; what comes stands in the next one.
    pub fn close(&self) {
        if self.is_open.replace(false) {
            println!();
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.close();
    }
}
