//! The other side, for tests: a board with RAM, and the driver's half of virtio, through the public interface only.

use lockstep_proto::model::NEWEST_REVISION;
use lockstep_proto::{DiskConfig, MachineConfig, NicConfig};
use vm_memory::{Bytes, GuestAddress};

use super::{Devices, Effect, bus};
use crate::memory::GuestRam;

pub(super) const RAM_BYTES: u64 = 8 << 20;
/// Where tests put buffers.
pub(super) const BUFFERS: u64 = 0x10_0000;
pub(super) const DISK_BYTES: u64 = 2 << 20;

pub(super) const DISK: usize = 0;
pub(super) const READ_ONLY_DISK: usize = 1;
pub(super) const NIC: usize = 2;
pub(super) const ENTROPY: usize = 3;

pub(super) const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

/// Two disks, the second one read-only, and a network interface.
pub(super) fn config() -> MachineConfig {
    MachineConfig {
        memory_bytes: RAM_BYTES,
        disks: vec![
            DiskConfig {
                bytes: DISK_BYTES,
                read_only: false,
                serial: "first".to_owned(),
            },
            DiskConfig {
                bytes: DISK_BYTES,
                read_only: true,
                serial: String::new(),
            },
        ],
        nics: vec![NicConfig {
            mac: MAC.to_vec().into(),
            ..NicConfig::default()
        }],
        rtc_base: 1_700_000_000,
        model_revision: NEWEST_REVISION,
        ..MachineConfig::default()
    }
}

pub(super) struct Rig {
    pub(super) config: MachineConfig,
    pub(super) devices: Devices,
    pub(super) ram: GuestRam,
    pub(super) effects: Vec<Effect>,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::of_revision(NEWEST_REVISION)
    }

    pub(super) fn of_revision(model_revision: u32) -> Self {
        let config = MachineConfig {
            model_revision,
            ..config()
        };
        Self {
            devices: Devices::new(&config).unwrap(),
            config,
            ram: GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES as usize)]).unwrap(),
            effects: Vec::new(),
        }
    }

    pub(super) fn out(&mut self, port: u16, value: u8, now: u64) {
        self.devices.pio_write(port, &[value], now, &mut self.effects);
    }

    pub(super) fn inb(&mut self, port: u16, now: u64) -> u8 {
        let mut byte = [0];
        self.devices.pio_read(port, &mut byte, now);
        byte[0]
    }

    /// Initializes the interrupt controllers as Linux does, everything unmasked.
    pub(super) fn init_pic(&mut self) {
        for (port, value) in [
            (0x20, 0x11),
            (0x21, 0x30),
            (0x21, 4),
            (0x21, 1),
            (0xa0, 0x11),
            (0xa1, 0x38),
            (0xa1, 2),
            (0xa1, 1),
        ] {
            self.out(port, value, 0);
        }
    }

    /// Acknowledges and ends the interrupt that is pending; its IRQ.
    pub(super) fn service(&mut self) -> Option<u8> {
        if !self.devices.interrupt_pending() {
            return None;
        }
        let irq = self.devices.acknowledge() - 0x30;
        if irq >= 8 {
            self.out(0xa0, 0x20, 0);
        }
        self.out(0x20, 0x20, 0);
        Some(irq)
    }

    pub(super) fn write(&mut self, slot: usize, offset: u64, value: u32) {
        let address = bus::slot_address(slot) + offset;
        self.devices
            .mmio_write(address, &value.to_le_bytes(), &self.ram, &mut self.effects);
    }

    pub(super) fn read(&mut self, slot: usize, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.devices.mmio_read(bus::slot_address(slot) + offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn status(&mut self, slot: usize) -> u32 {
        self.read(slot, 0x70)
    }

    /// What the driver does up to DRIVER_OK (3.1.1), taking all features.
    pub(super) fn start<const QUEUES: usize>(&mut self, slot: usize) -> [Ring; QUEUES] {
        self.write(slot, 0x70, 0);
        self.write(slot, 0x70, 1);
        self.write(slot, 0x70, 3);
        for half in 0..2 {
            self.write(slot, 0x14, half);
            let features = self.read(slot, 0x10);
            self.write(slot, 0x24, half);
            self.write(slot, 0x20, features);
        }
        self.write(slot, 0x70, 0xb);
        assert_eq!(self.status(slot), 0xb, "FEATURES_OK");
        let rings = std::array::from_fn(|queue| {
            let ring = Ring::new(slot, queue, 16);
            ring.enable(self);
            ring
        });
        self.write(slot, 0x70, 0xf);
        rings
    }

    pub(super) fn poke(&self, address: u64, data: &[u8]) {
        self.ram.write_slice(data, GuestAddress(address)).unwrap();
    }

    pub(super) fn peek(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    pub(super) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The devices after a trip through bytes.
    pub(super) fn reload(&mut self) {
        let saved = self.devices.save();
        self.devices = Devices::restore(&self.config, &saved).unwrap();
        assert_eq!(self.devices.save(), saved);
    }
}

/// A buffer in a chain: address, length, whether the device writes it.
pub(super) type Buffer = (u64, u32, bool);

/// The driver's half of a split virtqueue (2.7).
#[derive(Clone)]
pub(super) struct Ring {
    pub(super) slot: usize,
    pub(super) queue: usize,
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    next_descriptor: u16,
    available_index: u16,
    used_seen: u16,
}

impl Ring {
    pub(super) fn new(slot: usize, queue: usize, size: u16) -> Self {
        let base = 0x1_0000 + (slot * 2 + queue) as u64 * 0x4000;
        Self {
            slot,
            queue,
            size,
            descriptors: base,
            available: base + 0x1000,
            used: base + 0x2000,
            next_descriptor: 0,
            available_index: 0,
            used_seen: 0,
        }
    }

    pub(super) fn enable(&self, rig: &mut Rig) {
        rig.poke(self.available, &[0; 4]);
        rig.poke(self.used, &[0; 4]);
        rig.write(self.slot, 0x30, self.queue as u32);
        rig.write(self.slot, 0x38, u32::from(self.size));
        for (offset, address) in [(0x80, self.descriptors), (0x90, self.available), (0xa0, self.used)] {
            rig.write(self.slot, offset, address as u32);
            rig.write(self.slot, offset + 4, (address >> 32) as u32);
        }
        rig.write(self.slot, 0x44, 1);
    }

    pub(super) fn set_descriptor(&self, rig: &Rig, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut raw = address.to_le_bytes().to_vec();
        raw.extend(len.to_le_bytes());
        raw.extend(flags.to_le_bytes());
        raw.extend(next.to_le_bytes());
        rig.poke(self.descriptors + u64::from(index) * 16, &raw);
    }

    /// Writes a chain's descriptors; the head.
    pub(super) fn chain(&mut self, rig: &Rig, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (index, &(address, len, writable)) in buffers.iter().enumerate() {
            let next = (self.next_descriptor + 1) % self.size;
            let flags = u16::from(index + 1 < buffers.len()) | u16::from(writable) << 1;
            self.set_descriptor(rig, self.next_descriptor, address, len, flags, next);
            self.next_descriptor = next;
        }
        head
    }

    /// Makes a chain available without telling the device.
    pub(super) fn offer(&mut self, rig: &Rig, head: u16) {
        let at = self.available + 4 + u64::from(self.available_index % self.size) * 2;
        rig.poke(at, &head.to_le_bytes());
        self.available_index = self.available_index.wrapping_add(1);
        rig.poke(self.available + 2, &self.available_index.to_le_bytes());
    }

    pub(super) fn kick(&self, rig: &mut Rig) {
        rig.write(self.slot, 0x50, self.queue as u32);
    }

    /// Chain, offer and kick.
    pub(super) fn send(&mut self, rig: &mut Rig, buffers: &[Buffer]) -> u16 {
        let head = self.chain(rig, buffers);
        self.offer(rig, head);
        self.kick(rig);
        head
    }

    /// What the device has used since the last call: heads and lengths.
    pub(super) fn used(&mut self, rig: &Rig) -> Vec<(u32, u32)> {
        let index = u16::from_le_bytes(rig.peek(self.used + 2, 2).try_into().unwrap());
        let mut found = Vec::new();
        while self.used_seen != index {
            let raw = rig.peek(self.used + 4 + u64::from(self.used_seen % self.size) * 8, 8);
            let field = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().unwrap());
            found.push((field(0), field(4)));
            self.used_seen = self.used_seen.wrapping_add(1);
        }
        found
    }
}
