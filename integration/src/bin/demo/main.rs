//! `lockstep-demo`: a pair runs Redis; a client counts on one connection while both hosts are killed, one after the
//! other.

mod stage;
mod table;

use std::process::ExitCode;

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

fn main() -> ExitCode {
    let (stop, stopped) = crossbeam_channel::bounded(1);
    let watching = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).and_then(|mut signals| {
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            for _ in signals.forever() {
                // One is enough; the demo ends at its next look.
                let _ = stop.try_send(());
            }
        })
    });
    let result = watching
        .context("cannot watch for signals")
        .and_then(|_| stage::play(&stopped));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("lockstep-demo: {error:#}");
            ExitCode::from(1)
        }
    }
}
