//! `lockstep-backup run`.

use std::net::SocketAddr;

use anyhow::Result;
use clap::Args;
use lockstep_primary::cli::args::{DeviceArgs, PolicyArgs, SpanArgs};
use lockstep_primary::cli::pair::PairArgs;
use lockstep_primary::cli::report::print_report;
use lockstep_primary::cli::span::{Span, on_signal};
use lockstep_primary::link::{Control, Status};
use lockstep_primary::recorder::LogOptions;
use lockstep_primary::session::{HostDevices, Options, Promotion, go_live};
use lockstep_proto::session::{BackupIdentity, Unprotected};
use lockstep_vmm::machine::MODEL_REVISION;
use lockstep_vmm::probe::{self, Start};

use crate::standby::{Outcome, Promoted, ReplicaOptions, Standby, StandbyOptions};

/// Whom to stand by for, and how.
#[derive(Args)]
pub struct RunOptions {
    /// Where to wait for the primary (UDP).
    #[arg(long, value_name = "IP:PORT")]
    listen: SocketAddr,
    #[command(flatten)]
    pair: PairArgs,
    #[command(flatten)]
    devices: DeviceArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    span: SpanArgs,
}

/// Stands by, and runs the machine once it is this node's.
pub fn run(options: &RunOptions) -> Result<()> {
    let Start { class, strategies } = probe::at_start()?;
    options.pair.timing()?;
    let mut devices = HostDevices::open(&options.devices.disk, &options.devices.net)?;
    let (status, control) = (Status::default(), Control::default());
    let standby = StandbyOptions {
        identity: BackupIdentity {
            node: options.pair.node.clone(),
            machine_name: options.pair.name.clone(),
            host_class: class.clone(),
            model_revision: MODEL_REVISION,
        },
        listen: options.listen,
        peer_name: options.pair.peer_name.clone(),
        tls: options.pair.server_tls()?,
        arbiter: options.pair.arbiter_port()?,
        uplink: options.pair.uplink(),
        status: status.clone(),
        control: control.clone(),
    };
    let replica = ReplicaOptions {
        disks: options.devices.disk.clone(),
        reset_slots: strategies.reset_slots_after_delta,
    };
    let (standby, mut replica) = Standby::start(standby, replica)?;
    let quit = standby.quit();
    on_signal(move || quit.quit())?;
    let Outcome::Promoted(promoted) = replica.run(&mut devices)? else {
        return Ok(());
    };
    drop(standby);
    let Promoted {
        machine,
        record,
        unreleased,
        silence,
    } = *promoted;
    tracing::warn!(
        term = record.term,
        stop = machine.stop(),
        effects = unreleased.len(),
        silence_ms = silence.as_millis() as u64,
        "the machine goes live here"
    );
    let span = Span::begin(&options.span)?;
    let pair = options
        .pair
        .pair(record, Unprotected::LostConnection, status, control)?;
    let session = Options {
        disks: options.devices.disk.clone(),
        nics: options.devices.net.clone(),
        record: None,
        host_class: class,
        policy: options.policy.policy(strategies.grace_ns, true, false),
        log: LogOptions::default(),
        console: span.console(),
        save: None,
        pair: Some(pair),
        promotion: Some(Promotion { unreleased, silence }),
    };
    let result = go_live(machine, devices, session, None, |outside, handle| {
        span.watch(outside, handle)
    });
    let kicks = span.end();
    print_report(&result?, kicks, options.span.json);
    Ok(())
}
