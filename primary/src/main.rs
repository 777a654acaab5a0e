//! `lockstep-primary`: runs and records machines.

// They panic where a reader has gone: `out` has what does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::CommandFactory;
use lockstep_primary::cli::{self, config};
use lockstep_primary::sys::signals;
use lockstep_primary::{out, tell};

fn main() -> ExitCode {
    signals::outlive_limits();
    // clap exits with 2 on wrong usage by itself.
    let command = config::parse::<cli::Cli>().command;
    if let cli::Command::Run(options) = &command {
        signals::outlive_terminals();
        // Before the first thread, which is that of the messages.
        let entered = options.sandbox.enter(|| options.needs());
        cli::messages::start_run(&options.log);
        if let Err(error) = cli::sandbox::tell(entered) {
            tell!("lockstep-primary: {error:#}");
            return ExitCode::from(1);
        }
    } else {
        cli::messages::start();
    }
    let done = |()| ExitCode::SUCCESS;
    let result = match command {
        cli::Command::Run(options) => cli::run::run(&options).map(done),
        cli::Command::Probe(options) => cli::probe::run(&options).map(done),
        cli::Command::CheckConfig(options) => cli::check::run(&options),
        cli::Command::Pki(options) => cli::pki::run(&options).map(done),
        cli::Command::Ops(command) => cli::ops::run(&command),
        cli::Command::Packaging(command) => cli::packaging::run(&command, cli::Cli::command()).map(done),
    };
    out::end("lockstep-primary", result, 1)
}
