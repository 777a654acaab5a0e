//! `lockstep-primary`: runs and records machines.

use std::process::ExitCode;

use clap::Parser;
use lockstep_primary::cli;

fn main() -> ExitCode {
    cli::start_messages();
    // clap exits with 2 on wrong usage by itself.
    let result = match cli::Cli::parse().command {
        cli::Command::Run(options) => cli::run::run(&options),
        cli::Command::Probe(options) => cli::probe::run(&options),
        cli::Command::Pki(options) => cli::pki::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lockstep-primary: {error:#}");
            ExitCode::from(1)
        }
    }
}
