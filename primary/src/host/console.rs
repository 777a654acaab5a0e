//! The guest's console on this process' terminal, or on plain standard input and output.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, bounded};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use super::inbox::Outside;
use crate::sandbox::{self, Kind};

/// Ctrl-] ends the recording, as in telnet and virsh console.
const ESCAPE: u8 = 0x1d;
/// Console chunks that may wait for a slow terminal; what comes beyond is dropped and counted.
const QUEUE: usize = 4096;

/// The terminal as it was before it was put into raw mode.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Takes the terminal out of raw mode, if it is in it. For a process that ends or starts over without unwinding.
pub fn restore_terminal() {
    // A plain value: whole whenever the lock is free.
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// The terminal in raw mode. Dropping it restores the terminal.
pub struct RawTerminal(());

impl RawTerminal {
    /// Puts standard input into raw mode if it is a terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore_terminal();
            previous(info);
        }));
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore_terminal();
    }
}

/// Reads what is typed, in a thread that lives as long as the process. Ctrl-] and the end of a terminal's input quit;
/// the end of a file or pipe does not.
pub fn start_input(outside: Outside) -> io::Result<()> {
    sandbox::spawn(Kind::Bytes, "console-in", move || {
        let is_terminal = isatty(io::stdin());
        let mut buffer = [0; 256];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(0) => {
                    if is_terminal {
                        outside.bell().quit();
                    }
                    return;
                }
                Ok(len) => {
                    let typed = &buffer[..len];
                    let escape = typed.iter().position(|&byte| is_terminal && byte == ESCAPE);
                    let typed = &typed[..escape.unwrap_or(len)];
                    if !typed.is_empty() && !outside.console(typed.to_vec()) {
                        return;
                    }
                    if escape.is_some() {
                        outside.bell().quit();
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    })?;
    Ok(())
}

/// Where the guest's console output goes. A slow reader never holds the guest up.
pub struct ConsoleOutput {
    queue: Option<Sender<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
    broken: Arc<AtomicBool>,
    dropped: u64,
}

impl ConsoleOutput {
    /// Starts a thread that writes to `target`.
    pub fn start(mut target: Box<dyn Write + Send>) -> io::Result<Self> {
        let (queue, chunks) = bounded::<Vec<u8>>(QUEUE);
        let broken = Arc::new(AtomicBool::new(false));
        let flag = broken.clone();
        let thread = sandbox::spawn(Kind::Bytes, "console-out", move || {
            for chunk in chunks {
                if target.write_all(&chunk).and_then(|()| target.flush()).is_err() {
                    flag.store(true, Ordering::Relaxed);
                    return;
                }
            }
        })?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            broken,
            dropped: 0,
        })
    }

    /// Writes console bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(bytes.to_vec()).is_err() {
            self.dropped += bytes.len() as u64;
            if !self.broken.load(Ordering::Relaxed) {
                tracing::debug!(dropped = self.dropped, "console output dropped: the reader is too slow");
            }
        }
    }
}

impl Drop for ConsoleOutput {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
