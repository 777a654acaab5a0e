//! The timer: an 8254 with a PC's wiring. Counter 0 drives IRQ 0, counter 1 the refresh signal, counter 2 the speaker.
//!
//! Sources: Intel 8254 data sheet (231164-005); port 0x61 as in the IBM PC/AT technical reference and the 82371AB.

mod channel;

use serde::{Deserialize, Serialize};

use super::line::Line;
use channel::Channel;

/// Clocks between two toggles of the refresh bit of port 0x61 (the count that a PC's firmware gives counter 1).
const REFRESH: u64 = 18;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pit {
    channels: [Channel; 3],
    /// Bits 3:1 of port 0x61 (speaker data, NMI enables) as last written; bit 0 is counter 2's gate.
    port61: u8,
    /// Rising edges of counter 0 up to this time are on the line already.
    seen: u64,
    pub(super) line: Line,
}

impl Pit {
    pub(super) fn new() -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            port61: 0,
            seen: 0,
            line: Line::high(),
        }
    }

    /// Puts on the line what happened by `now`. However many periods went by, it is one edge: lost ticks are not queued.
    pub(super) fn advance(&mut self, now: u64) {
        let timer = &mut self.channels[0];
        if timer.next_rise(self.seen).is_some_and(|rise| rise <= now) {
            self.line.raise();
        }
        self.seen = self.seen.max(now);
        for channel in &mut self.channels {
            channel.settle(now);
        }
        self.line.set(self.channels[0].out(now));
    }

    /// When the line rises next, if the guest does not touch the timer.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.channels[0].next_rise(self.seen)
    }

    /// Ports 0x40 to 0x43; `advance(now)` was called. The control port cannot be read.
    pub(super) fn read(&mut self, offset: u16, now: u64) -> u8 {
        self.channels
            .get_mut(usize::from(offset))
            .map_or(0xff, |channel| channel.read(now))
    }

    /// Ports 0x40 to 0x43; `advance(now)` was called.
    pub(super) fn write(&mut self, offset: u16, value: u8, now: u64) {
        match self.channels.get_mut(usize::from(offset)) {
            Some(channel) => channel.write(value, now),
            None => self.control(value, now),
        }
        self.line.set(self.channels[0].out(now));
    }

    fn control(&mut self, word: u8, now: u64) {
        if let Some(channel) = self.channels.get_mut(usize::from(word >> 6)) {
            match word & 0x30 {
                0 => channel.latch(now),
                _ => channel.control(word),
            }
            return;
        }
        // Read-back: bits 3:1 choose counters, bits 5 and 4, active low, what is latched.
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if word & 2 << index != 0 {
                if word & 0x20 == 0 {
                    channel.latch(now);
                }
                if word & 0x10 == 0 {
                    channel.latch_status(now);
                }
            }
        }
    }

    /// Port 0x61.
    pub(super) fn read_port61(&self, now: u64) -> u8 {
        let speaker = &self.channels[2];
        let refresh = (channel::ticks(now) / REFRESH) & 1;
        self.port61 | u8::from(speaker.gate()) | (refresh as u8) << 4 | u8::from(speaker.out(now)) << 5
    }

    /// Port 0x61; `advance(now)` was called.
    pub(super) fn write_port61(&mut self, value: u8, now: u64) {
        self.port61 = value & 0x0e;
        self.channels[2].set_gate(value & 1 != 0, now);
    }

    /// Whether a deserialized state is one that this can get into, as far as safety depends on it.
    pub(super) fn is_sound(&self) -> bool {
        self.channels.iter().all(Channel::is_sound)
            && self.channels[0].gate()
            && self.channels[1].gate()
            && self.port61 & !0x0e == 0
            && self.line.is_settled()
    }
}

#[cfg(test)]
mod tests;
