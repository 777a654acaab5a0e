//! `lockstep-debug`: reads, verifies and explains recordings.

mod events;
mod info;
mod position;
mod symbols;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Reads, verifies and explains recordings of Lockstep machines.
#[derive(Parser)]
#[command(name = "lockstep-debug", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Replay a recording and compare every stop, epoch and the end with it.
    Verify(verify::VerifyOptions),
    /// Tell what a recording holds, and whether this host can replay it.
    Info(info::InfoOptions),
    /// List what entered the machine, stop by stop.
    Events(events::EventsOptions),
}

/// Where a recording lies.
#[derive(clap::Args)]
struct Recording {
    /// The directory that was given to --record.
    #[arg(value_name = "LOGDIR")]
    directory: PathBuf,
}

fn main() -> ExitCode {
    lockstep_primary::cli::start_messages();
    let result = match Cli::parse().command {
        Command::Verify(options) => verify::run(&options),
        Command::Info(options) => info::run(&options),
        Command::Events(options) => events::run(&options),
    };
    match result {
        Ok(code) => code,
        // A reader that closes early (`| head`) is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lockstep-debug: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
