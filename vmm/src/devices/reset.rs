//! The ways to reset a PC: the keyboard controller's pulse command, the reset control register, the fast reset bit.
//!
//! Sources: Intel 8042 (command 0xfe pulses output bit 0, wired to the CPU's reset); 82371AB, RC register at 0xcf9,
//! section 4.2.5; PS/2 system control port A at 0x92.

use serde::{Deserialize, Serialize};

/// What the keyboard controller's status port says: every bit but "input buffer full".
///
/// That is the machine without a keyboard. With "output buffer full" stuck, Linux's i8042 probe gives up at once ("No controller found")
/// instead of waiting for a self test; with "input buffer full" clear, `reboot` does not wait before its pulse command.
const KEYBOARD_STATUS: u8 = 0xfd;

/// Port 0x92: the A20 gate is open.
const A20: u8 = 0x02;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ResetPorts {
    /// The reset control register at 0xcf9.
    control: u8,
    /// The system control port A at 0x92.
    port_a: u8,
}

impl ResetPorts {
    pub(super) fn new() -> Self {
        Self {
            control: 0,
            port_a: A20,
        }
    }

    /// Where there is no [`Keyboard`](super::keyboard::Keyboard).
    pub(super) fn read_keyboard_status() -> u8 {
        KEYBOARD_STATUS
    }

    /// A command for the keyboard controller; true is a reset. 0xf0 to 0xff pulse the output bits that are 0 in the
    /// command; bit 0 is the CPU's reset.
    pub(super) fn keyboard_command(value: u8) -> bool {
        value >= 0xf0 && value & 1 == 0
    }

    pub(super) fn read_control(&self) -> u8 {
        self.control
    }

    /// The reset control register; true is a reset: bit 2 goes from 0 to 1, and it does not stay set after one.
    pub(super) fn write_control(&mut self, value: u8) -> bool {
        self.control = value & 0x0a;
        value & 4 != 0
    }

    pub(super) fn read_port_a(&self) -> u8 {
        self.port_a
    }

    /// System control port A; true is a reset: bit 0 goes from 0 to 1.
    pub(super) fn write_port_a(&mut self, value: u8) -> bool {
        let reset = value & 1 != 0 && self.port_a & 1 == 0;
        self.port_a = value;
        reset
    }
}
