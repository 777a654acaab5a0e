//! `lockstep-primary`: runs and records machines.

// They panic where a reader has gone: `out` has what does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::CommandFactory;
use lockstep_node::cli::{config, messages, ops, packaging, sandbox};
use lockstep_node::sys::signals;
use lockstep_node::{out, tell};
use lockstep_primary::cli;
use lockstep_proto::this_program;

fn main() -> ExitCode {
    this_program!();
    signals::outlive_limits();
    // clap exits with 2 on wrong usage by itself.
    let command = config::parse::<cli::Cli>().command;
    if let cli::Command::Run(options) = &command {
        signals::outlive_terminals();
        // Before the first thread, which is that of the messages.
        let entered = options.sandbox.enter(|| options.needs());
        messages::start_run(&options.log);
        if let Err(error) = sandbox::tell(entered) {
            tell!("lockstep-primary: {error:#}");
            out::queue::settle();
            return ExitCode::from(1);
        }
    } else {
        messages::start();
    }
    let done = |()| ExitCode::SUCCESS;
    let result = match command {
        cli::Command::Run(options) => cli::run::run(&options).map(done),
        cli::Command::Probe(options) => cli::probe::run(&options).map(done),
        cli::Command::CheckConfig(options) => cli::check::run(&options),
        cli::Command::Pki(options) => cli::pki::run(&options).map(done),
        cli::Command::Ops(command) => ops::run(&command),
        cli::Command::Packaging(command) => packaging::run(&command, cli::Cli::command()).map(done),
    };
    out::end("lockstep-primary", result, 1)
}
