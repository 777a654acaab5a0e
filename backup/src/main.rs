//! `lockstep-backup`: stands by for a machine, and goes on with it when its primary dies.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lockstep_backup::cli;

/// Stands by for a Lockstep machine and goes on with it when its primary dies.
#[derive(Parser)]
#[command(name = "lockstep-backup", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Stand by for a machine.
    Run(Box<cli::RunOptions>),
}

fn main() -> ExitCode {
    lockstep_primary::cli::start_messages();
    let result = match Cli::parse().command {
        Command::Run(options) => cli::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lockstep-backup: {error:#}");
            ExitCode::from(1)
        }
    }
}
