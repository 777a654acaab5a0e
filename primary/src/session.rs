//! Running one machine to its end, recorded or not.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use lockstep_node::devices::HostDevices;
use lockstep_node::host::clock::boottime;
use lockstep_node::host::console::ConsoleOutput;
use lockstep_node::host::disk::Disks;
use lockstep_node::host::inbox::{Bell, Outside, inbox};
use lockstep_node::host::outputs::Outputs;
use lockstep_node::host::size::allocated;
use lockstep_node::host::tap::Tap;
use lockstep_node::pair::Pair;
use lockstep_node::policy::Policy;
use lockstep_node::recording::ring::Ring;
use lockstep_node::recording::{self, Place};
use lockstep_node::restart::{self, GuestEnd, Next};
use lockstep_node::sandbox::{self, Kind};
use lockstep_node::start::{Clock, DiskOption, NicOption, Started};
use lockstep_node::status::{Status, count};
use lockstep_node::tell;
use lockstep_proto::end::Reason;
use lockstep_proto::quantity::Term;
use lockstep_proto::{Hello, Identity};
use lockstep_vmm::devices::Effect;
use lockstep_vmm::machine::{Counters, Flow, Machine};
use lockstep_vmm::sys::kick::KickHandle;

use crate::link::{LinkPort, Live, LiveOptions, macs};
use crate::recorder::{
    Keeper, LogOptions, LogSummary, LogThread, Outlet, RecordError, Recorder, RecorderOptions, ThisHost, World,
};

/// How to run a machine.
pub struct Options {
    /// Its disks.
    pub disks: Vec<DiskOption>,
    /// Its NICs.
    pub nics: Vec<NicOption>,
    /// Where to record; `None`: nowhere.
    pub record: Option<Place>,
    /// This host's class.
    pub host_class: String,
    /// Recording policy.
    pub policy: Policy,
    /// Log files.
    pub log: LogOptions,
    /// Where console output goes.
    pub console: Box<dyn Write + Send>,
    /// Where to save the machine at the end.
    pub save: Option<PathBuf>,
    /// The pair that it is one of.
    pub pair: Option<Pair>,
    /// It was a replica until now.
    pub promotion: Option<Promotion>,
    /// What its clock does about the time that has gone by since it was saved.
    pub clock: Option<Clock>,
    /// What a reset does; `None`: it is the end.
    pub restart: Option<restart::Policy>,
}

impl Options {
    /// Where it is told how the machine is; of a machine that is alone, nobody asks.
    fn status(&self) -> Status {
        self.pair.as_ref().map(|pair| pair.status.clone()).unwrap_or_default()
    }
}

/// How a replica becomes live.
#[derive(Default)]
pub struct Promotion {
    /// Effects that may not have left the primary: they leave first.
    pub unreleased: Vec<Effect>,
    /// Time since the last of the log came: guest time goes on as if it had passed.
    pub silence: Duration,
}

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// Why the guest ended; `None`: it was stopped from outside.
    pub ended: Option<Reason>,
    /// What becomes of the machine.
    pub next: Next,
    /// An operator had suspended its protection.
    pub suspended: bool,
    /// Natural stops, from the run's start.
    pub stops: u64,
    /// What happened.
    pub counters: Counters,
    /// Guest time that passed, in nanoseconds.
    pub guest_ns: u64,
    /// Host time that passed.
    pub wall: Duration,
    /// The log, if there was one and it was kept to the end.
    pub log: Option<LogSummary>,
    /// Why the recording was stopped, if it was.
    pub unrecorded: Option<String>,
}

/// Runs `started` on this thread. `ready` gets the outside's ends of the inbox and a handle to kick the vCPU, before the
/// guest runs.
pub fn run(
    started: Started,
    options: Options,
    ready: impl FnOnce(Outside, KickHandle) -> Result<()>,
) -> Result<Report> {
    // Everything that can be missing is opened before anything is written.
    let devices = HostDevices::open(&options.disks, &options.nics)?;
    run_on(started, devices, options, ready)
}

/// As [`run`], with devices that are open already.
pub fn run_on(
    started: Started,
    devices: HostDevices,
    options: Options,
    ready: impl FnOnce(Outside, KickHandle) -> Result<()>,
) -> Result<Report> {
    devices.check_bootable()?;
    let config = started.machine.config();
    if options.pair.is_none() && devices.are_unplugged(config) {
        devices.check_disks(config)?;
        tell!(
            "lockstep: the machine has {} network cards, connected to nothing: none was given with --net",
            config.nics.len()
        );
    } else {
        devices.check(config)?;
    }
    let status = options.status();
    let log = match &options.record {
        None => None,
        Some(place) => match record(place, &started, &options, status.clone()) {
            Ok(log) => Some(log),
            // A machine that is protected does not stay down for want of a recording.
            Err(error) if options.pair.is_some() => {
                status.stop_recording(&format!("{error:#}"));
                None
            }
            Err(error) => return Err(error),
        },
    };
    go_live(started.machine, devices, options, log, ready)
}

/// Begins to record a machine where it begins.
fn record(place: &Place, started: &Started, options: &Options, status: Status) -> Result<LogThread> {
    let tenure = options.pair.as_ref().map(Pair::tenure);
    let prepare = |directory| recording::prepare(directory, started, &options.host_class, &options.disks, tenure);
    let log = if place.limits.are_given() {
        let ring = Arc::new(Ring::open(&place.directory, place.limits)?);
        let images = options.disks.iter().map(|disk| File::open(&disk.path));
        let on_disk = images.map(|image| image.and_then(|image| allocated(&image)).unwrap_or(0));
        ring.make_room(on_disk.sum(), Some(u32::MAX))?;
        let (part, directory) = ring.make_next()?;
        let identity = Identity {
            part,
            ..prepare(&directory)?
        };
        let first = Some((directory.as_path(), started.machine.now()));
        LogThread::ring(ring, identity, first, options.log, status)
    } else {
        let directory = &place.directory;
        LogThread::start(directory, &prepare(directory)?, options.log, status)
    };
    log.map_err(anyhow::Error::msg)
}

/// Runs `machine` on this thread with the world around it, to its end.
pub fn go_live(
    mut machine: Machine,
    devices: HostDevices,
    options: Options,
    log: Option<LogThread>,
    ready: impl FnOnce(Outside, KickHandle) -> Result<()>,
) -> Result<Report> {
    let first_stop = machine.stop();
    let began = machine.now();
    let status = options.status();
    status.look_at(devices.taps());
    let devices = devices.into_parts();
    let macs = macs(machine.config());
    let term = options.pair.as_ref().map_or(Term::NONE, |pair| pair.record.term);
    let kicks = machine.attach_to_this_thread()?;
    let (due, inputs, handle) = (kicks.timer()?, kicks.timer()?, kicks.handle());
    let (inbox, outside) = inbox(Bell::for_this_thread(inputs, options.policy.grace));
    let counted = status.clone();
    let mut outputs = Outputs {
        taps: devices.taps,
        console: ConsoleOutput::start(options.console, move |bytes| {
            count(&counted.gauges().console_dropped, bytes);
        })?,
    };
    let announce = if options.promotion.is_some() {
        macs.clone()
    } else {
        Vec::new()
    };
    if let Some(promotion) = &options.promotion {
        for effect in &promotion.unreleased {
            outputs.emit(effect);
        }
        for tap in &outputs.taps {
            tap.drain();
        }
        outputs.announce(&macs);
    }
    let mut taps = Vec::new();
    for (nic, sender) in outputs.taps.iter().enumerate() {
        taps.push(Tap::start(sender, nic as u32, outside.clone())?);
    }
    let (outlet, link) = match options.pair {
        None => (Outlet::Direct(outputs), None),
        Some(pair) => {
            let (port, ends) = LinkPort::new();
            let bell = inbox.bell.clone();
            let live = link_options(pair, &machine, &options.host_class, outputs, bell, announce);
            let live = Live::start(live, ends)?;
            (Outlet::Gated(Box::new(port)), Some(live))
        }
    };
    let world = World {
        disks: Disks::start(devices.images, Some(&inbox.bell))?,
        images: Arc::new(devices.paths.iter().map(File::open).collect::<std::io::Result<_>>()?),
        inbox,
        taps,
        keeper: devices.keeper,
        outlet,
        kernel: Box::new(ThisHost),
    };
    // A replica keeps epochs already.
    if options.policy.epoch.is_some() && options.promotion.is_none() {
        machine.start_epochs()?;
    }
    let mut recorder = Recorder::new(
        &machine,
        world,
        due,
        RecorderOptions {
            policy: options.policy,
            log: log.map(|log| Box::new(log) as Box<dyn Keeper>),
            host_class: options.host_class.clone(),
            status: status.clone(),
        },
    );
    if let Some(promotion) = &options.promotion {
        recorder.begin_term(&machine, term, "failing-over");
        recorder.catch_up(promotion.silence);
        recorder.follow_the_calendar(&machine);
    }
    match options.clock {
        Some(Clock::Freeze) => recorder.ignore_the_calendar(),
        Some(Clock::Slew) => recorder.follow_the_calendar(&machine),
        Some(Clock::Set) | None => {}
    }
    recorder.resume(&machine)?;
    let bell = outside.bell().clone();
    ready(outside, handle)?;
    sandbox::confine(if options.save.is_some() {
        Kind::VcpuSaving
    } else {
        Kind::Vcpu
    })?;
    let begin = Instant::now();
    let alive = status.pulses().vcpu.begin(move || {
        bell.wake();
        handle.kick();
    });
    let result = drive(&mut machine, &mut recorder);
    drop(alive);
    let wall = begin.elapsed();
    let ended = recorder.ended();
    let shut_down = recorder.is_shut_down();
    let suspended = status.is_suspended();
    let failure = result.as_ref().err().map(ToString::to_string);
    let log = recorder.finish(&machine, failure.as_deref());
    let mut next = match (&options.restart, ended) {
        (Some(policy), Some(how)) => policy.next(GuestEnd::of(&machine, how), boottime()),
        _ => Next::End,
    };
    let how = match ended {
        Some(Reason::Reset) => Some("the guest has reset"),
        Some(Reason::PoweredOff) => Some("the guest has powered off"),
        Some(_) => Some("the guest has halted"),
        None if shut_down => Some("an operator has ended the machine"),
        None => None,
    };
    if let (Some(link), Some(how)) = (link, how)
        && link.end(how, next == Next::Restart)
    {
        next = Next::End;
    }
    result?;
    let log = log?;
    if let Some(path) = &options.save {
        lockstep_vmm::snapshot::save(&machine, &options.host_class, path)?;
    }
    Ok(Report {
        ended,
        next,
        suspended,
        stops: machine.stop().since(first_stop),
        counters: machine.counters(),
        guest_ns: machine.now().ns_since(began),
        wall,
        log,
        unrecorded: status.recording().reason,
    })
}

/// Lets what a machine gave go, of which nothing else is left: its guest has ended, and its primary may not have let it.
pub fn let_go(devices: HostDevices, console: Box<dyn Write + Send>, unreleased: &[Effect]) -> Result<()> {
    let mut outputs = Outputs {
        taps: devices.into_parts().taps,
        console: ConsoleOutput::start(console, |_| ())?,
    };
    for effect in unreleased {
        outputs.emit(effect);
    }
    Ok(())
}

/// What the link of `pair` needs, for `machine`.
fn link_options(
    pair: Pair,
    machine: &Machine,
    host_class: &str,
    outputs: Outputs,
    bell: Bell,
    announce: Vec<[u8; 6]>,
) -> LiveOptions {
    LiveOptions {
        hello: Hello {
            node: pair.node,
            machine_name: pair.machine_name,
            machine: Some(machine.config().clone()),
            host_class: host_class.into(),
            ..Hello::default()
        },
        record: pair.record,
        timing: pair.timing,
        why: pair.why,
        peer: pair.peer,
        peer_name: pair.peer_name,
        credentials: pair.credentials,
        arbiter: pair.arbiter,
        commit: pair.commit,
        uplink: pair.uplink,
        control: pair.control,
        announce,
        outputs,
        bell,
        reports: pair.reports,
        status: pair.status,
    }
}

/// Steps the machine, and does what the link wants between two steps.
fn drive(machine: &mut Machine, recorder: &mut Recorder) -> Result<(), RecordError> {
    loop {
        let flow = machine.step(recorder)?;
        if recorder.is_done() {
            return Ok(());
        }
        if recorder.has_errand() {
            recorder.errands(machine)?;
            if recorder.is_done() {
                return Ok(());
            }
        } else if flow == Flow::End && !machine.is_halted() {
            return Ok(());
        }
    }
}
