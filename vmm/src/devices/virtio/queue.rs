//! A split virtqueue as the device sees it (virtio 1.2, section 2.7), on rust-vmm's `virtio-queue`.
//!
//! The state that is saved is here; a `virtio_queue::Queue` lives only as long as one operation. Everything that the
//! driver wrote into guest memory is checked here, once: chains that reach a device lie in RAM, readable parts first.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue as Ring, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use crate::memory::GuestRam;

/// The driver broke a rule of the ring that leaves the device no way to go on; the transport sets DEVICE_NEEDS_RESET
/// (section 2.1.2). The text is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::devices) struct Malformed(pub(super) &'static str);

/// The longest chain taken: "a driver MUST NOT create a descriptor chain longer than the Queue Size" (2.7.5.3.1), and
/// none of our queues is longer than this.
pub(super) const MAX_QUEUE_SIZE: u16 = 256;

/// A piece of guest memory that a descriptor names. It was checked to lie in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) bytes: u32,
}

/// A descriptor chain that the driver made available.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) head: u16,
    /// What the device reads, in order.
    pub(super) readable: Vec<Piece>,
    /// What the device writes, in order.
    pub(super) writable: Vec<Piece>,
}

/// How many bytes some pieces have. At most 4 GiB (a longer chain is malformed).
pub(super) fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.bytes)).sum()
}

/// The pieces that make up `len` bytes from `skip` on of a longer list, as far as it reaches.
pub(super) fn section(pieces: &[Piece], skip: u64, len: u64) -> Vec<Piece> {
    let mut found = Vec::new();
    let mut at = 0;
    for piece in pieces {
        let end = at + u64::from(piece.bytes);
        let (from, to) = (skip.max(at), (skip + len).min(end));
        if from < to {
            found.push(Piece {
                address: piece.address + (from - at),
                bytes: (to - from) as u32,
            });
        }
        at = end;
    }
    found
}

/// Copies guest memory out. The caller bounds the length.
pub(super) fn gather(ram: &GuestRam, pieces: &[Piece]) -> Result<Vec<u8>, Malformed> {
    let mut data = vec![0; total(pieces) as usize];
    let mut rest = data.as_mut_slice();
    for piece in pieces {
        let (part, tail) = rest.split_at_mut(piece.bytes as usize);
        ram.read_slice(part, GuestAddress(piece.address))
            .map_err(|_| Malformed("a buffer is outside RAM"))?;
        rest = tail;
    }
    Ok(data)
}

/// Copies data into guest memory, as much as fits.
pub(super) fn scatter(ram: &GuestRam, pieces: &[Piece], mut data: &[u8]) -> Result<(), Malformed> {
    for piece in pieces {
        let (part, rest) = data.split_at(data.len().min(piece.bytes as usize));
        ram.write_slice(part, GuestAddress(piece.address))
            .map_err(|_| Malformed("a buffer is outside RAM"))?;
        data = rest;
    }
    Ok(())
}

/// One virtqueue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Queue {
    pub(super) max_size: u16,
    pub(super) size: u16,
    pub(super) ready: bool,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    next_available: u16,
    next_used: u16,
}

impl Queue {
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            ready: false,
            descriptors: 0,
            available: 0,
            used: 0,
            next_available: 0,
            next_used: 0,
        }
    }

    /// Back to how it was at the start.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    fn ring(&self) -> Result<Ring, Malformed> {
        let state = QueueState {
            max_size: self.max_size,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: false,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        };
        Ring::try_from(state).map_err(|_| Malformed("a queue has a bad size or alignment"))
    }

    /// The driver sets the queue ready: its size, alignment (2.7) and place are checked.
    pub(super) fn enable(&mut self, ram: &GuestRam) -> Result<(), Malformed> {
        self.ready = true;
        let valid = self.ring().is_ok_and(|ring| self.available != 0 && ring.is_valid(ram));
        self.ready = valid;
        if valid {
            Ok(())
        } else {
            Err(Malformed("a queue has a bad size or alignment, or is outside RAM"))
        }
    }

    /// How many chains the driver has made available that were not taken yet.
    pub(super) fn available(&self, ram: &GuestRam) -> u16 {
        let index = self
            .ready
            .then(|| self.ring().ok()?.avail_idx(ram, Ordering::Acquire).ok())
            .flatten();
        index.map_or(0, |index| index.0.wrapping_sub(self.next_available))
    }

    /// Whether the driver has made a buffer available that was not taken yet.
    pub(super) fn has_available(&self, ram: &GuestRam) -> bool {
        self.available(ram) != 0
    }

    /// Takes the next available chain, if there is one.
    pub(super) fn pop(&mut self, ram: &GuestRam) -> Result<Option<Chain>, Malformed> {
        if !self.has_available(ram) {
            return Ok(None);
        }
        let mut ring = self.ring()?;
        let chain = {
            // Refuses an index that is further ahead than the queue is long.
            let mut chains = ring
                .iter(ram)
                .map_err(|_| Malformed("the available index is out of range"))?;
            chains.next().ok_or(Malformed("the available ring is outside RAM"))?
        };
        let head = chain.head_index();
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let mut ended = false;
        // The iterator ends where a chain is broken; a chain that is whole ends with a descriptor without a successor.
        for descriptor in chain.take(usize::from(MAX_QUEUE_SIZE)) {
            let piece = Piece {
                address: descriptor.addr().0,
                bytes: descriptor.len(),
            };
            let (list, access) = if descriptor.is_write_only() {
                (&mut writable, Permissions::Write)
            } else {
                (&mut readable, Permissions::Read)
            };
            if piece.bytes > 0 {
                if !ram.check_range(descriptor.addr(), piece.bytes as usize, access) {
                    return Err(Malformed("a buffer is outside RAM"));
                }
                list.push(piece);
            }
            // 2.7.4.2: device-readable descriptors come first.
            if !descriptor.is_write_only() && !writable.is_empty() {
                return Err(Malformed("a readable descriptor follows a writable one"));
            }
            ended = !descriptor.has_next();
        }
        if !ended {
            return Err(Malformed("a descriptor chain is broken, circular or too long"));
        }
        self.next_available = ring.next_avail();
        Ok(Some(Chain {
            head,
            readable,
            writable,
        }))
    }

    /// Puts the chain taken last back.
    pub(super) fn put_back(&mut self) {
        self.next_available = self.next_available.wrapping_sub(1);
    }

    /// Returns a chain to the driver, `written` bytes of it written.
    pub(super) fn push_used(&mut self, ram: &GuestRam, head: u16, written: u32) -> Result<(), Malformed> {
        let mut ring = self.ring()?;
        ring.add_used(ram, head, written)
            .map_err(|_| Malformed("the used ring is outside RAM"))?;
        self.next_used = ring.next_used();
        Ok(())
    }

    /// Whether the driver wants an interrupt for a used buffer (2.7.7.2, without EVENT_IDX).
    pub(super) fn wants_interrupt(&self, ram: &GuestRam) -> Result<bool, Malformed> {
        let flags: u16 = ram
            .load(GuestAddress(self.available), Ordering::Acquire)
            .map_err(|_| Malformed("the available ring is outside RAM"))?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Whether a deserialized state is one that this can get into, as far as safety depends on it.
    pub(super) fn is_sound(&self, max_size: u16) -> bool {
        self.max_size == max_size && (!self.ready || self.ring().is_ok())
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
