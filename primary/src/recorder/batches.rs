//! Where turns and effects go: batches to the recording and the backup, effects straight out or through the gate.

use std::sync::atomic::Ordering;

use lockstep_node::status::count;
use lockstep_proto::Batch;
use lockstep_vmm::devices::Effect;
use lockstep_vmm::machine::Seen;

use super::{RecordError, Recorder};
use crate::link::channels::LogItem;

/// A batch is closed when its oldest turn has this age, in nanoseconds.
const BATCH_AGE: u64 = 250_000_000;
/// The same where a backup waits for it.
const LINKED_BATCH_AGE: u64 = 1_000_000;

impl Recorder {
    /// Whether anybody gets the log.
    pub(super) fn is_logging(&self) -> bool {
        self.log.is_some() || self.world.outlet.is_logging()
    }

    pub(super) fn batch_age(&self) -> u64 {
        if self.world.outlet.is_logging() {
            LINKED_BATCH_AGE
        } else {
            BATCH_AGE
        }
    }

    /// Ends the batch where the machine stands and hands it over, unless there is nothing in it.
    pub(super) fn close_batch(&mut self, machine: &dyn Seen) -> Result<(), RecordError> {
        let nothing = self.batch.is_empty() && self.terms.is_empty() && self.batch.first_stop() == self.taken_stop;
        if nothing || !self.is_logging() {
            return Ok(());
        }
        // The chain that the batch ends with is the machine's: it must be the one after the last turn that was taken. A machine
        // that has failed in the middle of a stop has counted it already, and its chain is still the one before.
        assert!(
            machine.stop().distance(self.taken_stop) <= 1,
            "a batch ends at stop {}, and the machine stands at {}",
            self.taken_stop,
            machine.stop()
        );
        let batch = self.batch.close(self.taken_stop, machine.chain().to_bytes())?;
        self.position = self.position.plus(1);
        if let Some(port) = self.world.outlet.port().filter(|port| port.is_logging()) {
            port.log(&self.status.pulses().vcpu, LogItem::Batch(self.position, batch.clone()));
            let lag = port.lag_ns();
            self.hold_back(lag);
        }
        self.tell(machine);
        let terms = std::mem::take(&mut self.terms);
        if let Some(log) = &self.log {
            let kept = log.batch(Batch { terms, ..batch });
            self.recorded(kept);
        }
        Ok(())
    }

    /// Goes on without a recording that cannot be kept.
    pub(super) fn recorded(&mut self, kept: Result<(), String>) {
        let Err(reason) = kept else { return };
        self.status.stop_recording(&reason);
        if let Some(log) = self.log.take() {
            log.give_up();
        }
    }

    /// Lets effects go, or hands them to the gate with the position that makes them safe.
    pub(super) fn emit(&mut self, machine: &dyn Seen, effects: Vec<Effect>) -> Result<(), RecordError> {
        if effects.is_empty() {
            return Ok(());
        }
        if !self.world.outlet.is_gated() {
            self.world.outlet.emit(&effects);
            return Ok(());
        }
        let before = self.position;
        self.close_batch(machine)?;
        // Each turn's effects have a position of their own, also while nobody gets the log.
        self.position = self.position.max(before.plus(1));
        if self
            .world
            .outlet
            .gate(&self.status.pulses().vcpu, self.position, effects)
        {
            Ok(())
        } else {
            Err(RecordError::Link)
        }
    }

    /// Holds the guest back where its backup lags behind.
    fn hold_back(&mut self, lag_ns: u64) {
        let pause = self.pace.pause(lag_ns);
        if !pause.is_zero() {
            let begin = self.world.kernel.monotonic();
            self.world.kernel.pause(pause);
            let end = self.world.kernel.monotonic();
            count(&self.status.gauges().throttled_ns, end.ns_since(begin));
            self.slice_since = end;
        }
    }

    /// Tells the other threads where the machine is.
    pub(super) fn tell(&self, machine: &dyn Seen) {
        let (gauges, counters) = (self.status.gauges(), machine.counters());
        gauges.stop.store(machine.stop().get(), Ordering::Relaxed);
        gauges.guest_ns.store(machine.now().ns(), Ordering::Relaxed);
        gauges.forced.store(counters.forced, Ordering::Relaxed);
        gauges.carried_pages.store(counters.carried_pages, Ordering::Relaxed);
        gauges.modules.store(counters.modules, Ordering::Relaxed);
        gauges
            .module_instructions
            .store(counters.module_instructions, Ordering::Relaxed);
        gauges.modules_left.store(counters.modules_left, Ordering::Relaxed);
        let devices = machine.devices();
        let (mut dropped, mut too_large, mut malformed) = (0, 0, 0);
        for nic in 0.. {
            let (Some(counters), Some(larger)) = (devices.nic_counters(nic), devices.nic_too_large(nic)) else {
                break;
            };
            dropped += counters.rx_dropped;
            too_large += larger;
            malformed += counters.tx_dropped;
        }
        gauges.frames_too_large.store(too_large, Ordering::Relaxed);
        gauges.frames_unwanted.store(dropped - too_large, Ordering::Relaxed);
        gauges.frames_malformed.store(malformed, Ordering::Relaxed);
    }
}
