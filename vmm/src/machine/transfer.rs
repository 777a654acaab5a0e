//! State transfer: what makes another machine this one, once its memory has been copied while this one ran.

use lockstep_proto::SnapshotHeader;
use lockstep_proto::quantity::PageNumber;

use super::{Machine, MachineError};
use crate::memory::{DirtyWatch, MemoryDigest};

/// The end of a transfer.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// Everything but memory. `pages` is left at zero.
    pub header: SnapshotHeader,
    /// xxh3-128 of all memory.
    pub memory_digest: [u8; 16],
    /// Frames that were written since they were last copied, ascending.
    pub frames: Vec<PageNumber>,
}

impl Machine {
    /// Everything but memory, between two steps.
    pub fn header(&self, host_class: &str) -> Result<SnapshotHeader, MachineError> {
        Ok(SnapshotHeader {
            machine: Some(self.config.clone()),
            host_class: host_class.into(),
            vcpu: Some(self.vcpu_state()?),
            devices: self.devices.save().into(),
            guest_ns: self.now.ns(),
            stop: self.stop.get(),
            chain: self.chain.to_message(),
            pages: 0,
            halted: self.halted,
            forked_from: self.forked_from.clone(),
        })
    }

    /// Ends a transfer whose pages were copied under `watch`, between two steps. What is dirty is collected here, so that
    /// the other machine's next delta or epoch begins where this one's does.
    pub fn take_transfer(&mut self, host_class: &str, watch: &DirtyWatch) -> Result<Transfer, MachineError> {
        let dirty = self.memory.collect_dirty(&self.vm.fd)?;
        let digest = self.memory_digest.get_or_insert_with(|| MemoryDigest::of(&self.memory));
        for frame in dirty {
            digest.update(&self.memory, frame);
        }
        let memory_digest = digest.total();
        let frames = watch.take().into_iter().map(|index| self.memory.frame(index)).collect();
        Ok(Transfer {
            header: self.header(host_class)?,
            memory_digest,
            frames,
        })
    }
}
