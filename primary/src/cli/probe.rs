//! `lockstep-primary probe`.

use anyhow::Result;
use clap::Args;
use lockstep_node::{say, say_on};
use lockstep_vmm::probe;

/// How to tell what was found.
#[derive(Args)]
pub struct ProbeOptions {
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Probes this host.
pub fn run(options: &ProbeOptions) -> Result<()> {
    let report = probe::run()?;
    if options.json {
        say!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        say_on!("{report}");
    }
    Ok(())
}
