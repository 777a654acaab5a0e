//! ACPI's fixed hardware, as much as a machine has that never sleeps: a power button, and the switch that turns it off.
//!
//! Source: ACPI 6.5, sections 4.8.3.1 (PM1 event registers: status, then enable), 4.8.3.2 (PM1 control register) and 4.8.2.2
//! (power button). There is no SMI command port, so the machine is in ACPI mode at all times (4.8.2.5): SCI_EN reads as 1. There is
//! no PM timer (its time would be one more clock that the guest reads), no general-purpose event and no sleep but S5.

use serde::{Deserialize, Serialize};

use super::line::Line;

/// Status and enable: the power button.
const BUTTON: u16 = 1 << 8;
/// Enable bits that the register keeps: timer, global lock, power and sleep button, clock. Drivers turn them on and read them
/// back; only the power button's event ever comes.
const ENABLES: u16 = 1 | 1 << 5 | BUTTON | 1 << 9 | 1 << 10;

/// Control: events raise the system control interrupt.
const SCI_ENABLED: u16 = 1;
/// Control: bus masters wake the CPU, a bit that is only kept; and the kind of sleep.
const CONTROLS: u16 = 1 << 1 | SLEEP_TYPE;
const SLEEP_TYPE: u16 = 7 << SLEEP_TYPE_SHIFT;
const SLEEP_TYPE_SHIFT: u16 = 10;
/// Control: go to sleep. It reads as 0.
const SLEEP: u16 = 1 << 13;

/// What the sleep type has to be for S5, soft off: what `\_S5` tells the guest.
pub(super) const S5: u8 = 5;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Power {
    pub(super) line: Line,
    status: u16,
    enable: u16,
    control: u16,
}

impl Power {
    /// As firmware leaves it.
    pub(super) fn new() -> Self {
        Self {
            line: Line::default(),
            status: 0,
            enable: 0,
            control: 0,
        }
    }

    /// A byte of the event block: status, then enable, little-endian.
    pub(super) fn read_events(&self, offset: u16) -> u8 {
        let [status, enable] = [self.status, self.enable].map(u16::to_le_bytes);
        byte([status[0], status[1], enable[0], enable[1]], offset)
    }

    /// Writes one. A status bit is cleared by writing 1.
    pub(super) fn write_events(&mut self, offset: u16, value: u8) {
        let bits = u16::from(value) << (offset % 2 * 8);
        if offset < 2 {
            self.status &= !bits;
        } else {
            self.enable = (self.enable & !half(offset) | bits) & ENABLES;
        }
        self.drive();
    }

    /// A byte of the control block.
    pub(super) fn read_control(&self, offset: u16) -> u8 {
        byte((self.control | SCI_ENABLED).to_le_bytes(), offset)
    }

    /// Writes one; true is the end: the guest powers the machine off. A sleep of another type is none of this machine's, and
    /// nothing happens.
    pub(super) fn write_control(&mut self, offset: u16, value: u8) -> bool {
        let bits = u16::from(value) << (offset % 2 * 8);
        self.control = (self.control & !half(offset) | bits) & CONTROLS;
        bits & SLEEP != 0 && (self.control & SLEEP_TYPE) >> SLEEP_TYPE_SHIFT == u16::from(S5)
    }

    /// Whether a press raises an interrupt: the guest has a driver for it.
    pub(super) fn hears_button(&self) -> bool {
        self.enable & BUTTON != 0
    }

    /// The button is pressed and let go.
    pub(super) fn press_button(&mut self) {
        self.status |= BUTTON;
        self.drive();
    }

    fn drive(&mut self) {
        self.line.set(self.status & self.enable != 0);
    }

    /// Whether a saved state can be.
    pub(super) fn is_sound(&self) -> bool {
        let known = self.status & !BUTTON == 0 && self.enable & !ENABLES == 0 && self.control & !CONTROLS == 0;
        known && self.line.is_settled() && self.line.is_high() == (self.status & self.enable != 0)
    }
}

/// The mask of the byte at `offset` in its register.
fn half(offset: u16) -> u16 {
    0xff << (offset % 2 * 8)
}

/// The byte at `offset`; what is not there reads as all ones.
fn byte<const BYTES: usize>(bytes: [u8; BYTES], offset: u16) -> u8 {
    bytes.get(usize::from(offset)).copied().unwrap_or(0xff)
}

#[cfg(test)]
#[path = "power_tests.rs"]
mod tests;
