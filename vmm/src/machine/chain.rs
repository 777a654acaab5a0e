//! The digest chain: a running hash over what entered, what came out and the registers at every stop.

use bytes::Bytes;
use kvm_bindings::kvm_regs;
use lockstep_proto::Turn;
use lockstep_proto::quantity::{GuestTime, StopNumber};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};
use zerocopy::IntoBytes;

use crate::devices::{DiskOp, Effect};

/// The chain's value after some stop. Equal values mean equal histories since equal starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chain(u128);

impl Chain {
    /// The chain's value from its 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(u128::from_be_bytes(bytes.try_into().ok()?)))
    }

    /// 16 bytes, big-endian.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The same for a message.
    pub fn to_message(self) -> Bytes {
        Bytes::copy_from_slice(&self.to_bytes())
    }

    /// Extends the chain by one turn.
    pub(super) fn extend(
        &mut self,
        stop: StopNumber,
        now: GuestTime,
        regs: &kvm_regs,
        turn: &Turn,
        effects: &[Effect],
    ) {
        let mut bytes = [0; 16 + 8 + 8 + 16 + size_of::<kvm_regs>()];
        bytes[..16].copy_from_slice(&self.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&stop.get().to_le_bytes());
        bytes[24..32].copy_from_slice(&now.ns().to_le_bytes());
        bytes[32..48].copy_from_slice(&exchange(turn, effects).to_le_bytes());
        bytes[48..].copy_from_slice(regs.as_bytes());
        self.0 = xxh3_128(&bytes);
    }
}

/// Hash of what entered and what came out; 0 for most stops, where nothing did.
fn exchange(turn: &Turn, effects: &[Effect]) -> u128 {
    let silent = effects.is_empty()
        && turn.random.is_none()
        && turn.frames.is_empty()
        && turn.console.is_empty()
        && turn.keyboard.is_empty()
        && !turn.power_button
        && turn.disks.is_empty()
        && turn.entropy.is_empty();
    if silent {
        return 0;
    }
    let mut hasher = Xxh3::new();
    let mut part = |tag: u8, number: u64, bytes: &[u8]| {
        hasher.update(&[tag]);
        hasher.update(&number.to_le_bytes());
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    if let Some(random) = turn.random {
        part(1, random, &[]);
    }
    for frame in &turn.frames {
        part(2, frame.nic.into(), &frame.data);
    }
    if !turn.console.is_empty() {
        part(3, 0, &turn.console);
    }
    for done in &turn.disks {
        part(
            4,
            done.request,
            &[done.disk.to_le_bytes(), done.status.to_le_bytes()].concat(),
        );
    }
    for bytes in &turn.entropy {
        part(5, 0, bytes);
    }
    if !turn.keyboard.is_empty() {
        part(6, 0, &turn.keyboard);
    }
    if turn.power_button {
        part(7, 0, &[]);
    }
    for effect in effects {
        match effect {
            Effect::Console(bytes) => part(16, 0, bytes),
            Effect::Frame { nic, data } => part(17, (*nic).into(), data),
            Effect::Entropy { bytes } => part(18, (*bytes).into(), &[]),
            Effect::Reset => part(19, 0, &[]),
            Effect::PowerOff => part(26, 0, &[]),
            Effect::Disk(request) => {
                part(20, request.request, &request.disk.to_le_bytes());
                match &request.op {
                    DiskOp::Read { sector, bytes } => part(21, *sector, &bytes.to_le_bytes()),
                    DiskOp::Write { sector, data } => part(22, *sector, data),
                    DiskOp::Flush => part(23, 0, &[]),
                    DiskOp::Discard { sector, sectors } => part(24, *sector, &sectors.to_le_bytes()),
                    DiskOp::WriteZeroes { sector, sectors, unmap } => {
                        part(25, *sector, &[&sectors.to_le_bytes()[..], &[u8::from(*unmap)]].concat());
                    }
                }
            }
        }
    }
    hasher.digest128()
}
