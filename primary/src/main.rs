//! `lockstep-primary`: runs and records machines.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("LOCKSTEP_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .init();
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
