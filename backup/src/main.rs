//! `lockstep-backup`: stands by for a machine, and goes on with it when its primary dies.

// They panic where a reader has gone: `out` has what does not.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use lockstep_backup::cli;
use lockstep_node::cli::{config, messages, node::NodeArgs, ops, packaging, sandbox};
use lockstep_node::sys::signals;
use lockstep_node::{out, tell};
use lockstep_proto::program::version;
use lockstep_proto::this_program;

/// Stands by for a Lockstep machine and goes on with it when its primary dies.
#[derive(Parser)]
#[command(name = "lockstep-backup", version = version(), about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Stand by for a machine, or run it: --role says which.
    Run(Box<NodeArgs>),
    #[command(flatten)]
    Ops(ops::OpsCommand),
    #[command(flatten)]
    Packaging(packaging::PackagingCommand),
}

fn main() -> ExitCode {
    this_program!();
    signals::outlive_limits();
    let command = config::parse::<Cli>().command;
    if let Command::Run(options) = &command {
        signals::outlive_terminals();
        // Before the first thread, which is that of the messages.
        let entered = options.sandbox.enter(|| options.needs());
        messages::start_run(&options.log);
        if let Err(error) = sandbox::tell(entered) {
            tell!("lockstep-backup: {error:#}");
            out::queue::settle();
            return ExitCode::from(1);
        }
    } else {
        messages::start();
    }
    let result = match command {
        Command::Run(options) => cli::run(&options).map(|()| ExitCode::SUCCESS),
        Command::Ops(command) => ops::run(&command),
        Command::Packaging(command) => packaging::run(&command, Cli::command()).map(|()| ExitCode::SUCCESS),
    };
    out::end("lockstep-backup", result, 1)
}
