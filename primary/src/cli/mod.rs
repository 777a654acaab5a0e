//! The command line of `lockstep-primary`, and what the other programs' share with it.

pub mod again;
pub mod args;
pub mod boot;
pub mod check;
pub mod config;
pub mod leave;
pub mod messages;
pub mod node;
pub mod ops;
pub mod packaging;
pub mod pair;
pub mod pki;
pub mod preflight;
pub mod probe;
pub mod promote;
pub mod report;
pub mod role;
pub mod run;
pub mod sandbox;
pub mod service;
pub mod sockets;
pub mod span;

use clap::{Parser, Subcommand};

/// Runs a Linux machine on KVM and records everything that enters it.
#[derive(Parser)]
#[command(name = "lockstep-primary", version = crate::VERSION, about)]
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
