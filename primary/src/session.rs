//! Running one machine to its end, recorded or not.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lockstep_proto::end::Reason;
use lockstep_proto::{Identity, MachineConfig};
use lockstep_vmm::devices::{DiskOp, Effect};
use lockstep_vmm::machine::{Counters, Flow, Machine};
use lockstep_vmm::sys::kick::KickHandle;

use crate::durable;
use crate::host::console::ConsoleOutput;
use crate::host::disk::Disks;
use crate::host::image::Image;
use crate::host::inbox::{Bell, Outside, inbox};
use crate::host::outputs::Outputs;
use crate::host::size::{allocated, marked_as};
use crate::host::tap::{Tap, TapKeeper, TapSender, Taps};
use crate::link::status::count;
use crate::link::{LinkPort, Live, Status, macs};
use crate::pair::Pair;
use crate::recorder::{LogOptions, LogSummary, LogThread, Outlet, Policy, RecordError, Recorder, World};
use crate::recording::ring::Ring;
use crate::recording::{self, Place};
use crate::sandbox::{self, Kind};
use crate::start::{DiskOption, NicOption, Started};

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
    devices.check(started.machine.config())?;
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

/// What a machine's devices need of the host, opened.
pub struct HostDevices {
    taps: Vec<TapSender>,
    /// What each card tells the guest; 0: nothing.
    mtus: Vec<u32>,
    keeper: TapKeeper,
    images: Vec<Image>,
    paths: Vec<PathBuf>,
    /// What each disk's marks are named after.
    marked_as: Vec<PathBuf>,
}

impl HostDevices {
    /// Opens tap devices and disk images. A tap device that does not exist is waited for: a node can stand by without.
    pub fn open(disks: &[DiskOption], nics: &[NicOption]) -> Result<Self> {
        let taps = nics
            .iter()
            .map(|nic| TapSender::open_or_wait(&nic.tap))
            .collect::<std::io::Result<Vec<_>>>()?;
        let images = disks
            .iter()
            .map(|disk| {
                Image::open(&disk.path, disk.read_only)
                    .with_context(|| format!("cannot open disk image {}", disk.path.display()))
            })
            .collect::<Result<Vec<_>>>()?;
        let paths: Vec<PathBuf> = disks.iter().map(|disk| disk.path.clone()).collect();
        let marked_as = paths
            .iter()
            .map(|path| marked_as(path))
            .collect::<std::io::Result<_>>()?;
        Ok(Self {
            keeper: TapKeeper::start(&taps)?,
            taps,
            mtus: nics.iter().map(|nic| nic.mtu.unwrap_or(0)).collect(),
            images,
            paths,
            marked_as,
        })
    }

    /// Whether they are those of a machine with this configuration.
    pub fn check(&self, config: &MachineConfig) -> Result<()> {
        if config.disks.len() != self.images.len() {
            bail!(
                "the machine has {} disks and {} were given with --disk",
                config.disks.len(),
                self.images.len()
            );
        }
        if config.nics.len() != self.taps.len() {
            bail!(
                "the machine has {} NICs and {} were given with --net",
                config.nics.len(),
                self.taps.len()
            );
        }
        for (index, (nic, mtu)) in config.nics.iter().zip(&self.mtus).enumerate() {
            if nic.mtu != *mtu {
                let told = |mtu: u32| {
                    if mtu == 0 {
                        "no mtu=".into()
                    } else {
                        format!("mtu={mtu}")
                    }
                };
                bail!(
                    "the machine's NIC {index} was made with {}, and --net has {}: give it as the machine has it",
                    told(nic.mtu),
                    told(*mtu)
                );
            }
        }
        for ((image, path), config) in self.images.iter().zip(&self.paths).zip(&config.disks) {
            if image.bytes()? != config.bytes {
                bail!(
                    "disk image {} has {} bytes and the machine's disk {}",
                    path.display(),
                    image.bytes()?,
                    config.bytes
                );
            }
        }
        Ok(())
    }

    /// How the tap devices are.
    pub fn taps(&self) -> Taps {
        self.keeper.taps()
    }

    /// Whether a machine may boot with them: its tap devices exist, and no disk is a replica's, which is behind, or in the
    /// middle of being copied.
    pub fn check_bootable(&self) -> Result<()> {
        self.taps.iter().try_for_each(TapSender::check)?;
        for (path, marked) in self.paths.iter().zip(&self.marked_as) {
            let mark = mark_of(marked);
            let of = match fs::read_to_string(&mark) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                // What cannot be read may be a mark.
                read => read.with_context(|| format!("cannot look for {}", mark.display()))?,
            };
            bail!(
                "disk image {} is a backup's and was never live (its primary: {}). Let this node stand by: \
                 lockstep-backup run. If the primary is lost for good and this disk is better than none, remove {}",
                path.display(),
                of.trim(),
                mark.display()
            );
        }
        Ok(())
    }

    /// Marks the disks as a replica's, of the primary with this name: no machine boots from them.
    pub fn mark_replica(&self, primary: &str) -> Result<()> {
        for (path, marked) in self.paths.iter().zip(&self.marked_as) {
            // A mark that is there stays until the new one takes its place: a full disk must not take it away.
            let staged = beside(marked, ".replica.new");
            make_room_for(marked)
                .and_then(|()| durable::stage(&staged, format!("{primary}\n").as_bytes(), 0o644))
                .and_then(|()| durable::publish(&staged, &mark_of(marked)))
                .with_context(|| format!("cannot mark {} as a backup's", path.display()))?;
        }
        Ok(())
    }

    /// Makes the disks a live machine's: what was written is on the disk, and then the mark goes.
    pub fn unmark_replica(&mut self) -> Result<()> {
        let named = self.paths.iter().zip(&self.marked_as);
        for (image, (path, marked)) in self.images.iter_mut().zip(named) {
            let done = image.execute(&DiskOp::Flush).map(drop);
            done.with_context(|| format!("cannot sync disk image {}", path.display()))?;
            let mark = mark_of(marked);
            if mark.exists() {
                fs::remove_file(&mark)
                    .and_then(|()| durable::settle(&mark))
                    .with_context(|| format!("cannot remove {}", mark.display()))?;
            }
        }
        Ok(())
    }

    /// The disk images, to read.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// Makes a replica's disks those of a machine that is owned here by force. `why` is kept beside them.
    pub fn promote(&mut self, why: &str) -> Result<()> {
        for marked in &self.marked_as {
            let kept = beside(marked, ".promoted");
            make_room_for(marked)
                .and_then(|()| durable::stage(&kept, why.as_bytes(), 0o644))
                .and_then(|()| durable::settle(&kept))
                .with_context(|| format!("cannot write {}", kept.display()))?;
        }
        self.unmark_replica()
    }

    /// The disk images, for a replica; the tap devices stay.
    pub fn take_images(&mut self) -> Vec<Image> {
        std::mem::take(&mut self.images)
    }

    /// Gives the disk images back.
    pub fn put_images(&mut self, disks: &[DiskOption]) -> Result<()> {
        for disk in disks {
            let image = Image::open(&disk.path, disk.read_only);
            self.images
                .push(image.with_context(|| format!("cannot open disk image {}", disk.path.display()))?);
        }
        Ok(())
    }
}

/// Makes the directory that a disk's marks lie in. An image's own is there.
fn make_room_for(marked: &Path) -> io::Result<()> {
    let directory = marked.parent().filter(|parent| !parent.as_os_str().is_empty());
    fs::create_dir_all(directory.unwrap_or(Path::new(".")))
}

/// The file that marks a disk as a replica's.
fn mark_of(image: &Path) -> PathBuf {
    beside(image, ".replica")
}

fn beside(image: &Path, suffix: &str) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(suffix);
    name.into()
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
    let first_ns = machine.now();
    let status = options.status();
    status.look_at(devices.taps());
    let macs = macs(machine.config());
    let term = options.pair.as_ref().map_or(0, |pair| pair.record.term);
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
            let live = Live::start(
                pair.into_live(&machine, &options.host_class, outputs, inbox.bell.clone(), announce),
                ends,
            )?;
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
    };
    // A replica keeps epochs already.
    if options.policy.epoch.is_some() && options.promotion.is_none() {
        machine.start_epochs()?;
    }
    let mut recorder = Recorder::new(
        &machine,
        world,
        options.policy,
        due,
        log,
        options.host_class.clone(),
        status.clone(),
    );
    if let Some(promotion) = &options.promotion {
        recorder.begin_term(&machine, term, "failing-over");
        recorder.catch_up(promotion.silence);
        recorder.follow_the_calendar(&machine);
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
    let failure = result.as_ref().err().map(ToString::to_string);
    let log = recorder.finish(&machine, failure.as_deref());
    match (link, ended) {
        (Some(link), Some(Reason::Reset)) => link.end("the guest has reset"),
        (Some(link), Some(_)) => link.end("the guest has halted"),
        (Some(link), None) if shut_down => link.end("an operator has ended the machine"),
        _ => {}
    }
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
        unrecorded: status.recording().reason,
    })
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
