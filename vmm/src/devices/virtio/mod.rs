//! Virtio devices on the memory-mapped transport (virtio 1.2, section 4.2).

pub(super) mod block;
pub(super) mod entropy;
pub(super) mod mmio;
pub(super) mod net;
mod queue;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::effect::Effect;
use super::error::DeviceError;
use crate::memory::GuestRam;
use queue::{Chain, Malformed, Queue};

/// How many slots there are.
pub(super) const MAX_SLOTS: usize = 7;
/// Their interrupts: those that no other device of a PC without ISA cards and PS/2 mouse has.
pub(super) const SLOT_IRQS: [u8; MAX_SLOTS] = [5, 6, 7, 9, 10, 11, 12];

/// What a device does that the transport does not do for it.
pub(super) trait Device {
    /// What is saved of it.
    type State: Serialize + DeserializeOwned;

    /// The device ID (section 5).
    const ID: u32;
    /// The largest size of each queue.
    const QUEUES: &'static [u16];

    /// Device-specific feature bits.
    fn features(&self) -> u64;

    /// The configuration space. It never changes.
    fn config(&self) -> Vec<u8>;

    /// There may be something in a queue; only called while the driver is up.
    fn process(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Malformed>;

    /// The queue is gone, all of the driver's buffers with it.
    fn forget(&mut self, queue: usize);

    fn state(&self) -> &Self::State;

    /// Takes a deserialized state over, or refuses it.
    fn set_state(&mut self, state: Self::State) -> Result<(), DeviceError>;
}

/// What a device works with while it looks at its queues: they, guest memory, and the world's ear.
pub(super) struct Io<'a> {
    queues: &'a mut [Queue],
    ram: &'a GuestRam,
    effects: &'a mut Vec<Effect>,
    /// A buffer was used that the driver wants an interrupt for.
    interrupt: bool,
}

impl Io<'_> {
    fn pop(&mut self, queue: usize) -> Result<Option<Chain>, Malformed> {
        self.queues[queue].pop(self.ram)
    }

    fn put_back(&mut self, queue: usize) {
        self.queues[queue].put_back();
    }

    fn push_used(&mut self, queue: usize, head: u16, written: u32) -> Result<(), Malformed> {
        self.queues[queue].push_used(self.ram, head, written)?;
        self.interrupt |= self.queues[queue].wants_interrupt(self.ram)?;
        Ok(())
    }
}
