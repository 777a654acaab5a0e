//! What takes a machine to a point of its own past or future, for time travel in a replay.
//!
//! It has everything but memory. Whoever keeps such states keeps the pages that were written between them, too
//! ([`Machine::start_watch`], [`Machine::written`]), and gives back the right ones ([`Machine::travel`]).

use std::sync::Arc;

use bytes::Bytes;
use lockstep_proto::VcpuState;
use lockstep_proto::quantity::{GuestTime, PageNumber, StopNumber};

use super::{Chain, Counters, Machine, MachineError, TRAP_PAGES};
use crate::devices::Devices;
use crate::memory::DirtyWatch;

/// A machine between two steps, without its memory.
#[derive(Clone, Debug)]
pub struct SavedMachine {
    vcpu: VcpuState,
    devices: Bytes,
    now: GuestTime,
    stop: StopNumber,
    chain: Chain,
    halted: bool,
    counters: Counters,
}

impl SavedMachine {
    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.vcpu.xsave.len() + self.devices.len() + 4096
    }

    /// Guest time.
    pub fn now(&self) -> GuestTime {
        self.now
    }
}

impl Machine {
    /// The machine where it stands, between two steps.
    pub fn saved(&self) -> Result<SavedMachine, MachineError> {
        Ok(SavedMachine {
            vcpu: self.vcpu_state()?,
            devices: self.devices.save().into(),
            now: self.now,
            stop: self.stop,
            chain: self.chain,
            halted: self.halted,
            counters: self.counters,
        })
    }

    /// Starts telling what is written, from here on.
    pub fn start_watch(&mut self) -> Result<Arc<DirtyWatch>, MachineError> {
        self.collect()?;
        Ok(self.memory.start_watch())
    }

    /// The frames that were written since the last call, or since the watch or the last travel began. Epochs and deltas
    /// do not notice: the digest of all memory is kept up, and a delta's pages are the recorder's.
    pub fn written(&mut self, watch: &DirtyWatch) -> Result<Vec<PageNumber>, MachineError> {
        self.collect()?;
        let mut frames: Vec<_> = watch.take().into_iter().map(|index| self.memory.frame(index)).collect();
        frames.sort_unstable();
        Ok(frames)
    }

    /// Goes to `saved`, where `pages` are the ones that differ from those here.
    pub fn travel<P: AsRef<[u8]>>(
        &mut self,
        saved: &SavedMachine,
        pages: impl Iterator<Item = (PageNumber, P)>,
        watch: &DirtyWatch,
    ) -> Result<(), MachineError> {
        // Inside a slice something may be half done; and what a step left must be gone before the state is set.
        self.disarm_step()?;
        self.in_slice = false;
        for (frame, page) in pages {
            self.memory.write_page(frame, page.as_ref())?;
        }
        self.collect()?;
        watch.take();
        if self.reset_slots {
            self.memory.reset_slots(&self.vm.fd)?;
        }
        self.devices = Devices::restore(&self.config, &saved.devices)?;
        self.set_vcpu_state(&saved.vcpu)?;
        self.set_position(saved.now, saved.stop, saved.chain);
        self.halted = saved.halted;
        self.counters = saved.counters;
        self.trap_pages = [(u64::MAX, 0); TRAP_PAGES];
        Ok(())
    }

    fn collect(&mut self) -> Result<(), MachineError> {
        let frames = self.memory.collect_dirty(&self.vm.fd)?;
        if let Some(digest) = &mut self.memory_digest {
            for frame in frames {
                digest.update(&self.memory, frame);
            }
        }
        Ok(())
    }
}
