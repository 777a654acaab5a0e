//! Deltas: what carries a replica across a forced stop.

use lockstep_proto::VcpuState;
use lockstep_proto::quantity::PageNumber;

use super::{Machine, MachineError};
use crate::cpu::state;
use crate::memory::PAGE_SIZE;

/// vCPU state and the pages written since the dirty log was last collected.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// The vCPU at the forced stop.
    pub vcpu: VcpuState,
    /// Frame numbers, ascending.
    pub frames: Vec<PageNumber>,
    /// The pages' content, one after the other.
    pub pages: Vec<u8>,
}

impl Machine {
    /// The delta of the forced stop where the machine stands.
    pub(super) fn carry_out(&mut self) -> Result<Delta, MachineError> {
        let vcpu = state::save_often(&mut self.vm.vcpu)?;
        let vcpu = self.with_tsd(vcpu);
        let frames = self.memory.collect_dirty(&self.vm.fd)?;
        let mut pages = vec![0; frames.len() * PAGE_SIZE];
        let (chunks, _) = pages.as_chunks_mut::<PAGE_SIZE>();
        for (frame, page) in frames.iter().zip(chunks) {
            self.memory.read_page(*frame, page);
        }
        self.note_carried(&frames);
        Ok(Delta { vcpu, frames, pages })
    }

    /// Becomes what the delta says. The machine stands at a completed natural stop or after another delta.
    pub(super) fn carry_in(&mut self, delta: &Delta) -> Result<(), MachineError> {
        for (frame, page) in delta.frames.iter().zip(delta.pages.chunks(PAGE_SIZE)) {
            self.memory.write_page(*frame, page)?;
        }
        // At once: what falls over in them later, while KVM makes its slots anew, is found as their next writer finds it, with
        // its page, and does not pass for what was carried.
        self.note_carried(&delta.frames);
        // What was dirtied here since the last collection was dirtied on the recorder too (the log up to here is the
        // same). It is among the delta's pages, or the recorder collected it meanwhile for a join, of which its log says
        // nothing. Both sides start a new collection now.
        let dirtied = self.memory.collect_dirty(&self.vm.fd)?;
        if self.reset_slots {
            self.memory.reset_slots(&self.vm.fd)?;
        }
        self.set_vcpu_state(&delta.vcpu)?;
        let beside: Vec<_> = dirtied
            .into_iter()
            .filter(|frame| delta.frames.binary_search(frame).is_err())
            .collect();
        self.note_content(&beside);
        Ok(())
    }

    fn note_carried(&mut self, frames: &[PageNumber]) {
        self.counters.carried_pages += frames.len() as u64;
        self.note_content(frames);
    }

    fn note_content(&mut self, frames: &[PageNumber]) {
        if let Some(digest) = &mut self.memory_digest {
            for frame in frames {
                digest.update(&self.memory, *frame);
            }
        }
    }
}
