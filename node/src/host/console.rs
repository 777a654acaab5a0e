//! The guest's console on this process' terminal, or on plain standard input and output.

use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr};

use super::inbox::Outside;
use crate::sandbox::{self, Kind};

/// Ctrl-] ends the recording, as in telnet and virsh console.
const ESCAPE: u8 = 0x1d;
/// Bytes that may wait for a slow terminal; what comes beyond is dropped, marked and counted.
const ROOM: usize = 4 << 20;
/// From one look whether the terminal is this process' again to the next.
const LOOK: Duration = Duration::from_secs(1);

/// The terminal as it was before it was put into raw mode.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Takes the terminal out of raw mode, if it is in it and still this process'. For a process that ends or starts over
/// without unwinding.
pub fn restore_terminal() {
    // A plain value: whole whenever the lock is free.
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before
        && is_ours()
    {
        // A terminal that is gone needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// Whether the terminal on standard input is this process' to read and to set: it is in its foreground process group, or
/// the terminal controls nobody here.
fn is_ours() -> bool {
    tcgetpgrp(io::stdin()).map_or_else(|error| error == Errno::NOTTY, |group| group == getpgrp())
}

fn make_raw() -> io::Result<()> {
    let stdin = io::stdin();
    let before = tcgetattr(&stdin)?;
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(&stdin, OptionalActions::Now, &raw)?;
    // Of several times, what was there first.
    BEFORE
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get_or_insert(before);
    Ok(())
}

/// The terminal, in raw mode while it is this process'. Dropping it restores the terminal.
pub struct RawTerminal {
    is_raw: bool,
}

impl RawTerminal {
    /// Puts standard input into raw mode if it is a terminal, and this process is not in its background.
    pub fn enter() -> io::Result<Option<Self>> {
        if !isatty(io::stdin()) {
            return Ok(None);
        }
        let is_raw = is_ours();
        if is_raw {
            make_raw()?;
        }
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore_terminal();
            previous(info);
        }));
        Ok(Some(Self { is_raw }))
    }

    /// Whether it is in raw mode: else the console is output only, until the process comes to the foreground.
    pub fn is_raw(&self) -> bool {
        self.is_raw
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore_terminal();
    }
}

/// Reads what is typed, in a thread that lives as long as the process. Ctrl-] and the end of a terminal's input quit;
/// the end of a file or pipe does not. A terminal is read while this process is in its foreground.
pub fn start_input(outside: Outside) -> io::Result<()> {
    sandbox::spawn(Kind::Bytes, "console-in", move || {
        let is_terminal = isatty(io::stdin());
        let mut in_background = is_terminal && !is_ours();
        let mut buffer = [0; 256];
        loop {
            if is_terminal && !is_ours() {
                in_background = true;
                std::thread::sleep(LOOK);
                continue;
            }
            if std::mem::take(&mut in_background)
                && let Err(error) = make_raw()
            {
                tracing::warn!("the terminal cannot be put into raw mode: {error}");
            }
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
                // It was taken away while it was read.
                Err(_) if is_terminal && !is_ours() => {}
                Err(_) => return,
            }
        }
    })?;
    Ok(())
}

/// Where the guest's console output goes. A slow reader never holds the guest up.
pub struct ConsoleOutput {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
    /// Told of bytes that were dropped.
    dropped: Box<dyn Fn(u64) + Send>,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

/// What waits for the reader.
#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// So many bytes were dropped behind them.
    dropped: u64,
    /// Nothing more comes.
    ended: bool,
    /// Nobody reads any more.
    broken: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Plain values: whole whenever the lock is free.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be written next, and how much was dropped behind it; `None` at the end.
    fn take(&self) -> Option<(Vec<u8>, u64)> {
        let idle = |waiting: &mut Waiting| waiting.bytes.is_empty() && waiting.dropped == 0 && !waiting.ended;
        let mut waiting = self
            .more
            .wait_while(self.lock(), idle)
            .unwrap_or_else(PoisonError::into_inner);
        let bytes = std::mem::take(&mut waiting.bytes);
        let dropped = std::mem::take(&mut waiting.dropped);
        (!bytes.is_empty() || dropped > 0).then_some((bytes, dropped))
    }
}

impl ConsoleOutput {
    /// Starts a thread that writes to `target`. `dropped` is told how many bytes a reader that is too slow does not get.
    pub fn start(mut target: Box<dyn Write + Send>, dropped: impl Fn(u64) + Send + 'static) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let taken = queue.clone();
        let thread = sandbox::spawn(Kind::Bytes, "console-out", move || {
            while let Some((bytes, dropped)) = taken.take() {
                let mark = if dropped > 0 {
                    format!(
                        "\r\n[lockstep: {dropped} bytes of console output were dropped here: its reader is too slow]\r\n"
                    )
                } else {
                    String::new()
                };
                let written = target
                    .write_all(&bytes)
                    .and_then(|()| target.write_all(mark.as_bytes()))
                    .and_then(|()| target.flush());
                if let Err(error) = written {
                    tracing::debug!("the console's output is lost from here on: {error}");
                    taken.lock().broken = true;
                    return;
                }
            }
        })?;
        Ok(Self {
            queue,
            thread: Some(thread),
            dropped: Box::new(dropped),
        })
    }

    /// Writes console bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        let mut waiting = self.queue.lock();
        // Behind a gap nothing is taken until the reader has come to the gap.
        let room = match &*waiting {
            Waiting { broken: true, .. } | Waiting { dropped: 1.., .. } => 0,
            Waiting { bytes, .. } => ROOM.saturating_sub(bytes.len()),
        };
        let (kept, lost) = bytes.split_at(bytes.len().min(room));
        waiting.bytes.extend_from_slice(kept);
        if !waiting.broken {
            waiting.dropped += lost.len() as u64;
        }
        drop(waiting);
        self.queue.more.notify_one();
        if !lost.is_empty() {
            (self.dropped)(lost.len() as u64);
        }
    }
}

impl Drop for ConsoleOutput {
    fn drop(&mut self) {
        self.queue.lock().ended = true;
        self.queue.more.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    use crossbeam_channel::{Receiver, Sender, bounded};

    /// A reader that tells when it is given something, and takes it when it is let.
    struct Slow(Arc<Mutex<Vec<u8>>>, Sender<()>, Receiver<()>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.1.try_send(());
            let _ = self.2.recv();
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_let_go_at_once_is_kept_by_bytes_and_a_gap_is_marked_and_counted() {
        let (seen, lost) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
        let ((tell, told), (let_go, may)) = (bounded(1), bounded(1));
        let counter = lost.clone();
        let count = move |bytes| {
            counter.fetch_add(bytes, Ordering::Relaxed);
        };
        let mut output = ConsoleOutput::start(Box::new(Slow(seen.clone(), tell, may)), count).unwrap();
        output.write(b"0");
        // The reader is stuck with the first byte; a megabyte comes byte by byte, as a gate lets it go.
        told.recv().unwrap();
        for _ in 0..1 << 20 {
            output.write(b"x");
        }
        assert_eq!(lost.load(Ordering::Relaxed), 0);
        output.write(&vec![b'y'; ROOM]);
        output.write(b"z");
        let dropped = (1 << 20) + 1;
        assert_eq!(lost.load(Ordering::Relaxed), dropped);
        drop(let_go);
        drop(output);
        let seen = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
        let mark = format!("[lockstep: {dropped} bytes of console output were dropped here");
        let (before, after) = seen.split_once(&mark).unwrap();
        assert_eq!(before.len(), 1 + ROOM + 2);
        assert!(!after.contains('z'), "{after}");
    }
}
