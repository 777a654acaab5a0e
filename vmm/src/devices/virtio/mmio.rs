//! The memory-mapped transport: a slot's registers (virtio 1.2, section 4.2.2, version 2) and the device's life cycle
//! (sections 2.1 and 3.1).
//!
//! Registers take aligned 32-bit accesses; others read as all ones and write nothing. The interrupt line is meant for an
//! edge-triggered input: it rises whenever a new bit is set in InterruptStatus, and again after an acknowledgement that
//! leaves bits set, and is low when none is.

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_mmio as reg;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

use super::queue::{Malformed, Queue};
use super::{Device, Io};
use crate::devices::effect::Effect;
use crate::devices::error::DeviceError;
use crate::devices::line::Line;
use crate::memory::GuestRam;

/// "virt" (4.2.2).
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "LKST".
const VENDOR: u32 = 0x5453_4b4c;
/// Bits of the status register that the driver may set.
const DRIVER_BITS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FAILED;

/// What every device offers.
const COMMON_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A slot as the bus sees it.
pub(in crate::devices) trait Slot {
    fn read(&self, offset: u64, data: &mut [u8]);
    fn write(&mut self, offset: u64, data: &[u8], ram: &GuestRam, effects: &mut Vec<Effect>);
    fn line(&mut self) -> &mut Line;
}

/// The transport's registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::devices) struct Registers {
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    interrupt_status: u32,
    queues: Vec<Queue>,
    line: Line,
}

/// A device behind its transport.
#[derive(Debug)]
pub(in crate::devices) struct Mmio<D> {
    registers: Registers,
    device: D,
}

impl<D: Device> Mmio<D> {
    pub(in crate::devices) fn new(device: D) -> Self {
        let registers = Registers {
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            interrupt_status: 0,
            queues: D::QUEUES.iter().map(|&size| Queue::new(size)).collect(),
            line: Line::default(),
        };
        Self { registers, device }
    }

    pub(in crate::devices) fn device(&self) -> &D {
        &self.device
    }

    /// Whether the driver is up and the device has not given up on it.
    pub(in crate::devices) fn is_live(&self) -> bool {
        self.registers.status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET) == VIRTIO_CONFIG_S_DRIVER_OK
    }

    /// How many chains the driver has made available in `queue`.
    pub(in crate::devices) fn available(&self, queue: usize, ram: &GuestRam) -> u16 {
        if self.is_live() {
            self.registers.queues[queue].available(ram)
        } else {
            0
        }
    }

    /// Has the device work with its queues, and raises the interrupts that come of it. When the driver broke a rule, the
    /// device needs a reset.
    pub(in crate::devices) fn with_device(
        &mut self,
        ram: &GuestRam,
        effects: &mut Vec<Effect>,
        work: impl FnOnce(&mut D, &mut Io<'_>) -> Result<(), Malformed>,
    ) {
        let mut io = Io {
            queues: &mut self.registers.queues,
            ram,
            effects,
            interrupt: false,
        };
        let result = work(&mut self.device, &mut io);
        if io.interrupt {
            self.raise(reg::VIRTIO_MMIO_INT_VRING);
        }
        if let Err(malformed) = result {
            self.needs_reset(malformed);
        }
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES | self.device.features()
    }

    fn raise(&mut self, bit: u32) {
        if self.registers.interrupt_status & bit == 0 {
            self.registers.interrupt_status |= bit;
            self.registers.line.raise();
        }
    }

    fn acknowledge(&mut self, bits: u32) {
        self.registers.interrupt_status &= !bits;
        if self.registers.interrupt_status == 0 {
            self.registers.line.set(false);
        } else {
            self.registers.line.raise();
        }
    }

    /// Section 2.1.2: the device stops, and tells the driver if there is one.
    fn needs_reset(&mut self, malformed: Malformed) {
        tracing::debug!(device = D::ID, reason = malformed.0, "a virtio device needs a reset");
        self.registers.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        if self.registers.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.raise(reg::VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// Section 2.4: everything back to the start.
    fn reset(&mut self) {
        let registers = &mut self.registers;
        registers.status = 0;
        registers.device_features_select = 0;
        registers.driver_features_select = 0;
        registers.driver_features = 0;
        registers.queue_select = 0;
        registers.interrupt_status = 0;
        registers.line.set(false);
        for (index, queue) in registers.queues.iter_mut().enumerate() {
            queue.reset();
            self.device.forget(index);
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        // Bits are never taken away but by a reset (2.1.1).
        let mut status = self.registers.status | value & DRIVER_BITS;
        let features = self.registers.driver_features;
        if features & !self.features() != 0 || features & 1 << VIRTIO_F_VERSION_1 == 0 {
            // Not a set that this device can work with: the driver finds FEATURES_OK still off (2.2.2).
            status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            status &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        self.registers.status = status;
    }

    fn queue(&self) -> Option<&Queue> {
        self.registers.queues.get(self.registers.queue_select as usize)
    }

    fn read_register(&self, offset: u32) -> u32 {
        let half = |select: u32, features: u64| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => D::ID,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => half(self.registers.device_features_select, self.features()),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => self.queue().map_or(0, |queue| u32::from(queue.max_size)),
            reg::VIRTIO_MMIO_QUEUE_READY => self.queue().map_or(0, |queue| u32::from(queue.ready)),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.registers.interrupt_status,
            reg::VIRTIO_MMIO_STATUS => self.registers.status,
            // "If the region does not exist, the length is -1" (4.2.2).
            reg::VIRTIO_MMIO_SHM_LEN_LOW..=reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            // The configuration never changes, so its generation (0) does not; write-only and unknown registers are 0.
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32, ram: &GuestRam, effects: &mut Vec<Effect>) {
        let registers = &mut self.registers;
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_select = value,
            // Section 3.1.1: the driver's choice is final with FEATURES_OK.
            reg::VIRTIO_MMIO_DRIVER_FEATURES if registers.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 => {
                let [low, high] = [registers.driver_features & 0xffff_ffff, registers.driver_features >> 32];
                registers.driver_features = match registers.driver_features_select {
                    0 => high << 32 | u64::from(value),
                    1 => u64::from(value) << 32 | low,
                    // Bits that nobody offers; a driver that accepts some is refused at FEATURES_OK by its reading
                    // them back as not offered. There is no place to keep them.
                    _ => registers.driver_features,
                };
            }
            reg::VIRTIO_MMIO_QUEUE_SEL => registers.queue_select = value,
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => {
                let queue = value as usize;
                if self.is_live() && self.registers.queues.get(queue).is_some_and(|queue| queue.ready) {
                    self.with_device(ram, effects, |device, io| device.process(queue, io));
                }
            }
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.acknowledge(value),
            reg::VIRTIO_MMIO_STATUS => self.write_status(value),
            reg::VIRTIO_MMIO_QUEUE_READY => self.write_queue_ready(value & 1 != 0, ram),
            _ => self.write_queue_register(offset, value),
        }
    }

    fn write_queue_ready(&mut self, ready: bool, ram: &GuestRam) {
        let index = self.registers.queue_select as usize;
        let Some(queue) = self.registers.queues.get_mut(index) else {
            return;
        };
        match (queue.ready, ready) {
            (false, true) => {
                if let Err(malformed) = queue.enable(ram) {
                    self.needs_reset(malformed);
                }
            }
            (true, false) => {
                queue.reset();
                self.device.forget(index);
            }
            _ => {}
        }
    }

    /// A queue's size and addresses, which the driver sets before it makes the queue ready (4.2.2.2).
    fn write_queue_register(&mut self, offset: u32, value: u32) {
        let select = self.registers.queue_select as usize;
        let Some(queue) = self.registers.queues.get_mut(select).filter(|queue| !queue.ready) else {
            return;
        };
        let low = |old: u64| old & !0xffff_ffff | u64::from(value);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            // A size that does not fit 16 bits is as wrong as 0 is; `enable` refuses it.
            reg::VIRTIO_MMIO_QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.descriptors = low(queue.descriptors),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.descriptors = high(queue.descriptors),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.available = low(queue.available),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.available = high(queue.available),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => queue.used = low(queue.used),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.used = high(queue.used),
            _ => {}
        }
    }

    /// What is saved of the slot.
    pub(in crate::devices) fn save(&self) -> (&Registers, &D::State) {
        (&self.registers, self.device.state())
    }

    /// Takes a deserialized state over, or refuses it.
    pub(in crate::devices) fn restore(&mut self, saved: (Registers, D::State)) -> Result<(), DeviceError> {
        let (registers, state) = saved;
        let sound = registers.queues.len() == D::QUEUES.len()
            && registers
                .queues
                .iter()
                .zip(D::QUEUES)
                .all(|(queue, &size)| queue.is_sound(size))
            && registers.line.is_settled();
        if !sound {
            return Err(DeviceError::State("a virtio slot has impossible queues"));
        }
        self.device.set_state(state)?;
        self.registers = registers;
        Ok(())
    }
}

impl<D: Device> Slot for Mmio<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(reg::VIRTIO_MMIO_CONFIG)) {
            // Beyond the device's fields, the configuration space reads as zeroes.
            let config = self.device.config();
            for (index, byte) in data.iter_mut().enumerate() {
                *byte = config.get(offset as usize + index).copied().unwrap_or(0);
            }
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset as u32).to_le_bytes());
        } else {
            data.fill(0xff);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8], ram: &GuestRam, effects: &mut Vec<Effect>) {
        // No device here has configuration fields that can be written.
        if let (true, Ok(bytes)) = (
            offset < u64::from(reg::VIRTIO_MMIO_CONFIG) && offset.is_multiple_of(4),
            data.try_into(),
        ) {
            self.write_register(offset as u32, u32::from_le_bytes(bytes), ram, effects);
        }
    }

    fn line(&mut self) -> &mut Line {
        &mut self.registers.line
    }
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
