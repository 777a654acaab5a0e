//! A PC's keyboard controller with a keyboard: as much as Linux's i8042 and atkbd drivers want. Nobody types on it; the
//! guest is asked to shut down by [`CTRL_ALT_DEL`], which Linux' virtual terminals take to init.
//!
//! Sources: Intel 8042 as in the IBM PC AT (technical reference, keyboard controller), the AT keyboard's commands (same).
//! There is no mouse, and no translation of the scan codes: that bit of the command byte stays 0, and the guest gets set 2,
//! as the keyboard sends it. The controller takes every byte at once, so that its input buffer is always empty.

use serde::{Deserialize, Serialize};

use super::error::DeviceError;
use super::line::Line;

/// Ctrl, Alt and Del pressed and released, in set 2.
pub const CTRL_ALT_DEL: [u8; 11] = [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];

/// How many bytes the keyboard keeps.
const QUEUE: usize = 16;

/// Status: a byte waits at port 0x60.
const OUTPUT_FULL: u8 = 0x01;
/// Status: the last byte was written to port 0x64.
const COMMAND: u8 = 0x08;
/// Status: the keyboard is not locked.
const UNLOCKED: u8 = 0x10;

/// Command byte: a byte for the guest raises IRQ 1.
const INTERRUPT: u8 = 0x01;
/// Command byte: the self test has passed, which the status shows in the same place.
const SYSTEM: u8 = 0x04;
/// Command byte: the keyboard's clock is held, it sends nothing.
const DISABLED: u8 = 0x10;
/// Command byte: scan codes become those of set 1.
const TRANSLATE: u8 = 0x40;

/// Output port: reset is not asserted, A20 is open; a byte waits for IRQ 1.
const OUTPUT_PORT: u8 = 0x03;
const OUTPUT_PORT_FULL: u8 = 0x10;

const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keyboard {
    pub(super) line: Line,
    command_byte: u8,
    /// The controller's command whose parameter comes next; 0: what comes is for the keyboard.
    pending: u8,
    /// The last byte was written to port 0x64.
    command_last: bool,
    output: Option<u8>,
    /// What the keyboard has not sent yet.
    queue: Vec<u8>,
    /// The keyboard's command whose parameter comes next; 0: none.
    keyboard_pending: u8,
    /// The keyboard tells of its keys.
    scanning: bool,
}

impl Keyboard {
    /// As firmware leaves them.
    pub(super) fn new() -> Self {
        Self {
            line: Line::default(),
            command_byte: INTERRUPT | SYSTEM,
            pending: 0,
            command_last: false,
            output: None,
            queue: Vec::new(),
            keyboard_pending: 0,
            scanning: true,
        }
    }

    /// Port 0x64.
    pub(super) fn read_status(&self) -> u8 {
        let mut status = UNLOCKED | self.command_byte & SYSTEM;
        if self.output.is_some() {
            status |= OUTPUT_FULL;
        }
        if self.command_last {
            status |= COMMAND;
        }
        status
    }

    /// Port 0x60. Where nothing waits, it reads as 0.
    pub(super) fn read_data(&mut self) -> u8 {
        let value = self.output.take();
        // The line falls before the next byte comes: each is an edge of its own.
        self.drive();
        self.advance();
        value.unwrap_or(0)
    }

    /// Port 0x64: a command for the controller. Resets are [`ResetPorts`](super::reset::ResetPorts)'s.
    pub(super) fn write_command(&mut self, command: u8) {
        self.command_last = true;
        self.pending = 0;
        match command {
            0x20 => self.answer(self.command_byte),
            // Parameters: the command byte, the output port, a byte as if from the keyboard, two for a mouse.
            0x60 | 0xd1 | 0xd2 | 0xd3 | 0xd4 => self.pending = command,
            // The mouse's clock stays low: there is none.
            0xa9 => self.answer(0x01),
            0xaa => {
                self.command_byte |= SYSTEM;
                self.answer(0x55);
            }
            // The keyboard's wires are well.
            0xab => self.answer(0x00),
            0xad => self.command_byte |= DISABLED,
            0xae => self.command_byte &= !DISABLED,
            0xd0 => {
                let full = if self.output.is_some() { OUTPUT_PORT_FULL } else { 0 };
                self.answer(OUTPUT_PORT | full);
            }
            _ => {}
        }
        self.advance();
    }

    /// Port 0x60: a command's parameter, or a byte for the keyboard. True is a reset.
    pub(super) fn write_data(&mut self, value: u8) -> bool {
        self.command_last = false;
        let command = std::mem::take(&mut self.pending);
        match command {
            0x60 => self.command_byte = value & !TRANSLATE,
            // Bit 0 of the output port is the CPU's reset, low is active.
            0xd1 => return value & 1 == 0,
            // The test of a mouse's port comes back as the keyboard's byte: so the guest sees that there is none.
            0xd2 | 0xd3 => self.answer(value),
            0xd4 => {}
            _ => {
                // A byte for the keyboard lets its clock go.
                self.command_byte &= !DISABLED;
                self.command_keyboard(value);
            }
        }
        self.advance();
        false
    }

    /// How many bytes the keyboard can take besides those that wait.
    pub(super) fn room(&self) -> usize {
        QUEUE.saturating_sub(self.queue.len())
    }

    /// Keys are pressed and released. A keyboard that the guest has told to keep still loses them.
    pub(super) fn press(&mut self, codes: &[u8]) -> Result<(), DeviceError> {
        if codes.len() > self.room() {
            return Err(DeviceError::WrongLength {
                what: "keyboard input",
                expected: self.room(),
                got: codes.len(),
            });
        }
        if self.scanning {
            self.queue.extend(codes);
            self.advance();
        }
        Ok(())
    }

    fn command_keyboard(&mut self, value: u8) {
        match (std::mem::take(&mut self.keyboard_pending), value) {
            // Which set? The second.
            (0xf0, 0) => self.send(&[ACKNOWLEDGE, 2]),
            // Lamps, rate of repetition, another set, defaults: taken note of, and nothing more.
            (0xed | 0xf0 | 0xf3, _) | (_, 0xf6) => self.send(&[ACKNOWLEDGE]),
            (_, 0xed | 0xf0 | 0xf3) => {
                self.keyboard_pending = value;
                self.send(&[ACKNOWLEDGE]);
            }
            (_, 0xee) => self.send(&[0xee]),
            (_, 0xf2) => self.send(&[ACKNOWLEDGE, 0xab, 0x83]),
            (_, 0xf4) => {
                self.scanning = true;
                self.send(&[ACKNOWLEDGE]);
            }
            (_, 0xf5) => {
                self.scanning = false;
                self.send(&[ACKNOWLEDGE]);
            }
            (_, 0xff) => {
                self.scanning = true;
                self.queue.clear();
                self.send(&[ACKNOWLEDGE, 0xaa]);
            }
            _ => self.send(&[RESEND]),
        }
    }

    /// What the keyboard answers. It has room, or the guest has not read for long, and goes without.
    fn send(&mut self, answer: &[u8]) {
        if answer.len() <= self.room() {
            self.queue.extend(answer);
        }
    }

    /// What the controller answers takes the place of what waits at port 0x60.
    fn answer(&mut self, value: u8) {
        self.output = None;
        self.drive();
        self.output = Some(value);
    }

    /// The keyboard sends its next byte, if the controller takes it.
    fn advance(&mut self) {
        if self.output.is_none() && self.command_byte & DISABLED == 0 && !self.queue.is_empty() {
            self.output = Some(self.queue.remove(0));
        }
        self.drive();
    }

    fn drive(&mut self) {
        self.line
            .set(self.output.is_some() && self.command_byte & INTERRUPT != 0);
    }

    /// Whether a saved state can be.
    pub(super) fn is_sound(&self) -> bool {
        self.queue.len() <= QUEUE && self.line.is_settled()
    }
}

#[cfg(test)]
#[path = "keyboard_tests.rs"]
mod tests;
