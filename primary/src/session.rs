//! Running one machine to its end, recorded or not.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lockstep_proto::end::Reason;
use lockstep_vmm::machine::Counters;
use lockstep_vmm::sys::kick::KickHandle;

use crate::host::console::ConsoleOutput;
use crate::host::disk::Disks;
use crate::host::image::Image;
use crate::host::inbox::{Bell, Outside, inbox};
use crate::host::tap::Tap;
use crate::recorder::{LogOptions, LogSummary, LogThread, Policy, Recorder, World};
use crate::recording;
use crate::start::{DiskOption, NicOption, Started};

/// How to run a machine.
pub struct Options {
    /// Its disks.
    pub disks: Vec<DiskOption>,
    /// Its NICs.
    pub nics: Vec<NicOption>,
    /// Where to record; `None`: nowhere.
    pub record: Option<PathBuf>,
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
}

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// Why the guest ended; `None`: it was stopped from outside.
    pub ended: Option<Reason>,
    /// Natural stops, from the run's start.
    pub stops: u64,
    /// What happened.
    pub counters: Counters,
    /// Guest time that passed, in nanoseconds.
    pub guest_ns: u64,
    /// Host time that passed.
    pub wall: Duration,
    /// The log, if there was one.
    pub log: Option<LogSummary>,
}

/// Runs `started` on this thread. `ready` gets the outside's ends of the inbox and a handle to kick the vCPU, before the
/// guest runs.
pub fn run(
    started: Started,
    options: Options,
    ready: impl FnOnce(Outside, KickHandle) -> Result<()>,
) -> Result<Report> {
    let config = started.machine.config().clone();
    if config.disks.len() != options.disks.len() {
        bail!(
            "the machine has {} disks and {} were given with --disk",
            config.disks.len(),
            options.disks.len()
        );
    }
    if config.nics.len() != options.nics.len() {
        bail!(
            "the machine has {} NICs and {} were given with --net",
            config.nics.len(),
            options.nics.len()
        );
    }
    // Everything that can be missing is opened before anything is written.
    let taps = options
        .nics
        .iter()
        .map(|nic| Tap::open(&nic.tap))
        .collect::<std::io::Result<Vec<_>>>()?;
    let mut images = Vec::new();
    for (disk, config) in options.disks.iter().zip(&config.disks) {
        let image = Image::open(&disk.path, disk.read_only)
            .with_context(|| format!("cannot open disk image {}", disk.path.display()))?;
        if image.bytes()? != config.bytes {
            bail!(
                "disk image {} has {} bytes and the machine's disk {}",
                disk.path.display(),
                image.bytes()?,
                config.bytes
            );
        }
        images.push(image);
    }
    let log = match &options.record {
        Some(directory) => {
            let identity = recording::prepare(directory, &started, &options.host_class, &options.disks)?;
            Some(LogThread::start(directory, &identity, options.log).map_err(anyhow::Error::msg)?)
        }
        None => None,
    };
    let mut machine = started.machine;
    let first_stop = machine.stop();
    let first_ns = machine.now();
    let kicks = machine.attach_to_this_thread()?;
    let (due, inputs, handle) = (kicks.timer()?, kicks.timer()?, kicks.handle());
    let (inbox, outside) = inbox(Bell::for_this_thread(inputs, options.policy.grace));
    let mut opened = Vec::new();
    for (nic, device) in taps.into_iter().enumerate() {
        opened.push(Tap::start(device, nic as u32, outside.clone())?);
    }
    let world = World {
        disks: Disks::start(images, Some(&inbox.bell))?,
        inbox,
        taps: opened,
        console: ConsoleOutput::start(options.console)?,
    };
    if options.policy.epoch.is_some() {
        machine.start_epochs()?;
    }
    let mut recorder = Recorder::new(&machine, world, options.policy, due, log);
    recorder.resume(&machine)?;
    ready(outside, handle)?;
    let begin = Instant::now();
    let result = machine.run(&mut recorder);
    let wall = begin.elapsed();
    let ended = recorder.ended();
    let failure = result.as_ref().err().map(ToString::to_string);
    let log = recorder.finish(&machine, failure.as_deref());
    result?;
    let log = log?;
    if let Some(path) = &options.save {
        lockstep_vmm::snapshot::save(&machine, &options.host_class, path)?;
    }
    Ok(Report {
        ended,
        stops: machine.stop() - first_stop,
        counters: machine.counters(),
        guest_ns: machine.now() - first_ns,
        wall,
        log,
    })
}
