//! `lockstep-backup run`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Result, ensure};
use lockstep_node::cli::again::{Watch, start_over, start_over_after_reset};
use lockstep_node::cli::cards;
use lockstep_node::cli::leave::Leave;
use lockstep_node::cli::node::{NodeArgs, StartRole};
use lockstep_node::cli::restart::stay_stopped;
use lockstep_node::cli::role::{self, Part};
use lockstep_node::cli::service::Service;
use lockstep_node::cli::span::Span;
use lockstep_node::control::Control;
use lockstep_node::devices::HostDevices;
use lockstep_node::host::clock::boottime;
use lockstep_node::host::inbox::Outside;
use lockstep_node::recording::ring::Ring;
use lockstep_node::restart::{Next, Policy};
use lockstep_node::status::Status;
use lockstep_primary::cli::report::print_report;
use lockstep_primary::session::{self, Options, Promotion, go_live};
use lockstep_proto::Tenure;
use lockstep_proto::program::model_revisions;
use lockstep_proto::session::{BackupIdentity, Record, Unprotected};
use lockstep_vmm::probe::{self, Start};
use lockstep_vmm::sys::kick::KickHandle;

use crate::standby::{Outcome, Promoted, Recordings, ReplicaOptions, Standby, StandbyOptions};

/// Stands by, or boots the machine where the record says so, and runs the machine once it is this node's. A node that
/// loses its machine to the other one starts over, and so does one whose guest has reset.
pub fn run(options: &NodeArgs) -> Result<()> {
    let place = options.record.place();
    ensure!(
        place.is_none_or(|place| place.limits.are_given()),
        "--record of a node that may stand by needs --record-max-bytes or --record-max-age-seconds: it begins to record again \
         with every machine that comes"
    );
    let (status, control) = (Status::default(), Control::default());
    let _service = Service::start(&status)?;
    let node = Node {
        options,
        host: probe::at_start()?,
        leave: Leave::new(&options.leave, &status, &control),
        restart: options.restart.policy(options.boots()),
        status,
        control,
        lost: Watch::default(),
    };
    let restarts = node.restart.so_far.total();
    node.status.gauges().restarts.store(restarts, Ordering::Relaxed);
    options.pair.timing()?;
    // Who boots with what is wrong is told so then; who stands by gets the machine as it is.
    let cards = cards::of(&options.boot, &options.devices.net, &options.pair.name).unwrap_or_default();
    cards::warn_of_others(&options.pair.name, cards.clone());
    let _api = options.api.serve(&options.pair, cards, &node.status, &node.control)?;
    let mut devices = HostDevices::open(&options.devices.disk, &options.devices.net)?;
    node.status.look_at(devices.taps());
    match node.part(&devices)? {
        Some(record) => node.boot(record, devices),
        None => match node.stand_by(&mut devices)? {
            Outcome::Promoted(promoted) => node.go_on(*promoted, devices),
            Outcome::Ended(end, unreleased) => {
                let span = Span::begin(&options.span)?;
                session::let_go(devices, span.console(), &unreleased)?;
                span.end();
                node.follow(node.restart.next(end, boottime()), false)
            }
            Outcome::Quit => Ok(()),
        },
    }
}

/// A node that runs.
struct Node<'a> {
    options: &'a NodeArgs,
    host: Start,
    status: Status,
    control: Control,
    lost: Watch,
    leave: Leave,
    restart: Policy,
}

impl Node<'_> {
    /// What it begins as: with the record that it won and boots in, or standing by.
    fn part(&self, devices: &HostDevices) -> Result<Option<Record>> {
        let pair = &self.options.pair;
        if self.options.role == StartRole::Backup {
            return Ok(None);
        }
        let mut arbiter = pair.open_arbiter()?;
        let may_boot = &mut || {
            devices.check_bootable()?;
            self.options
                .boot
                .check(Some(&pair.name), &self.options.devices, &self.host)
        };
        let kept = pair.kept();
        let patience = pair.patience()?;
        match role::decide(arbiter.as_mut(), &kept, &pair.node, patience, &self.status, may_boot)? {
            Part::Primary(record) => {
                tracing::info!(term = record.term.get(), "this node owns the machine and boots it");
                Ok(Some(record))
            }
            Part::Backup(record) => {
                tracing::info!(
                    term = record.term.get(),
                    "node `{}` owns the machine: this one stands by",
                    record.owner
                );
                Ok(None)
            }
        }
    }

    fn stand_by(&self, devices: &mut HostDevices) -> Result<Outcome> {
        let options = self.options;
        let standby = StandbyOptions {
            identity: BackupIdentity {
                node: options.pair.node.clone(),
                machine_name: options.pair.name.clone(),
                host_class: self.host.class.clone(),
                model_revisions: model_revisions(),
                nic_mtus: options.devices.net.iter().map(|nic| nic.mtu.unwrap_or(0)).collect(),
            },
            listen: options.listen,
            peer_name: options.pair.peer_name.clone(),
            credentials: options.pair.credentials()?,
            arbiter: options.pair.arbiter_port()?,
            uplink: options.pair.uplink(),
            status: self.status.clone(),
            control: self.control.clone(),
        };
        let replica = ReplicaOptions {
            disks: options.devices.disk.clone(),
            strategies: self.host.strategies.clone(),
            reports: options.pair.reports(),
            recordings: self.recordings(),
        };
        let (standby, mut replica) = Standby::start(standby, replica)?;
        let quit = standby.quit();
        self.leave.ends(move || quit.quit())?;
        replica.run(devices)
    }

    /// Where replicas are recorded. What cannot be recorded stands by all the same.
    fn recordings(&self) -> Option<Recordings> {
        let place = self.options.record.place()?;
        match Ring::open(&place.directory, place.limits) {
            Ok(ring) => Some(Recordings {
                ring: Arc::new(ring),
                log: self.options.record.log_options(),
                tenure: Tenure {
                    machine: self.options.pair.name.clone(),
                    node: self.options.pair.node.clone(),
                    ..Tenure::default()
                },
                status: self.status.clone(),
            }),
            Err(error) => {
                self.status.stop_recording(&format!("{error:#}"));
                None
            }
        }
    }

    /// Boots the machine in the term of `record`.
    fn boot(&self, record: Record, devices: HostDevices) -> Result<()> {
        let started = self.options.boot.start(
            Some(&self.options.pair.name),
            self.options.restart.first_words(),
            &self.options.devices,
            &self.host,
        )?;
        let span = Span::begin(&self.options.span)?;
        let why = if self.restart.suspended {
            Unprotected::Suspended
        } else {
            Unprotected::NeedBackup
        };
        let session = self.session(&span, record, why, None)?;
        let result = session::run_on(started, devices, session, |outside, handle| {
            self.watch(&span, outside, handle)
        });
        self.end(span, result)
    }

    /// Goes on with the machine that it was the replica of.
    fn go_on(&self, promoted: Promoted, devices: HostDevices) -> Result<()> {
        let Promoted {
            machine,
            record,
            unreleased,
            silence,
            claim,
            backlog,
            replayed,
            stalled,
            log,
        } = promoted;
        tracing::warn!(
            term = record.term.get(),
            stop = machine.stop().get(),
            effects = unreleased.len(),
            silence_ms = silence.as_millis() as u64,
            "the machine goes live here"
        );
        let span = Span::begin(&self.options.span)?;
        let promotion = Promotion { unreleased, silence };
        let why = if stalled {
            Unprotected::Stalled
        } else {
            Unprotected::LostConnection
        };
        let session = self.session(&span, record, why, Some(promotion))?;
        let result = go_live(machine, devices, session, log, |outside, handle| {
            tracing::info!(
                claim_us = claim.as_micros() as u64,
                backlog_us = backlog.as_micros() as u64,
                start_us = replayed.elapsed().as_micros() as u64,
                "the machine runs here"
            );
            self.watch(&span, outside, handle)
        });
        self.end(span, result)
    }

    fn session(&self, span: &Span, record: Record, why: Unprotected, promotion: Option<Promotion>) -> Result<Options> {
        let options = self.options;
        let pair = options
            .pair
            .pair(record, why, self.status.clone(), self.control.clone())?;
        Ok(Options {
            disks: options.devices.disk.clone(),
            nics: options.devices.net.clone(),
            record: options.record.place(),
            host_class: self.host.class.clone(),
            // A backup that differs names the pages.
            policy: options.policy.policy(self.host.strategies.grace_ns, true, true),
            log: options.record.log_options(),
            console: span.console(),
            save: None,
            pair: Some(pair),
            clock: options.boot.clock.filter(|_| promotion.is_none()),
            promotion,
            restart: Some(self.restart.clone()),
        })
    }

    fn watch(&self, span: &Span, outside: Outside, handle: KickHandle) -> Result<()> {
        self.lost.start(&self.status, outside.bell().clone(), &self.leave)?;
        span.watch(outside, handle, Some(&self.leave))
    }

    /// The machine's end: for good, or because the other node has it and this one goes on standing by.
    fn end(&self, span: Span, result: Result<session::Report>) -> Result<()> {
        let kicks = span.end();
        let report = result?;
        if self.lost.is_lost() && !self.leave.is_asked() {
            tracing::warn!("the other node has the machine: this one starts over");
            return Err(start_over());
        }
        print_report(&report, kicks, self.options.span.json);
        self.follow(report.next, report.suspended)
    }

    /// Does what is next after a guest's end.
    fn follow(&self, next: Next, suspended: bool) -> Result<()> {
        match next {
            Next::Restart if !self.leave.is_asked() => {
                let restarts = self.restart.so_far.clone().and_one(boottime());
                let times = restarts.total();
                tracing::warn!(times, "the guest has reset: this node starts over and boots it anew");
                Err(start_over_after_reset(&restarts, suspended))
            }
            Next::Stopped(why) if !self.leave.is_asked() => stay_stopped(why, &self.status, &self.control, &self.leave),
            _ => Ok(()),
        }
    }
}
