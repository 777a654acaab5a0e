//! The command line of `lockstep-primary`. What it shares with the other programs' is in `lockstep_node::cli`.

pub mod check;
pub mod pki;
pub mod preflight;
pub mod probe;
pub mod report;
pub mod run;

#[cfg(test)]
mod tests;

use clap::{Parser, Subcommand};
use lockstep_node::cli::{ops, packaging};
use lockstep_proto::program::version;

/// Runs a Linux machine on KVM and records everything that enters it.
#[derive(Parser)]
#[command(name = "lockstep-primary", version = version(), about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Run a machine, with its console on this terminal.
    Run(Box<run::RunOptions>),
    /// Find out by experiment what this host's KVM does, and what follows from it.
    Probe(probe::ProbeOptions),
    /// Tell what is wrong with a machine's configuration, and whether this host can run it.
    CheckConfig(check::CheckOptions),
    /// Make the certificates that the nodes of a deployment know each other by.
    Pki(pki::PkiOptions),
    /// Ask a machine that runs.
    #[command(flatten)]
    Ops(ops::OpsCommand),
    /// Make what packages hold.
    #[command(flatten)]
    Packaging(packaging::PackagingCommand),
}
