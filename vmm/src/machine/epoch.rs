//! Epochs: at a natural stop, everything that was dirtied since the last collection is hashed and compared.
//!
//! What is compared is the content of all memory (the pages' hashes are kept, so only dirtied ones cost anything), not
//! the set of dirty pages: KVM with shadow paging also marks a page dirty that it only looked at for an accessed bit,
//! and when it does so depends on what its shadow tables happen to hold.

use lockstep_proto::quantity::PageNumber;
use lockstep_proto::{Epoch, VcpuState};
use xxhash_rust::xxh3::Xxh3;

use super::parts::Parts;
use super::{Machine, MachineError};
use crate::cpu::state;
use crate::devices::Devices;
use crate::memory::MemoryDigest;

/// What an epoch found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochReport {
    /// Digest of all memory, of the vCPU and of the devices.
    pub digest: [u8; 16],
    /// The same with the vCPU's state as KVM read it: what programs before this one wrote and compared.
    pub raw_digest: [u8; 16],
    /// What the digest is made of.
    pub parts: Parts,
    /// The dirty pages: frame number and hash.
    pub pages: Vec<(PageNumber, u128)>,
}

impl EpochReport {
    /// Of memory with this digest, a vCPU and devices. `raw`: the vCPU's state as KVM gave it, where it is another.
    pub(crate) fn of(
        memory: [u8; 16],
        vcpu: &VcpuState,
        raw: Option<&VcpuState>,
        devices: &Devices,
        pages: Vec<(PageNumber, u128)>,
    ) -> Result<Self, MachineError> {
        let saved = devices.save();
        let digest = |vcpu: &VcpuState| {
            let mut hasher = Xxh3::new();
            hasher.update(&memory);
            state::digest_into(&mut hasher, vcpu);
            if vcpu.guest_tsd {
                hasher.update(b"TSD");
            }
            hasher.update(&saved);
            hasher.digest128().to_be_bytes()
        };
        Ok(Self {
            digest: digest(vcpu),
            raw_digest: digest(raw.unwrap_or(vcpu)),
            parts: Parts::of(memory, vcpu, devices)?,
            pages,
        })
    }

    /// The message for the log; `detail` adds the pages' hashes.
    pub fn to_message(&self, detail: bool) -> Epoch {
        let mut epoch = Epoch {
            digest: bytes::Bytes::copy_from_slice(&self.raw_digest),
            settled_digest: bytes::Bytes::copy_from_slice(&self.digest),
            parts: self.parts.to_bytes().into(),
            pages: self.pages.len() as u32,
            ..Epoch::default()
        };
        if detail {
            let mut before = PageNumber::FIRST;
            for &(frame, hash) in &self.pages {
                epoch.frame_gaps.push(frame.since(before));
                epoch.page_hashes.push(hash as u32);
                before = frame;
            }
        }
        epoch
    }

    /// Whether the log's epoch is this one. A program before this one logged the raw digest alone.
    pub fn is_as_logged(&self, logged: &Epoch) -> bool {
        if logged.settled_digest.is_empty() {
            logged.digest == self.raw_digest[..]
        } else {
            logged.settled_digest == self.digest[..]
        }
    }
}

impl Machine {
    /// Starts keeping the digest of all memory. Call it before the first epoch, at the same stop on every replica.
    pub fn start_epochs(&mut self) -> Result<(), MachineError> {
        self.memory.collect_dirty(&self.vm.fd)?;
        self.memory_digest = Some(MemoryDigest::of(&self.memory));
        Ok(())
    }

    pub(super) fn report_epoch(&mut self) -> Result<EpochReport, MachineError> {
        let frames = self.memory.collect_dirty(&self.vm.fd)?;
        let digest = self.memory_digest.get_or_insert_with(|| MemoryDigest::of(&self.memory));
        let mut pages = Vec::with_capacity(frames.len());
        for frame in frames {
            pages.push((frame, digest.update(&self.memory, frame)));
        }
        let memory = digest.total();
        let guest_tsd = self.guest_tsd;
        let raw = VcpuState {
            guest_tsd,
            ..state::read_often(&mut self.vm.vcpu)?
        };
        let vcpu = state::settled(raw.clone())?;
        self.counters.epochs += 1;
        self.counters.epoch_pages += pages.len() as u64;
        EpochReport::of(memory, &vcpu, Some(&raw), &self.devices, pages)
    }
}
