//! The interrupt controller: two cascaded 8259As as in a PC/AT.
//!
//! Source: Intel 8259A data sheet (231468-003); the edge/level control registers (ELCR) at 0x4d0 and 0x4d1 as in the
//! 82371AB (PIIX4) data sheet, 290562-001, section 4.2.6.
//!
//! Where this differs from the chip, on purpose:
//! - A request that was latched on an edge stays latched until it is acknowledged or ICW1 clears it, even if its line
//!   falls (the chip would then deliver the spurious vector 7; emulators and drivers agree on this behaviour).
//! - The cascade input of the master follows the slave's output.
//! - The trigger mode is the ELCR's alone (as in a PIIX), ICW1's LTIM bit is ignored; so is ICW3: the wiring is fixed.

use serde::{Deserialize, Serialize};

use super::line::Signal;

/// The master's input that the slave's output is wired to.
const CASCADE: u8 = 2;
/// ELCR bits that exist: IRQ 0, 1, 2, 8 and 13 are always edge triggered.
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];
/// The input that a chip answers with when nothing is requested (data sheet, "default IR7").
const SPURIOUS: u8 = 7;

/// Which initialization command word is due at the odd port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Init {
    Done,
    Icw2,
    Icw3,
    Icw4,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Chip {
    master: bool,
    /// Levels of the inputs.
    lines: u8,
    /// Requests: latched edges, and lines of level-triggered inputs.
    irr: u8,
    imr: u8,
    isr: u8,
    elcr: u8,
    /// ICW2: the upper five bits of the vectors.
    base: u8,
    /// The input of highest priority (0 after reset; rotation changes it).
    top: u8,
    init: Init,
    needs_icw4: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    read_isr: bool,
    poll: bool,
}

impl Chip {
    fn new(master: bool) -> Self {
        Self {
            master,
            lines: 0,
            irr: 0,
            // The firmware's task on a PC; nothing is delivered before the guest has initialized the chip.
            imr: 0xff,
            isr: 0,
            elcr: 0,
            base: 0,
            top: 0,
            init: Init::Done,
            needs_icw4: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            read_isr: false,
            poll: false,
        }
    }

    /// The set bit of highest priority, as its distance from the top: 0 is the highest, 8 is none.
    fn rank(&self, bits: u8) -> u32 {
        bits.rotate_right(u32::from(self.top)).trailing_zeros()
    }

    fn at_rank(&self, rank: u32) -> u8 {
        (self.top + rank as u8) & 7
    }

    /// The input that the INT output is high for, if it is.
    fn request(&self) -> Option<u8> {
        if self.init != Init::Done {
            return None;
        }
        let rank = self.rank(self.irr & !self.imr);
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.master && self.special_fully_nested {
            in_service &= !(1 << CASCADE);
        }
        (rank < self.rank(in_service)).then(|| self.at_rank(rank))
    }

    /// INTA: the request of highest priority goes into service. `None` is a spurious interrupt; no ISR bit is set then.
    fn acknowledge(&mut self) -> Option<u8> {
        let irq = self.request()?;
        let bit = 1 << irq;
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.top = (irq + 1) & 7;
            }
        } else {
            self.isr |= bit;
        }
        Some(irq)
    }

    fn drive(&mut self, irq: u8, signal: Signal) {
        let bit = 1 << irq;
        if self.elcr & bit != 0 {
            self.irr = if signal.high { self.irr | bit } else { self.irr & !bit };
        } else if signal.rose {
            self.irr |= bit;
        }
        self.lines = if signal.high {
            self.lines | bit
        } else {
            self.lines & !bit
        };
    }

    fn read(&mut self, odd: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            // Data sheet, "poll command": the read is an INTA; bit 7 tells whether there was a request.
            return self.acknowledge().map_or(0, |irq| 0x80 | irq);
        }
        match (odd, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }

    fn write(&mut self, odd: bool, value: u8) {
        match (odd, value & 0x18) {
            (false, 0x10 | 0x18) => self.icw1(value),
            (false, 0x08) => self.ocw3(value),
            (false, _) => self.ocw2(value),
            (true, _) => self.write_odd(value),
        }
    }

    /// ICW1: the edge latches, the mask, the priorities and the read selection are reset.
    fn icw1(&mut self, value: u8) {
        self.irr = self.lines & self.elcr;
        self.imr = 0;
        self.isr = 0;
        self.top = 0;
        self.special_mask = false;
        self.read_isr = false;
        self.poll = false;
        self.auto_eoi = false;
        self.rotate_on_auto_eoi = false;
        self.special_fully_nested = false;
        self.needs_icw4 = value & 1 != 0;
        self.single = value & 2 != 0;
        self.init = Init::Icw2;
    }

    fn write_odd(&mut self, value: u8) {
        self.init = match self.init {
            Init::Done => {
                self.imr = value;
                Init::Done
            }
            Init::Icw2 => {
                self.base = value & 0xf8;
                match (self.single, self.needs_icw4) {
                    (false, _) => Init::Icw3,
                    (true, true) => Init::Icw4,
                    (true, false) => Init::Done,
                }
            }
            Init::Icw3 if self.needs_icw4 => Init::Icw4,
            Init::Icw3 => Init::Done,
            Init::Icw4 => {
                self.auto_eoi = value & 2 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                Init::Done
            }
        };
    }

    /// OCW2: end of interrupt and rotation.
    fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            // Rotate in automatic EOI mode: clear, set.
            0 => self.rotate_on_auto_eoi = false,
            4 => self.rotate_on_auto_eoi = true,
            // Non-specific EOI, without and with rotation. In special mask mode, masked inputs are left alone.
            command @ (1 | 5) => {
                let visible = if self.special_mask {
                    self.isr & !self.imr
                } else {
                    self.isr
                };
                let rank = self.rank(visible);
                if rank < 8 {
                    let irq = self.at_rank(rank);
                    self.isr &= !(1 << irq);
                    if command == 5 {
                        self.top = (irq + 1) & 7;
                    }
                }
            }
            // Specific EOI, without and with rotation.
            3 => self.isr &= !(1 << level),
            7 => {
                self.isr &= !(1 << level);
                self.top = (level + 1) & 7;
            }
            // Set priority: `level` becomes the lowest.
            6 => self.top = (level + 1) & 7,
            // 2: no operation.
            _ => {}
        }
    }

    /// OCW3: poll, read selection, special mask mode.
    fn ocw3(&mut self, value: u8) {
        self.poll = value & 4 != 0;
        if value & 2 != 0 {
            self.read_isr = value & 1 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn set_elcr(&mut self, value: u8) {
        self.elcr = value & ELCR_MASK[usize::from(!self.master)];
        // Level-triggered inputs request what their lines say now.
        self.irr = (self.irr & !self.elcr) | (self.lines & self.elcr);
    }

    fn is_sound(&self) -> bool {
        self.top < 8 && self.base & 7 == 0 && self.elcr & !ELCR_MASK[usize::from(!self.master)] == 0
    }
}

/// The pair of 8259As.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pic {
    master: Chip,
    slave: Chip,
}

impl Pic {
    pub(super) fn new() -> Self {
        Self {
            master: Chip::new(true),
            slave: Chip::new(false),
        }
    }

    /// The master's cascade input follows the slave's output.
    fn settle(&mut self) {
        let bit = 1 << CASCADE;
        let high = self.slave.request().is_some();
        self.master.irr = if high {
            self.master.irr | bit
        } else {
            self.master.irr & !bit
        };
        self.master.lines = if high {
            self.master.lines | bit
        } else {
            self.master.lines & !bit
        };
    }

    fn chip(&mut self, slave: bool) -> &mut Chip {
        if slave { &mut self.slave } else { &mut self.master }
    }

    /// A device's line did something. IRQ 2 is the cascade and no device's.
    pub(super) fn drive(&mut self, irq: u8, signal: Signal) {
        match irq {
            CASCADE | 16.. => return,
            0..8 => self.master.drive(irq, signal),
            8..16 => self.slave.drive(irq - 8, signal),
        }
        self.settle();
    }

    /// The INTR output.
    pub(super) fn interrupt_pending(&self) -> bool {
        self.master.request().is_some()
    }

    /// Whether anything unmasked is requested. What is in service may keep it from the INTR output until its end.
    pub(super) fn interrupt_requested(&self) -> bool {
        let asks = |chip: &Chip| chip.irr & !chip.imr != 0;
        asks(&self.master) || (asks(&self.slave) && self.master.imr & (1 << CASCADE) == 0)
    }

    /// INTA: the vector.
    pub(super) fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.acknowledge() {
            Some(CASCADE) => self.slave.base | self.slave.acknowledge().unwrap_or(SPURIOUS),
            irq => self.master.base | irq.unwrap_or(SPURIOUS),
        };
        self.settle();
        vector
    }

    /// Whether a rising edge on this line now would come to something that the guest notices without asking: the input
    /// is unmasked and nothing is latched there yet.
    pub(super) fn would_notice(&self, irq: u8) -> bool {
        let clear = |chip: &Chip, irq: u8| (chip.irr | chip.imr) & (1 << irq) == 0;
        if irq < 8 {
            clear(&self.master, irq)
        } else {
            clear(&self.slave, irq & 7) && self.master.imr & (1 << CASCADE) == 0
        }
    }

    pub(super) fn read(&mut self, slave: bool, odd: bool) -> u8 {
        let value = self.chip(slave).read(odd);
        self.settle();
        value
    }

    pub(super) fn write(&mut self, slave: bool, odd: bool, value: u8) {
        self.chip(slave).write(odd, value);
        self.settle();
    }

    pub(super) fn elcr(&mut self, slave: bool) -> u8 {
        self.chip(slave).elcr
    }

    pub(super) fn set_elcr(&mut self, slave: bool, value: u8) {
        self.chip(slave).set_elcr(value);
        self.settle();
    }

    /// Whether a deserialized state is one that this can get into, as far as safety depends on it.
    pub(super) fn is_sound(&self) -> bool {
        let mut settled = self.clone();
        settled.settle();
        settled == *self && self.master.master && !self.slave.master && self.master.is_sound() && self.slave.is_sound()
    }
}

#[cfg(test)]
#[path = "pic_tests.rs"]
mod tests;
