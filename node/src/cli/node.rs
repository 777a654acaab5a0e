//! Arguments of a node that may be either end of a pair: `lockstep-backup run`, and a machine's configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};

use super::args::{DeviceArgs, PolicyArgs, RecordArgs, SpanArgs};
use super::boot::BootArgs;
use super::leave::LeaveArgs;
use super::messages::LogArgs;
use super::pair::PairArgs;
use super::restart::RestartArgs;
use super::sandbox::{self, SandboxArgs};
use super::serve::ApiArgs;
use crate::sandbox::Needs;

/// What a node is when it is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StartRole {
    /// It stands by.
    #[default]
    Backup,
    /// The arbiter's record decides: its owner boots the machine, another node stands by.
    Auto,
}

/// Whom to stand by for, and how.
#[derive(Args, Clone, Debug)]
#[command(group(ArgGroup::new("machine").args(["kernel", "snapshot"])))]
pub struct NodeArgs {
    /// The machine's configuration file (TOML): its keys are these options. What is given here or in the environment
    /// counts more.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to wait for the primary (UDP).
    #[arg(long, value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// Whether this node stands by, or the arbiter's record decides whether it does. `auto` needs the machine's kernel or
    /// snapshot, the same on both nodes.
    #[arg(long, value_enum, default_value_t, requires_if("auto", "machine"))]
    pub role: StartRole,
    /// The machine, where it is booted here.
    #[command(flatten)]
    pub boot: BootArgs,
    /// The pair.
    #[command(flatten)]
    pub pair: PairArgs,
    /// The host's side of its devices.
    #[command(flatten)]
    pub devices: DeviceArgs,
    /// How it is recorded.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Where it is recorded.
    #[command(flatten)]
    pub record: RecordArgs,
    /// How long it runs.
    #[command(flatten)]
    pub span: SpanArgs,
    /// Where it is asked.
    #[command(flatten)]
    pub api: ApiArgs,
    /// How it ends.
    #[command(flatten)]
    pub leave: LeaveArgs,
    /// What its guest's reset does.
    #[command(flatten)]
    pub restart: RestartArgs,
    /// How its messages look.
    #[command(flatten)]
    pub log: LogArgs,
    /// Whether it has a sandbox.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

impl NodeArgs {
    /// Whether it boots its machine where the record says so. A snapshot is of a moment that the disks have left.
    pub fn boots(&self) -> bool {
        self.role == StartRole::Auto && self.boot.kernel.is_some()
    }

    /// What its process works with.
    pub fn needs(&self) -> Needs {
        let mut needs = sandbox::Finder::default();
        needs.config(self.config.as_deref());
        needs.machine(&self.boot, &self.devices);
        needs.files(self.record.record.as_deref(), None);
        needs.pair(&self.pair, &self.api);
        needs.found()
    }
}
