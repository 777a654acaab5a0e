//! The command line of `lockstep-primary`.

pub mod pki;
pub mod probe;
pub mod run;

use clap::{Parser, Subcommand};

/// Runs a Linux machine on KVM and records everything that enters it.
#[derive(Parser)]
#[command(name = "lockstep-primary", version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a machine, with its console on this terminal.
    Run(Box<run::RunOptions>),
    /// Find out by experiment what this host's KVM does, and what follows from it.
    Probe(probe::ProbeOptions),
    /// Make the certificates that the nodes of a deployment know each other by.
    Pki(pki::PkiOptions),
}
