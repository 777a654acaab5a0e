//! What the link asks of the vCPU thread, done between two steps.

use std::sync::Arc;
use std::time::Duration;

use lockstep_logcodec::batch::BatchBuilder;
use lockstep_proto::DiskCompletion;
use lockstep_proto::session::Freeze;
use lockstep_vmm::machine::Machine;
use lockstep_vmm::memory::PAGE_SIZE;

use super::{RecordError, Recorder};
use crate::host::chunks::{ChunkWatch, read_chunk};
use crate::host::clock::{GuestClock, monotonic};
use crate::link::Command;
use crate::link::join::{Final, JoinSources};

/// How long a frozen machine sleeps at a time; a command wakes it at once.
const FROZEN_NAP: Duration = Duration::from_secs(10);

impl Recorder {
    /// Whether the link wants something.
    pub fn has_errand(&self) -> bool {
        self.world.outlet.has_errand()
    }

    /// Whether the run is over: somebody asked for it, or the guest has ended.
    pub fn is_done(&self) -> bool {
        self.quitting || self.ended.is_some()
    }

    /// Whether an operator has ended the machine.
    pub fn is_shut_down(&self) -> bool {
        self.shut_down
    }

    /// Does what the link wants. A frozen machine stays in here.
    pub fn errands(&mut self, machine: &mut Machine) -> Result<(), RecordError> {
        let begin = monotonic();
        let mut stood_still = false;
        loop {
            self.commands(machine)?;
            self.join(machine)?;
            let Some(port) = self.world.outlet.port() else { break };
            if port.frozen().is_none() || self.quitting || self.world.inbox.bell.wants_quit() {
                break;
            }
            if !stood_still {
                tracing::warn!(stop = machine.stop(), why = ?port.frozen(), "the machine stands still");
                stood_still = true;
            }
            std::thread::park_timeout(FROZEN_NAP);
        }
        if self.world.inbox.bell.wants_quit() {
            self.quitting = true;
        }
        if stood_still {
            // Guest time stood still too.
            self.clock = GuestClock::starting_at(machine.now());
            tracing::info!(seconds = (monotonic() - begin) / 1_000_000_000, "the machine goes on");
        }
        self.slice_since = monotonic();
        Ok(())
    }

    fn commands(&mut self, machine: &mut Machine) -> Result<(), RecordError> {
        let host = |what| move |cause| RecordError::Host { what, cause };
        while let Some(command) = self.world.outlet.port().and_then(|port| port.command()) {
            // A join that is under way ends with whatever comes.
            if matches!(command, Command::BeginJoin(_) | Command::EndLog) {
                machine.memory_mut().end_watch();
                self.world.disks.end_watch();
            }
            match command {
                Command::BeginJoin(channels) => {
                    let memory = machine.memory_mut();
                    let images = self.world.images.clone();
                    let chunks = ChunkWatch::of(&images).map_err(host("look at a disk image"))?;
                    let sources = JoinSources {
                        watch: memory.start_watch(),
                        memory: memory.share(),
                        chunks: Arc::new(chunks),
                        images,
                    };
                    self.world.disks.start_watch(sources.chunks.clone());
                    let bell = self.world.inbox.bell.clone();
                    if let Some(port) = self.world.outlet.port() {
                        let begun = port.begin_join(sources, channels, bell);
                        begun.map_err(host("start a join's thread"))?;
                    }
                }
                Command::EndLog => {
                    if let Some(port) = self.world.outlet.port() {
                        port.end_log();
                    }
                }
                Command::Freeze(why) => self.freeze(Some(why)),
                Command::Thaw => {
                    self.freeze(None);
                    self.keep_errors();
                }
                Command::HandOver(tell) => {
                    self.close_batch(machine)?;
                    self.freeze(Some(Freeze::Handover));
                    tell(self.position);
                }
                Command::Press(keys) => {
                    // Keys that wait already have the same to say.
                    self.keys = keys.to_vec();
                    self.world.inbox.bell.ring();
                }
                Command::End => {
                    self.quitting = true;
                    self.shut_down = true;
                }
                Command::KeepErrors => self.keep_errors(),
            }
        }
        Ok(())
    }

    /// Keeps an error of this host's disk from the guest while a backup can go on without it. False where none can.
    pub(super) fn withhold(&mut self, completion: &DiskCompletion) -> bool {
        let Some(port) = self.world.outlet.port().filter(|port| port.is_protected()) else {
            return false;
        };
        if self.withheld.is_empty() {
            port.disk_failed();
        }
        self.withheld.push(*completion);
        true
    }

    /// Nobody goes on without the errors: the guest gets them at the next stop.
    fn keep_errors(&mut self) {
        if !self.withheld.is_empty() {
            self.errors.append(&mut self.withheld);
            self.world.inbox.bell.ring();
        }
    }

    fn freeze(&mut self, why: Option<Freeze>) {
        if let Some(port) = self.world.outlet.port() {
            port.set_frozen(why);
        }
    }

    /// The pause of a join: state, the last pages and the last chunks of disks.
    fn join(&mut self, machine: &mut Machine) -> Result<(), RecordError> {
        let begin = monotonic();
        let Some(joining) = self
            .world
            .outlet
            .port()
            .and_then(crate::link::LinkPort::take_ready_join)
        else {
            return Ok(());
        };
        self.close_batch(machine)?;
        let transfer = machine.take_transfer(&self.host_class, &joining.sources.watch)?;
        let mut pages = vec![0; transfer.frames.len() * PAGE_SIZE];
        let (chunks, _) = pages.as_chunks_mut::<PAGE_SIZE>();
        for (frame, page) in transfer.frames.iter().zip(chunks) {
            machine.memory().read_page(*frame, page);
        }
        let count = transfer.frames.len();
        self.world.disks.end_watch();
        // Read here, while nothing writes: what comes later reaches the backup's disk by the log.
        let images = &self.world.images;
        let written = joining.sources.chunks.take().into_iter();
        let read = written.map(|(disk, chunk)| Ok((disk, chunk, read_chunk(&images[disk as usize], chunk)?)));
        let chunks = match read.collect::<std::io::Result<Vec<_>>>() {
            Ok(chunks) => chunks,
            Err(error) => {
                // The machine goes on; only its backup does not.
                if let Some(port) = self.world.outlet.port() {
                    port.finish_join(joining, Err(format!("this host's disk cannot be read: {error}")));
                }
                return Ok(());
            }
        };
        if self.log.is_none() {
            // Nobody has taken the batches so far: the log begins here.
            self.batch = BatchBuilder::new(machine.stop());
        }
        let chunk_count = chunks.len();
        let state = Final {
            transfer,
            pages,
            chunks,
            position: self.position,
        };
        if let Some(port) = self.world.outlet.port() {
            port.finish_join(joining, Ok(state));
        }
        tracing::info!(
            stop = machine.stop(),
            pages = count,
            chunks = chunk_count,
            pause_us = (monotonic() - begin) / 1000,
            "a backup has the machine's state"
        );
        Ok(())
    }
}
