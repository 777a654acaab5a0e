//! `lockstep-primary run`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use lockstep_proto::session::Unprotected;
use lockstep_vmm::probe::{self, Start};
use lockstep_vmm::snapshot::Restore;

use super::args::{DeviceArgs, PolicyArgs, RecordArgs, SpanArgs};
use super::pair::PairArgs;
use super::report::print_report;
use super::span::Span;
use crate::link::{Control, Status};
use crate::pair::Pair;
use crate::recorder::LogOptions;
use crate::session::{self, Options};
use crate::start::{self, BootOptions, Started};

/// What to run, and how.
#[derive(Args)]
pub struct RunOptions {
    /// Kernel to boot: an ELF vmlinux or a bzImage.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "snapshot",
        conflicts_with = "snapshot"
    )]
    kernel: Option<PathBuf>,
    /// Initial root file system (cpio).
    #[arg(long, value_name = "FILE", conflicts_with = "snapshot")]
    initrd: Option<PathBuf>,
    /// Words for the kernel's command line, beside those that the machine needs.
    #[arg(long, value_name = "WORDS", default_value = "", conflicts_with = "snapshot")]
    cmdline: String,
    /// Guest memory in MiB.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u64).range(16..=262_144))]
    memory_mib: u64,
    /// Go on from a snapshot instead of booting.
    #[arg(long, value_name = "FILE")]
    snapshot: Option<PathBuf>,
    /// Save the machine into this file when the run is ended from outside.
    #[arg(long, value_name = "FILE")]
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
}

/// Runs a machine to its end.
pub fn run(options: &RunOptions) -> Result<()> {
    let Start { class, strategies } = probe::at_start()?;
    // The term comes first: a node that may not run the machine does not boot it.
    let pair = options.pair.as_ref().map(take_term).transpose()?;
    let mut started = start(options, &class)?;
    started
        .machine
        .reset_slots_after_delta(strategies.reset_slots_after_delta);
    if let Some(report) = &started.rewrites {
        eprintln!("lockstep-primary: kernel: {report}");
    }
    let span = Span::begin(&options.span)?;
    let record = &options.record;
    let session = Options {
        disks: options.devices.disk.clone(),
        nics: options.devices.net.clone(),
        record: record.record.clone(),
        host_class: class,
        policy: options.policy.policy(
            strategies.grace_ns,
            record.record.is_some() || pair.is_some(),
            record.epoch_detail,
        ),
        log: LogOptions {
            compress: record.compress,
            ..LogOptions::default()
        },
        console: span.console(),
        save: options.save.clone(),
        pair,
        promotion: None,
    };
    let result = session::run(started, session, |outside, handle| span.watch(outside, handle));
    let kicks = span.end();
    print_report(&result?, kicks, options.span.json);
    Ok(())
}

fn take_term(args: &PairArgs) -> Result<Pair> {
    let record = args.take_term()?;
    args.pair(record, Unprotected::NeedBackup, Status::default(), Control::default())
}

fn start(options: &RunOptions, class: &str) -> Result<Started> {
    if let Some(path) = &options.snapshot {
        let (machine, digest) = Restore::open(path)?.finish(class)?;
        tracing::debug!(digest = ?digest, "restored");
        let started = Started {
            machine,
            kernel_digest: Vec::new(),
            initrd_digest: Vec::new(),
            kernel_path: String::new(),
            rewrites: None,
        };
        return Ok(started);
    }
    let Some(kernel) = options.kernel.clone() else {
        bail!("--kernel or --snapshot is needed")
    };
    let boot = BootOptions {
        kernel,
        initrd: options.initrd.clone(),
        cmdline: options.cmdline.clone(),
        memory_mib: options.memory_mib,
        disks: options.devices.disk.clone(),
        nics: options.devices.net.clone(),
    };
    start::boot(&boot)
}
