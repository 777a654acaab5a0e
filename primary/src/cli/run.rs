//! `lockstep-primary run`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{ArgGroup, Args};
use lockstep_node::cli::args::{DeviceArgs, PolicyArgs, RecordArgs, SpanArgs};
use lockstep_node::cli::boot::BootArgs;
use lockstep_node::cli::leave::{Leave, LeaveArgs};
use lockstep_node::cli::messages::LogArgs;
use lockstep_node::cli::pair::PairArgs;
use lockstep_node::cli::sandbox::{self, SandboxArgs};
use lockstep_node::cli::serve::ApiArgs;
use lockstep_node::cli::service::Service;
use lockstep_node::cli::span::Span;
use lockstep_node::control::Control;
use lockstep_node::out;
use lockstep_node::pair::Pair;
use lockstep_node::sandbox::Needs;
use lockstep_node::status::Status;
use lockstep_proto::session::Unprotected;
use lockstep_vmm::probe;

use super::report::print_report;
use crate::session::{self, Options};
use lockstep_node::cli::cards;

/// What to run, and how.
#[derive(Args)]
#[command(group(ArgGroup::new("machine").args(["kernel", "snapshot"]).required(true)))]
pub struct RunOptions {
    /// The machine's configuration file (TOML): its keys are these options. What is given here or in the environment
    /// counts more.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    boot: BootArgs,
    /// Save the machine into this file when the run is ended from outside.
    #[arg(long, value_name = "FILE", value_parser = parse_save)]
    save: Option<PathBuf>,
    #[command(flatten)]
    devices: DeviceArgs,
    #[command(flatten)]
    record: RecordArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    span: SpanArgs,
    #[command(flatten)]
    pair: Option<PairArgs>,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    leave: LeaveArgs,
    /// How messages look.
    #[command(flatten)]
    pub log: LogArgs,
    /// Whether it has a sandbox.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

impl RunOptions {
    /// What the process works with.
    pub fn needs(&self) -> Needs {
        let mut needs = sandbox::Finder::default();
        needs.config(self.config.as_deref());
        needs.machine(&self.boot, &self.devices);
        needs.files(self.record.record.as_deref(), self.save.as_deref());
        if let Some(pair) = &self.pair {
            needs.pair(pair, &self.api);
        }
        needs.found()
    }
}

/// A snapshot takes the place of the file of that name: it would do so with a device.
fn parse_save(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if text.is_empty() {
        return Err("the file's name is missing".into());
    }
    if out::is_stdout(&path) {
        return Err("standard output has the guest's console: name a file".into());
    }
    match path.metadata() {
        Ok(there) if !there.is_file() => Err("what is there is no file".into()),
        _ => Ok(path),
    }
}

/// Runs a machine to its end.
pub fn run(options: &RunOptions) -> Result<()> {
    let host = probe::at_start()?;
    let (status, control) = (Status::default(), Control::default());
    let pair = options.pair.as_ref();
    let _service = pair.map(|_| Service::start(&status)).transpose()?;
    let leave = pair.map(|_| Leave::new(&options.leave, &status, &control));
    let _api = pair
        .map(|pair| {
            let cards = cards::of(&options.boot, &options.devices.net, &pair.name)?;
            cards::warn_of_others(&pair.name, cards.clone());
            options.api.serve(pair, cards, &status, &control)
        })
        .transpose()?;
    let name = pair.map(|pair| pair.name.as_str());
    if pair.is_some() {
        // What does not run here takes no term either.
        options.boot.check(name, &options.devices, &host)?;
    }
    // The term comes first: a node that may not run the machine does not boot it.
    let pair = pair.map(|pair| take_term(pair, status, control)).transpose()?;
    let started = options.boot.start(name, "", &options.devices, &host)?;
    let span = Span::begin(&options.span)?;
    let record = &options.record;
    let session = Options {
        disks: options.devices.disk.clone(),
        nics: options.devices.net.clone(),
        record: record.place(),
        host_class: host.class,
        policy: options.policy.policy(
            host.strategies.grace_ns,
            record.record.is_some() || pair.is_some(),
            // A backup that differs names the pages.
            record.epoch_detail || pair.is_some(),
        ),
        log: record.log_options(),
        console: span.console(),
        save: options.save.clone(),
        pair,
        promotion: None,
        clock: options.boot.clock,
        // It is started by hand, and ends so that somebody sees it.
        restart: None,
    };
    let result = session::run(started, session, |outside, handle| {
        span.watch(outside, handle, leave.as_ref())
    });
    let kicks = span.end();
    print_report(&result?, kicks, options.span.json);
    Ok(())
}

fn take_term(args: &PairArgs, status: Status, control: Control) -> Result<Pair> {
    let record = args.take_term()?;
    args.pair(record, Unprotected::NeedBackup, status, control)
}
