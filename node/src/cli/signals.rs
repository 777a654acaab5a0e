//! What a process hears of signals.

use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::sandbox::{self, Kind};
use crate::sys::signals::heeded;

/// Calls `then` at each SIGINT, SIGTERM and SIGHUP from now on, of those that were not ignored when the process began.
pub(super) fn on_signal(then: impl Fn(i32) + Send + 'static) -> Result<()> {
    let heeded = heeded(&[SIGINT, SIGTERM, SIGHUP]);
    let mut signals = signal_hook::iterator::Signals::new(heeded)?;
    sandbox::spawn(Kind::Waits, "signals", move || {
        for signal in signals.forever() {
            then(signal);
        }
    })?;
    Ok(())
}
