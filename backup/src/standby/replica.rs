//! The replica's thread: builds the machine that comes, replays its log, and ends with a machine that may go live.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use lockstep_logcodec::{StreamChecker, record::unpack_pages};
use lockstep_node::devices::HostDevices;
use lockstep_node::history::History;
use lockstep_node::host::chunks::Piece;
use lockstep_node::host::disk::Disks;
use lockstep_node::host::image::Image;
use lockstep_node::reports::{BEGIN, Reports};
use lockstep_node::restart::GuestEnd;
use lockstep_node::sandbox::{self, Kind};
use lockstep_node::start::{DiskOption, adapt};
use lockstep_primary::link::have::Packer;
use lockstep_primary::recorder::LogThread;
use lockstep_proto::quantity::{LogPosition, StopNumber};
use lockstep_proto::session::Record;
use lockstep_proto::{DiskChunk, Diverged, Hello, JoinState, MachineConfig, PageChunk};
use lockstep_replay::divergence::DifferentPage;
use lockstep_replay::patience::Patience;
use lockstep_replay::{Mismatch, ReplayError, Replayer};
use lockstep_vmm::devices::Effect;
use lockstep_vmm::machine::Machine;
use lockstep_vmm::memory::{Memory, PAGE_SIZE};
use lockstep_vmm::probe::Strategies;
use lockstep_vmm::snapshot;
use tokio::sync::mpsc;

use super::chunks;
use super::healing::Healing;
use super::kept::Kept;
use super::recording::{self, Recorded, Recording, Recordings};
use super::source::{Ended, LiveSource};
use super::{Inlet, Order, ReplicaEnds, Report};

/// What a replica needs.
pub struct ReplicaOptions {
    /// The disks' images.
    pub disks: Vec<DiskOption>,
    /// How this host is used.
    pub strategies: Strategies,
    /// Where divergence reports are kept.
    pub reports: Reports,
    /// Where it is recorded, if anywhere.
    pub recordings: Option<Recordings>,
}

/// How standing by ended.
pub enum Outcome {
    /// The machine goes live.
    Promoted(Box<Promoted>),
    /// The term is won, and the machine has ended in this way before its primary was lost: the disks have all that it wrote, and
    /// these effects may not have left the primary.
    Ended(GuestEnd, Vec<Effect>),
    /// The process is to end.
    Quit,
}

/// A machine that goes live here.
pub struct Promoted {
    /// Where the log ended.
    pub machine: Machine,
    /// The record that was won.
    pub record: Record,
    /// Effects that may not have left the primary.
    pub unreleased: Vec<Effect>,
    /// Time since the last of the log came.
    pub silence: Duration,
    /// How long the term took from the first question to the arbiter.
    pub claim: Duration,
    /// How long what had come took to replay after that.
    pub backlog: Duration,
    /// When all was replayed.
    pub replayed: Instant,
    /// It was stalled where it ran before.
    pub stalled: bool,
    /// Its recording, which goes on.
    pub log: Option<LogThread>,
}

/// Builds and replays machines until one goes live.
pub struct Replica {
    ends: ReplicaEnds,
    options: ReplicaOptions,
    /// Memory of the last machine that was thrown away: the next join sends only what differs.
    retained: Option<Memory>,
    /// Registers at the last stops of the machine that replays.
    history: History,
    /// The memory of the last machine is that of one that went another way, or on its way from there to the primary's.
    healing: Option<Healing>,
}

/// A machine on its way here.
struct Arriving {
    memory: Memory,
    config: MachineConfig,
    inlet: Inlet,
    images: Vec<Image>,
    came: Came,
    state: Option<Box<JoinState>>,
}

/// Pages and chunks of disks that have come, each as often as it was sent.
#[derive(Clone, Copy, Debug, Default)]
struct Came {
    pages: u64,
    chunks: u64,
}

impl Came {
    /// Whether this is all that the primary has sent. Its state has a stream of its own, and may be here before the last
    /// of it.
    fn is_all(self, state: &JoinState) -> bool {
        self.pages >= state.pages && self.chunks >= state.disk_chunks
    }
}

impl Replica {
    pub(super) fn new(ends: ReplicaEnds, options: ReplicaOptions) -> Self {
        Self {
            ends,
            options,
            retained: None,
            history: History::default(),
            healing: None,
        }
    }

    /// Stands by until a machine goes live or the process is to end. `devices` has the disks' images between two machines.
    pub fn run(&mut self, devices: &mut HostDevices) -> Result<Outcome> {
        // From here on this thread opens what the machine needs, and nothing else.
        sandbox::confine(Kind::Replica)?;
        let mut arriving = None;
        loop {
            let Ok(order) = self.ends.orders.recv() else {
                return Ok(Outcome::Quit);
            };
            let result = match order {
                Order::Prepare(hello, inlet) => {
                    let bytes = hello.machine.as_ref().map_or(0, |machine| machine.memory_bytes);
                    let retained = self.retained.take().filter(|memory| memory.bytes() == bytes);
                    if retained.is_none() {
                        self.healing = None;
                    }
                    prepare(&hello, inlet, devices, retained).map(|new| arriving = Some(new))
                }
                Order::Pages(chunk, weight) => {
                    let healing = self.healing.as_mut();
                    with(&mut arriving, |arriving| take_pages(arriving, &chunk, weight, healing))
                }
                Order::Chunk(chunk, weight) => with(&mut arriving, |arriving| take_chunk(arriving, &chunk, weight)),
                Order::Build(state) => with(&mut arriving, |arriving| {
                    arriving.state = Some(state);
                    Ok(())
                }),
                Order::Discard => self.discard(&mut arriving, devices),
                // There is no machine; the session asks for one that it has seen built.
                Order::Promote(_) => bail!("the term was won without a machine"),
                Order::Quit => return Ok(Outcome::Quit),
            };
            if let Err(error) = result {
                self.report(Report::Unfit(format!("{error:#}")));
                self.discard(&mut arriving, devices)?;
            }
            if let Some(whole) = take_whole(&mut arriving)
                && let Some(outcome) = self.replay(whole, devices)?
            {
                return Ok(outcome);
            }
        }
    }

    /// Throws away what has come of a machine; its disks stay marked as no machine's.
    fn discard(&mut self, arriving: &mut Option<Arriving>, devices: &mut HostDevices) -> Result<()> {
        // What else came is dropped here, the images' locks with it: they are opened anew.
        if let Some(memory) = arriving.take().map(|arriving| arriving.memory) {
            self.retained = Some(memory);
            devices.put_images(&self.options.disks)?;
        }
        Ok(())
    }

    fn report(&self, report: Report) {
        // The link's thread ends only with the process.
        let _ = self.ends.reports.send(report);
    }

    /// Builds the machine and replays until the log ends. `None`: stand by for the next one.
    fn replay(&mut self, arrived: Whole, devices: &mut HostDevices) -> Result<Option<Outcome>> {
        let (mut machine, mut replayer, kept, fate, recording) = match self.build(arrived) {
            Ok(built) => built,
            Err(error) => {
                devices.put_images(&self.options.disks)?;
                self.report(Report::Unfit(format!("{error:#}")));
                return Ok(None);
            }
        };
        self.report(Report::Built);
        if let Some(healing) = self.healing.take() {
            healing.finish();
        }
        let result = recording::replay(&mut machine, &mut replayer, &recording)
            .map_err(|error| replayer.explain(&machine, error));
        let replayed = Instant::now();
        let ended = fate.borrow().ended.clone();
        let guest_ended = replayer.guest_ended();
        drop(replayer);
        devices.put_images(&self.options.disks)?;
        self.retained = Some(machine.memory().share());
        let goes_on = result.is_ok() && guest_ended.is_none() && matches!(ended, Some(Ended::Promoted(_)));
        let log = if goes_on { recording.borrow_mut().take() } else { None };
        recording.borrow_mut().close();
        if let (Ok(()), Some(Ended::Promoted(_)), Some(how)) = (&result, &ended, guest_ended) {
            tracing::info!("the guest had ended before its primary was lost: there is nothing to go on with");
            devices.unmark_replica()?;
            let released = LogPosition::new(self.ends.released.load(Ordering::Acquire));
            let end = GuestEnd::of(&machine, how);
            return Ok(Some(Outcome::Ended(end, kept.borrow_mut().take(released))));
        }
        match (result, ended) {
            (Ok(()), Some(Ended::Promoted(takeover))) => {
                devices.unmark_replica()?;
                let released = LogPosition::new(self.ends.released.load(Ordering::Acquire));
                let silence = fate.borrow().last_record.map_or(Duration::ZERO, |at| at.elapsed());
                let promoted = Promoted {
                    machine,
                    unreleased: kept.borrow_mut().take(released),
                    silence,
                    claim: takeover.won - takeover.asked,
                    backlog: replayed.saturating_duration_since(takeover.won),
                    replayed,
                    log,
                    stalled: takeover.stalled,
                    record: takeover.record,
                };
                Ok(Some(Outcome::Promoted(Box::new(promoted))))
            }
            (Err(error), Some(Ended::Promoted(_))) => {
                bail!("the term was won, but the log that was received cannot be replayed: {error}")
            }
            (_, Some(Ended::Quit)) => Ok(Some(Outcome::Quit)),
            (_, Some(Ended::Discarded)) => Ok(None),
            (Err(error @ ReplayError::Disk(_)), None) => {
                // The guest is as it should be; this host is not fit for it.
                self.report(Report::Unfit(error.to_string()));
                Ok(None)
            }
            (Err(error), None) => {
                self.diverged(machine.stop(), error.to_string(), suspects(&error));
                Ok(None)
            }
            (Ok(()), None) => {
                self.diverged(machine.stop(), "the guest has ended here".into(), Vec::new());
                Ok(None)
            }
        }
    }

    fn diverged(&mut self, stop: StopNumber, report: String, suspects: Vec<DifferentPage>) {
        tracing::error!(stop = stop.get(), "{BEGIN}\n{report}");
        self.healing = Some(Healing::new(self.options.reports.keep(&report), suspects));
        let registers = self.history.to_message();
        self.report(Report::Diverged(Diverged {
            stop: stop.get(),
            report,
            registers,
        }));
    }

    fn build(&mut self, arrived: Whole) -> Result<Built> {
        let Whole {
            memory,
            state,
            inlet,
            images,
        } = arrived;
        let begin = Instant::now();
        let header = state.machine.context("the join's state has no machine")?;
        let mut machine = snapshot::build(&header, memory, &state.memory_digest)?;
        adapt(&mut machine, &self.options.strategies)?;
        let timer = machine.attach_to_this_thread()?.timer();
        let timer = timer.context("cannot make a timer")?;
        machine.start_epochs()?;
        let disks = Disks::start(images, None)?;
        let checker = StreamChecker::new(machine.config(), machine.stop(), machine.chain().to_message());
        let (source, fate) = LiveSource::new(inlet, self.ends.orders.clone(), checker);
        let recording = self
            .options
            .recordings
            .as_ref()
            .map_or_else(Recording::default, |recordings| {
                recordings.start(&machine, &header.host_class, &self.options.disks)
            });
        let recording = Rc::new(RefCell::new(recording));
        let source = Recorded::new(source, recording.clone());
        let mut replayer = Replayer::new(Box::new(source), &machine, disks, Patience::new(timer));
        replayer.resume(&machine)?;
        self.history = History::default();
        replayer.keep_history(self.history.clone());
        let base = LogPosition::new(state.position);
        let kept = Rc::new(RefCell::new(Kept::default()));
        let (sink, released) = (kept.clone(), self.ends.released.clone());
        replayer.on_effect(move |batch, effect| {
            let released = LogPosition::new(released.load(Ordering::Acquire));
            sink.borrow_mut().push(base.plus(batch.count()), effect, released);
        });
        let reports = self.ends.reports.clone();
        replayer.on_batch(move |batches, stop| {
            let _ = reports.send(Report::Verified(base.plus(batches), stop));
        });
        tracing::info!(
            stop = machine.stop().get(),
            milliseconds = begin.elapsed().as_millis() as u64,
            "the machine is here"
        );
        Ok((machine, replayer, kept, fate, recording))
    }
}

/// The pages that a divergence names.
fn suspects(error: &ReplayError) -> Vec<DifferentPage> {
    match error {
        ReplayError::Diverged(divergence) => match &divergence.mismatch {
            Mismatch::Epoch { different, .. } => different.clone(),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

type Built = (
    Machine,
    Replayer,
    Rc<RefCell<Kept>>,
    Rc<RefCell<super::source::Fate>>,
    recording::Shared,
);

/// A machine all of which has come.
struct Whole {
    memory: Memory,
    state: Box<JoinState>,
    inlet: Inlet,
    images: Vec<Image>,
}

fn with(arriving: &mut Option<Arriving>, then: impl FnOnce(&mut Arriving) -> Result<()>) -> Result<()> {
    // What comes late for a machine that was thrown away is nobody's.
    arriving.as_mut().map_or(Ok(()), then)
}

fn prepare(hello: &Hello, mut inlet: Inlet, devices: &mut HostDevices, retained: Option<Memory>) -> Result<Arriving> {
    let config = hello.machine.clone().context("the hello has no machine")?;
    devices.check(&config)?;
    // From here on the images are neither what they were nor what they will be.
    devices.mark_replica(&hello.node)?;
    if let Some(have) = inlet.have.take() {
        tell_have(&have, retained.as_ref(), devices.images(), hello.knows_zeroes)?;
    }
    let memory = match retained {
        Some(memory) => memory,
        None => Memory::new(config.memory_bytes)?,
    };
    Ok(Arriving {
        memory,
        config,
        inlet,
        images: devices.take_images(),
        came: Came::default(),
        state: None,
    })
}

/// Tells the primary what is here already.
fn tell_have(have: &mpsc::Sender<Bytes>, memory: Option<&Memory>, images: &[Image], knows_zeroes: bool) -> Result<()> {
    // A connection that is gone is told of by an order.
    let mut send = |frame| drop(have.blocking_send(frame));
    if let Some(memory) = memory {
        Packer::memory(memory, &mut send);
    }
    for (disk, image) in (0..).zip(images) {
        let mut packer = Packer::default();
        let cannot_be_read = "the disk's image cannot be read";
        for piece in image.chunks().context(cannot_be_read)? {
            match piece.context(cannot_be_read)? {
                Piece::Holes(chunks) => {
                    packer.push_zeroes(chunks.end - chunks.start, disk, knows_zeroes, &mut send);
                }
                Piece::Data(_, data) => packer.push(&data, Some(disk), &mut send),
            }
        }
        packer.flush(Some(disk), &mut send);
    }
    Ok(())
}

fn take_pages(
    arriving: &mut Arriving,
    chunk: &PageChunk,
    weight: u32,
    mut healing: Option<&mut Healing>,
) -> Result<()> {
    arriving.inlet.rooms.bulk.give_back(weight);
    let memory = &arriving.memory;
    let pages = unpack_pages(chunk, memory.end())?;
    let mut old = [0; PAGE_SIZE];
    for (frame, page) in pages.iter() {
        if let Some(healing) = healing.as_deref_mut() {
            memory.read_page(frame, &mut old);
            healing.page(frame, &old, page);
        }
        memory.write_page(frame, page)?;
    }
    arriving.came.pages += pages.len() as u64;
    Ok(())
}

fn take_chunk(arriving: &mut Arriving, chunk: &DiskChunk, weight: u32) -> Result<()> {
    arriving.inlet.rooms.bulk.give_back(weight);
    chunks::write(&mut arriving.images, chunk)?;
    arriving.came.chunks += 1;
    Ok(())
}

/// The machine, if all its pages, the chunks of its disks and its state are there.
fn take_whole(arriving: &mut Option<Arriving>) -> Option<Whole> {
    let is_whole = arriving.as_ref().is_some_and(|arriving| {
        let state = arriving.state.as_ref();
        state.is_some_and(|state| arriving.came.is_all(state))
    });
    let arriving = if is_whole { arriving.take() } else { None };
    let Arriving {
        memory,
        state,
        inlet,
        config,
        images,
        ..
    } = arriving?;
    let mut state = state?;
    // What the machine is built from was checked when the hello came.
    if let Some(header) = &mut state.machine {
        header.machine = Some(config);
    }
    Some(Whole {
        memory,
        state,
        inlet,
        images,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_whole_with_all_pages_and_all_chunks() {
        let state = JoinState {
            pages: 7,
            disk_chunks: 2,
            ..JoinState::default()
        };
        for (pages, chunks, is_all) in [(7, 2, true), (8, 3, true), (6, 2, false), (7, 1, false), (7, 0, false)] {
            assert_eq!(
                Came { pages, chunks }.is_all(&state),
                is_all,
                "{pages} pages, {chunks} chunks"
            );
        }
    }
}
