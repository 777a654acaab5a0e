//! One counter of the 8254.
//!
//! A counter is a function of the guest's time: what it holds is when and with what it was loaded, and everything else is
//! computed, in integers, when somebody looks. So periods do not drift: the nth tick of a periodic counter is at
//! `start + ceil(n * count * 1e9 / 1193182)` nanoseconds.
//!
//! Source: Intel 8254 data sheet (231164-005). Simplified, on purpose: the CLK pulse that moves a count from the count
//! register to the counting element is taken to coincide with the write or the gate's edge; in mode 3 a new count is
//! taken over at the end of the period rather than of the half-cycle; a count of 1 in modes 2 and 3, which the data
//! sheet forbids, acts as 2.

use serde::{Deserialize, Serialize};

/// The input clock of a PC's 8254, in Hz.
pub(super) const HZ: u128 = 1_193_182;
const NS: u128 = 1_000_000_000;

/// Whole input clocks in a span of guest time.
pub(super) fn ticks(ns: u64) -> u64 {
    (u128::from(ns) * HZ / NS) as u64
}

/// The first nanosecond at which `ticks` whole input clocks are over.
fn nanoseconds(ticks: u128) -> u64 {
    u64::try_from((ticks * NS).div_ceil(HZ)).unwrap_or(u64::MAX)
}

/// Which bytes of the 16-bit count an access moves (RW bits of the control word).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Bytes {
    Low,
    High,
    Both,
}

/// What the counting element does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Run {
    /// Nothing was loaded yet (or, in modes 1 and 5, there was no trigger).
    Idle,
    /// Counting since this guest time.
    Since(u64),
    /// Held by the gate after this many ticks.
    Held(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Channel {
    mode: u8,
    bytes: Bytes,
    bcd: bool,
    gate: bool,
    /// The count register: 1 to 65536.
    register: Option<u32>,
    /// The count that the counting element was loaded with.
    loaded: u32,
    run: Run,
    /// In modes 2 and 3: when the count register is taken over, if it holds a new count.
    reload_at: Option<u64>,
    /// The first byte of a two-byte write.
    low_byte: Option<u8>,
    /// The next byte of a two-byte read is the second.
    high_next: bool,
    latched: Option<u16>,
    latched_status: Option<u8>,
}

impl Channel {
    /// A counter that nobody has programmed: idle, with OUT high, so that the first control word is no rising edge.
    pub(super) fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            bytes: Bytes::Both,
            bcd: false,
            gate,
            register: None,
            loaded: 65536,
            run: Run::Idle,
            reload_at: None,
            low_byte: None,
            high_next: false,
            latched: None,
            latched_status: None,
        }
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Modes 1 and 5 start on the gate's rising edge, not on a write.
    fn is_triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    /// Ticks since the load, if the counting element was loaded.
    fn elapsed(&self, now: u64) -> Option<u64> {
        match self.run {
            Run::Idle => None,
            Run::Since(start) => Some(ticks(now.saturating_sub(start))),
            Run::Held(ticks) => Some(ticks),
        }
    }

    fn period(&self) -> u64 {
        u64::from(self.loaded.max(2))
    }

    /// A new count that was due by `now` is taken over.
    pub(super) fn settle(&mut self, now: u64) {
        if let (Some(at), Some(count)) = (self.reload_at, self.register)
            && at <= now
        {
            self.loaded = count;
            self.run = Run::Since(at);
            self.reload_at = None;
        }
    }

    /// The OUT pin.
    pub(super) fn out(&self, now: u64) -> bool {
        let count = u64::from(self.loaded);
        match (self.mode, self.elapsed(now)) {
            (0, None) => false,
            (0 | 1, Some(ticks)) => ticks >= count,
            (2 | 3, Some(_)) if !self.gate => true,
            (2, Some(ticks)) => ticks % self.period() != self.period() - 1,
            (3, Some(ticks)) => ticks % self.period() < self.period().div_ceil(2),
            (4 | 5, Some(ticks)) => ticks != count,
            _ => true,
        }
    }

    /// The first time after `after` at which OUT rises, if nobody touches the counter until then.
    pub(super) fn next_rise(&self, after: u64) -> Option<u64> {
        let Run::Since(start) = self.run else { return None };
        let at = |ticks: u128| start.checked_add(nanoseconds(ticks));
        if self.is_periodic() {
            let period = u128::from(self.period());
            let whole = u128::from(ticks(after.saturating_sub(start))) / period;
            return at((whole + 1) * period);
        }
        let strobe = u128::from(self.mode >= 4);
        at(u128::from(self.loaded) + strobe).filter(|&rise| rise > after)
    }

    /// What the counting element holds.
    fn value(&self, now: u64) -> u16 {
        let Some(ticks) = self.elapsed(now) else { return 0 };
        let modulus: u64 = if self.bcd { 10_000 } else { 65_536 };
        let count = u64::from(self.loaded);
        let value = match self.mode {
            2 => self.period() - ticks % self.period(),
            3 => {
                // Counts down by two; an odd count is loaded less one, and its high half is one clock longer.
                let (period, phase) = (self.period(), ticks % self.period());
                let half = period.div_ceil(2);
                (period & !1) - 2 * if phase < half { phase } else { phase - half }
            }
            _ => (count + modulus - ticks % modulus) % modulus,
        } % modulus;
        if self.bcd {
            (0..4).fold(0, |bcd, digit| {
                bcd | ((value / 10_u64.pow(digit) % 10) as u16) << (4 * digit)
            })
        } else {
            value as u16
        }
    }

    /// A control word for this counter (not a latch command).
    pub(super) fn control(&mut self, word: u8) {
        let gate = self.gate;
        *self = Self::new(gate);
        self.mode = match word >> 1 & 7 {
            mode @ 6..=7 => mode - 4,
            mode => mode,
        };
        self.bytes = match word >> 4 & 3 {
            1 => Bytes::Low,
            2 => Bytes::High,
            _ => Bytes::Both,
        };
        self.bcd = word & 1 != 0;
    }

    /// The counter latch command; a latch that was not read yet stays.
    pub(super) fn latch(&mut self, now: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.value(now));
        }
    }

    /// The read-back command's status latch.
    pub(super) fn latch_status(&mut self, now: u64) {
        if self.latched_status.is_some() {
            return;
        }
        let rw = match self.bytes {
            Bytes::Low => 1,
            Bytes::High => 2,
            Bytes::Both => 3,
        };
        // Null count: the count register holds nothing that the counting element has been loaded with.
        let null = self.register != Some(self.loaded) || self.reload_at.is_some() || self.run == Run::Idle;
        self.latched_status =
            Some(u8::from(self.out(now)) << 7 | u8::from(null) << 6 | rw << 4 | self.mode << 1 | u8::from(self.bcd));
    }

    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.value(now)).to_le_bytes();
        match self.bytes {
            Bytes::Low => {
                self.latched = None;
                low
            }
            Bytes::High => {
                self.latched = None;
                high
            }
            Bytes::Both if std::mem::take(&mut self.high_next) => {
                self.latched = None;
                high
            }
            Bytes::Both => {
                self.high_next = true;
                low
            }
        }
    }

    pub(super) fn write(&mut self, value: u8, now: u64) {
        match (self.bytes, self.low_byte.take()) {
            (Bytes::Low, _) => self.load(u16::from(value), now),
            (Bytes::High, _) => self.load(u16::from(value) << 8, now),
            (Bytes::Both, Some(low)) => self.load(u16::from_le_bytes([low, value]), now),
            (Bytes::Both, None) => {
                self.low_byte = Some(value);
                if self.mode == 0 {
                    // "Writing the first byte disables counting. OUT is set low immediately."
                    self.run = Run::Idle;
                }
            }
        }
    }

    /// A whole count was written.
    fn load(&mut self, raw: u16, now: u64) {
        let count = if self.bcd {
            let digits = (0..4).fold(0, |sum, digit| {
                sum + u32::from(raw >> (4 * digit) & 15) * 10_u32.pow(digit)
            });
            if digits == 0 { 10_000 } else { digits }
        } else if raw == 0 {
            65_536
        } else {
            u32::from(raw)
        };
        self.register = Some(count);
        if self.is_triggered() {
            return;
        }
        if self.is_periodic() && self.run != Run::Idle {
            // "The current counting sequence is not affected": taken over at the end of the period, or by the gate.
            self.reload_at = self.next_rise(now);
        } else {
            self.start(count, now);
        }
    }

    fn start(&mut self, count: u32, now: u64) {
        self.loaded = count;
        self.reload_at = None;
        self.run = if self.gate || self.is_triggered() {
            Run::Since(now)
        } else {
            Run::Held(0)
        };
    }

    /// The GATE pin.
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        if self.gate == gate {
            return;
        }
        self.gate = gate;
        match (gate, self.register) {
            (true, Some(count)) if self.is_triggered() || (self.is_periodic() && self.run != Run::Idle) => {
                self.start(count, now);
            }
            (true, _) => {
                if let Run::Held(ticks) = self.run {
                    self.run = Run::Since(now.saturating_sub(nanoseconds(u128::from(ticks))));
                }
            }
            (false, _) => {
                if !self.is_triggered()
                    && let Some(ticks) = self.elapsed(now)
                {
                    self.run = Run::Held(ticks);
                    self.reload_at = None;
                }
            }
        }
    }

    pub(super) fn gate(&self) -> bool {
        self.gate
    }

    /// Whether a deserialized state is one that this can get into, as far as safety depends on it.
    pub(super) fn is_sound(&self) -> bool {
        let counts = 1..=65_536;
        self.mode <= 5 && counts.contains(&self.loaded) && self.register.is_none_or(|count| counts.contains(&count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_states_are_known() {
        let new = || Channel::new(true);
        assert!(new().is_sound());
        for bad in [
            Channel { mode: 6, ..new() },
            Channel { loaded: 0, ..new() },
            Channel {
                loaded: 65_537,
                ..new()
            },
            Channel {
                register: Some(0),
                ..new()
            },
        ] {
            assert!(!bad.is_sound());
        }
    }
}
