//! The console: a 16550A at 0x3f8, IRQ 4; vm-superio's, with its state made serializable.

use std::cell::Cell;
use std::convert::Infallible;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};

use super::error::DeviceError;
use super::line::Line;

/// The modem control register's loopback bit (16550D data sheet, section 8.6.7).
const MCR_LOOP: u8 = 0x10;
/// The interrupt identification register's "none pending" bit.
const IIR_NONE: u8 = 0x01;

/// Remembers that the UART raised its interrupt until the access is over.
#[derive(Debug, Default)]
struct Flag(Cell<bool>);

impl Trigger for Flag {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

/// The UART's state as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UartState {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
    line: Line,
}

#[derive(Debug)]
pub(super) struct Uart {
    serial: Serial<Flag, NoEvents, Vec<u8>>,
    pub(super) line: Line,
}

impl Uart {
    pub(super) fn new() -> Self {
        Self {
            serial: Serial::new(Flag::default(), Vec::new()),
            line: Line::default(),
        }
    }

    /// Ports 0x3f8 to 0x3ff.
    pub(super) fn read(&mut self, offset: u16) -> u8 {
        let value = self.serial.read(offset as u8);
        self.drive();
        value
    }

    /// Ports 0x3f8 to 0x3ff. What goes out on the wire is appended to `out`.
    pub(super) fn write(&mut self, offset: u16, value: u8, out: &mut Vec<u8>) {
        // Neither writing into a vector nor setting a flag can fail.
        let _ = self.serial.write(offset as u8, value);
        out.append(self.serial.writer_mut());
        self.drive();
    }

    /// How many bytes the receive FIFO takes now; none in loopback mode, where the wire is cut.
    pub(super) fn room(&self) -> usize {
        if self.serial.state().modem_control & MCR_LOOP != 0 {
            0
        } else {
            self.serial.fifo_capacity()
        }
    }

    /// Bytes arrive on the wire.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<(), DeviceError> {
        let room = self.room();
        if bytes.len() > room {
            return Err(DeviceError::WrongLength {
                what: "console input",
                expected: room,
                got: bytes.len(),
            });
        }
        if !bytes.is_empty() {
            // Cannot fail: there is room, and setting a flag cannot fail.
            let _ = self.serial.enqueue_raw_bytes(bytes);
            self.drive();
        }
        Ok(())
    }

    /// The line is high while the UART identifies an interrupt; every trigger is an edge.
    fn drive(&mut self) {
        if self.serial.interrupt_evt().0.take() {
            self.line.raise();
        }
        self.line
            .set(self.serial.state().interrupt_identification & IIR_NONE == 0);
    }

    pub(super) fn save(&self) -> UartState {
        let state = self.serial.state();
        UartState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
            line: self.line.clone(),
        }
    }

    pub(super) fn restore(saved: UartState) -> Result<Self, DeviceError> {
        if !saved.line.is_settled() {
            return Err(DeviceError::State("the UART's line is between two accesses"));
        }
        let state = SerialState {
            baud_divisor_low: saved.baud_divisor_low,
            baud_divisor_high: saved.baud_divisor_high,
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.in_buffer,
        };
        let serial = Serial::from_state(&state, Flag::default(), NoEvents, Vec::new())
            .map_err(|_| DeviceError::State("the UART's receive FIFO is too long"))?;
        // `from_state` triggers again what had been triggered when the state was saved; that edge was taken then.
        serial.interrupt_evt().0.set(false);
        Ok(Self {
            serial,
            line: saved.line,
        })
    }
}

#[cfg(test)]
#[path = "serial_tests.rs"]
mod tests;
