//! What the link asks of the vCPU thread, done between two steps.

use std::time::Duration;

use lockstep_logcodec::batch::BatchBuilder;
use lockstep_logcodec::limits::MAX_TERMS;
use lockstep_node::copying::{Rest, Sources};
use lockstep_node::host::clock::GuestClock;
use lockstep_proto::quantity::Term;
use lockstep_proto::session::{Freeze, bounded};
use lockstep_proto::{DiskCompletion, TermBegun};
use lockstep_vmm::machine::{Machine, Seen};

use super::{RecordError, Recorder};
use crate::link::Command;
use crate::link::join::Final;

/// How long a frozen machine sleeps at a time; a command wakes it at once.
const FROZEN_NAP: Duration = Duration::from_secs(10);

impl Recorder {
    /// Whether the link wants something.
    pub fn has_errand(&self) -> bool {
        self.world.outlet.has_errand() || self.log.as_ref().is_some_and(|log| log.has_errand())
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
        let begin = self.world.kernel.monotonic();
        let mut stood_still = false;
        loop {
            self.status.pulses().vcpu.beat();
            self.commands(machine)?;
            self.join(machine)?;
            self.part(machine)?;
            let Some(port) = self.world.outlet.port() else { break };
            if port.frozen().is_none() || self.quitting || self.world.inbox.bell.wants_quit() {
                break;
            }
            if !stood_still {
                tracing::warn!(stop = machine.stop().get(), why = ?port.frozen(), "the machine stands still");
                stood_still = true;
            }
            self.world.kernel.wait(FROZEN_NAP);
        }
        if self.world.inbox.bell.wants_quit() {
            self.quitting = true;
        }
        if stood_still {
            // Guest time stood still too.
            self.clock = GuestClock::starting_at(machine.now(), self.world.kernel.monotonic());
            if !self.quitting {
                self.follow_the_calendar(machine);
                tracing::info!(
                    seconds = self.world.kernel.monotonic().ns_since(begin) / 1_000_000_000,
                    "the machine goes on"
                );
            }
        }
        self.slice_since = self.world.kernel.monotonic();
        Ok(())
    }

    fn commands(&mut self, machine: &mut Machine) -> Result<(), RecordError> {
        let host = |what| move |cause| RecordError::Host { what, cause };
        while let Some(command) = self.world.outlet.port().and_then(|port| port.command()) {
            match command {
                Command::BeginJoin(channels) => {
                    let sources = Sources::of(machine, &mut self.world.disks, &self.world.images);
                    let sources = sources.map_err(host("look at a disk image"))?;
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
                Command::AskToShutDown => {
                    self.asks = true;
                    self.world.inbox.bell.ring();
                }
                Command::End => {
                    self.quitting = true;
                    self.shut_down = true;
                }
                Command::KeepErrors => self.keep_errors(),
                Command::Term(term, why) => self.begin_term(machine, term, &why),
            }
        }
        Ok(())
    }

    /// Notes for the recording that a term begins where the machine stands.
    pub fn begin_term(&mut self, machine: &dyn Seen, term: Term, why: &str) {
        self.last_term = term;
        if self.log.is_some() && self.terms.len() < MAX_TERMS {
            self.terms.push(TermBegun {
                term: term.get(),
                // A refusal has the other node's reason in it; the log takes as much as a reason may have.
                why: bounded(why),
                stop: self.taken_stop.get(),
                guest_ns: machine.now().ns(),
            });
        }
    }

    /// The last term, at the machine's end; those that nobody has noted yet begin there.
    pub(super) fn end_terms(&mut self, machine: &dyn Seen) -> Term {
        while let Some(command) = self.world.outlet.port().and_then(|port| port.command()) {
            if let Command::Term(term, why) = command {
                self.begin_term(machine, term, &why);
            }
        }
        self.term()
    }

    fn term(&self) -> Term {
        self.status.get().term.max(self.last_term)
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

    /// What a part of the ring wants: to be prepared, or to begin.
    fn part(&mut self, machine: &mut Machine) -> Result<(), RecordError> {
        let begin = self.world.kernel.monotonic();
        let Some(log) = self.log.as_ref().filter(|log| log.has_errand()) else {
            return Ok(());
        };
        // What has no errand now may have one in a moment, and would find the batch open.
        let is_ready = log.is_part_ready();
        if is_ready {
            self.close_batch(machine)?;
        }
        let (term, bell) = (self.term(), self.world.inbox.bell.clone());
        let world = &mut self.world;
        let Some(log) = &mut self.log else { return Ok(()) };
        let done = log.errand(machine, &mut world.disks, &world.images, term, bell)?;
        self.recorded(done);
        if is_ready {
            let pause_us = self.world.kernel.monotonic().ns_since(begin) / 1000;
            tracing::info!(stop = machine.stop().get(), pause_us, "a part of the recording begins");
        }
        Ok(())
    }

    /// The pause of a join: state, the last pages and the last chunks of disks.
    fn join(&mut self, machine: &mut Machine) -> Result<(), RecordError> {
        let begin = self.world.kernel.monotonic();
        let Some(joining) = self
            .world
            .outlet
            .port()
            .and_then(crate::link::LinkPort::take_ready_join)
        else {
            return Ok(());
        };
        self.close_batch(machine)?;
        let rest = match Rest::of(machine, &self.host_class, &joining.sources, &self.status.pulses().vcpu)? {
            Ok(rest) => rest,
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
        let (pages, chunks) = (rest.transfer.frames.len(), rest.chunks.len());
        let position = self.position;
        if let Some(port) = self.world.outlet.port() {
            port.finish_join(joining, Ok(Final { rest, position }));
        }
        tracing::info!(
            stop = machine.stop().get(),
            pages,
            chunks,
            pause_us = self.world.kernel.monotonic().ns_since(begin) / 1000,
            "a backup has the machine's state"
        );
        Ok(())
    }
}
