//! The driver's half of virtio-mmio, in assembler and in memory laid out beforehand.

use iced_x86::code_asm::*;

use super::guest::*;

/// Bytes of a queue's page: descriptors, available ring, used ring.
const AVAILABLE: u64 = 0x400;
pub const USED: u64 = 0x800;
const SIZE: u32 = 16;

pub const WRITE: u16 = 2;
pub const NEXT: u16 = 1;

fn register(slot: u64, offset: u64) -> u64 {
    SLOTS + slot * 4096 + offset
}

fn set(a: &mut CodeAssembler, slot: u64, offset: u64, value: u32) -> Body {
    a.mov(dword_ptr(register(slot, offset)), value)
}

/// Brings a device up with queues at these pages.
pub fn start(a: &mut CodeAssembler, slot: u64, queues: &[u64]) -> Body {
    set(a, slot, 0x70, 3)?;
    // VIRTIO_F_VERSION_1.
    set(a, slot, 0x24, 1)?;
    set(a, slot, 0x20, 1)?;
    set(a, slot, 0x70, 0xb)?;
    for (index, &at) in (0..).zip(queues) {
        set(a, slot, 0x30, index)?;
        set(a, slot, 0x38, SIZE)?;
        set(a, slot, 0x80, at as u32)?;
        set(a, slot, 0x90, (at + AVAILABLE) as u32)?;
        set(a, slot, 0xa0, (at + USED) as u32)?;
        set(a, slot, 0x44, 1)?;
    }
    set(a, slot, 0x70, 0xf)
}

pub fn notify(a: &mut CodeAssembler, slot: u64, queue: u32) -> Body {
    set(a, slot, 0x50, queue)
}

/// In a handler: takes the device's interrupt back. Then [`end_of_interrupt`].
pub fn acknowledge(a: &mut CodeAssembler, slot: u64) -> Body {
    set(a, slot, 0x64, 1)
}

/// One descriptor: address, length, flags; NEXT chains it to the one after it.
pub type Descriptor = (u64, u32, u16);

/// A queue at the page `at` with all of `heads` available.
pub fn queue(guest: MicroGuest, at: u64, descriptors: &[Descriptor], heads: &[u16]) -> MicroGuest {
    let mut table = Vec::new();
    for (next, (address, length, flags)) in (1u16..).zip(descriptors) {
        table.extend(address.to_le_bytes());
        table.extend(length.to_le_bytes());
        table.extend(flags.to_le_bytes());
        table.extend(next.to_le_bytes());
    }
    let mut ring = vec![0, 0];
    ring.extend((heads.len() as u16).to_le_bytes());
    ring.extend(heads.iter().flat_map(|head| head.to_le_bytes()));
    guest.data(at, &table).data(at + AVAILABLE, &ring)
}
