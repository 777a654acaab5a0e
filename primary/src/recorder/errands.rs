//! What the link asks of the vCPU thread, done between two steps.

use std::time::Duration;

use lockstep_logcodec::batch::BatchBuilder;
use lockstep_vmm::machine::Machine;
use lockstep_vmm::memory::PAGE_SIZE;

use super::{RecordError, Recorder};
use crate::host::clock::{GuestClock, monotonic};
use crate::link::Command;
use crate::link::join::Final;

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

    /// Does what the link wants. A frozen machine stays in here.
    pub fn errands(&mut self, machine: &mut Machine) -> Result<(), RecordError> {
        let begin = monotonic();
        let mut stood_still = false;
        loop {
            self.commands(machine)?;
            self.join(machine)?;
            let Some(port) = self.world.outlet.port() else { break };
            if port.frozen().is_none() || self.world.inbox.bell.wants_quit() {
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
        let bell = self.world.inbox.bell.clone();
        let Some(port) = self.world.outlet.port() else {
            return Ok(());
        };
        while let Some(command) = port.command() {
            match command {
                Command::BeginJoin(channels) => {
                    let begun = port.begin_join(machine.memory_mut(), channels, bell.clone());
                    begun.map_err(|cause| RecordError::Host {
                        what: "start a join's thread",
                        cause,
                    })?;
                }
                Command::EndLog => port.end_log(machine.memory_mut()),
                Command::Freeze(why) => port.set_frozen(Some(why)),
                Command::Thaw => port.set_frozen(None),
            }
        }
        Ok(())
    }

    /// The pause of a join: state and the last pages.
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
        let transfer = machine.take_transfer(&self.host_class, &joining.watch)?;
        let mut pages = vec![0; transfer.frames.len() * PAGE_SIZE];
        let (chunks, _) = pages.as_chunks_mut::<PAGE_SIZE>();
        for (frame, page) in transfer.frames.iter().zip(chunks) {
            machine.memory().read_page(*frame, page);
        }
        let count = transfer.frames.len();
        if self.log.is_none() {
            // Nobody has taken the batches so far: the log begins here.
            self.batch = BatchBuilder::new(machine.stop());
        }
        let state = Final {
            transfer,
            pages,
            position: self.position,
        };
        if let Some(port) = self.world.outlet.port() {
            port.finish_join(joining, state);
        }
        tracing::info!(
            stop = machine.stop(),
            pages = count,
            pause_us = (monotonic() - begin) / 1000,
            "a backup has the machine's state"
        );
        Ok(())
    }
}
