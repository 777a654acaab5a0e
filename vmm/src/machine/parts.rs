//! What an epoch's digest is made of, part by part: so that a difference has a name.
//!
//! The digest decides. The parts' short hashes are for people: two bytes each are little beside what an epoch costs
//! otherwise, and one difference in 65,536 has the wrong name.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

use crate::cpu::state;
use crate::cpu::state::StateError;
use crate::devices::Devices;

/// One part of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of guest memory.
    Memory,
    /// Of the vCPU: what, and an MSR's number.
    Vcpu(&'static str, Option<u32>),
    /// A device: which, and its number among those of its kind.
    Device(&'static str, Option<u32>),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => write!(f, "memory"),
            Self::Vcpu(name, None) => write!(f, "vCPU: {name}"),
            Self::Vcpu(name, Some(index)) => write!(f, "vCPU: {name} {index:#x}"),
            Self::Device(name, None) => write!(f, "device: {name}"),
            Self::Device(name, Some(number)) => write!(f, "device: {name} {number}"),
        }
    }
}

/// The parts of one state, each with its short hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts(Vec<(Part, u16)>);

impl Parts {
    /// Of memory with this digest, this vCPU and these devices.
    pub(super) fn of(
        memory: [u8; 16],
        vcpu: &lockstep_proto::VcpuState,
        devices: &Devices,
    ) -> Result<Self, StateError> {
        let short = |bytes: &[u8]| xxh3_64(bytes) as u16;
        let mut parts = vec![(Part::Memory, short(&memory))];
        state::pieces(vcpu, &mut |name, index, bytes| {
            parts.push((Part::Vcpu(name, index), short(bytes)));
        })?;
        devices.pieces(&mut |name, number, bytes| parts.push((Part::Device(name, number), short(bytes))));
        Ok(Self(parts))
    }

    /// As the log has them: two bytes each, little-endian, in order.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(_, hash)| hash.to_le_bytes()).collect()
    }

    /// Which parts have another hash in the log. Nothing where the log has parts of another machine, or none.
    pub fn differing(&self, logged: &[u8]) -> Vec<Part> {
        let (hashes, _) = logged.as_chunks::<2>();
        if hashes.len() != self.0.len() {
            return Vec::new();
        }
        let both = self.0.iter().zip(hashes);
        both.filter(|((_, here), logged)| here.to_le_bytes() != **logged)
            .map(|((part, _), _)| *part)
            .collect()
    }
}
