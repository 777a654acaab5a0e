//! Signals that end a demo.

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// A channel that has something once a signal to end has come.
pub fn on_end() -> Result<Receiver<()>> {
    let (stop, stopped) = bounded(1);
    // What was ignored at the start, as `nohup` has it, stays ignored.
    let ignored = ignored();
    let heeded = [SIGINT, SIGTERM, SIGHUP]
        .into_iter()
        .filter(|signal| ignored >> (signal - 1) & 1 == 0);
    let mut signals = signal_hook::iterator::Signals::new(heeded).context("cannot watch for signals")?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            // One is enough; the demo ends at its next look.
            let _ = stop.try_send(());
        }
    })?;
    Ok(stopped)
}

/// The mask of signals that this process ignores (proc(5)); none where the kernel does not tell.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}
