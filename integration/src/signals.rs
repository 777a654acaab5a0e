//! Signals that end a demo.

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// A channel that has something once a signal to end has come.
pub fn on_end() -> Result<Receiver<()>> {
    let (stop, stopped) = bounded(1);
    let mut signals =
        signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot watch for signals")?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            // One is enough; the demo ends at its next look.
            let _ = stop.try_send(());
        }
    })?;
    Ok(stopped)
}
