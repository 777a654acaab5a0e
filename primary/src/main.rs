//! `lockstep-primary`: runs and records machines.

use std::process::ExitCode;

use clap::CommandFactory;
use lockstep_primary::cli::{self, config};

fn main() -> ExitCode {
    cli::start_messages();
    // clap exits with 2 on wrong usage by itself.
    let done = |()| ExitCode::SUCCESS;
    let result = match config::parse::<cli::Cli>().command {
        cli::Command::Run(options) => cli::run::run(&options).map(done),
        cli::Command::Probe(options) => cli::probe::run(&options).map(done),
        cli::Command::CheckConfig(options) => cli::check::run(&options),
        cli::Command::Pki(options) => cli::pki::run(&options).map(done),
        cli::Command::Ops(command) => cli::ops::run(&command),
        cli::Command::Packaging(command) => cli::packaging::run(&command, cli::Cli::command()).map(done),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lockstep-primary: {error:#}");
            ExitCode::from(1)
        }
    }
}
