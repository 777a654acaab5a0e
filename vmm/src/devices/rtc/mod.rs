//! The CMOS clock: an MC146818 with a PC's century register and battery-backed bytes, at ports 0x70 and 0x71.
//!
//! Source: Motorola MC146818 data sheet (ADI-856); the century register 0x32 as in the IBM PC/AT technical reference.
//!
//! The clock is a function of the guest's time: it shows `base + now`. Its seconds begin with the guest's seconds whatever
//! the guest sets, so setting it is exact to a second. While register B's SET bit is on, the time registers are plain
//! bytes; when it goes off they become the time. The day of the week follows from the date. The divider bits of register A
//! are kept; values other than 010 stop the periodic interrupt only.

mod calendar;

use serde::{Deserialize, Serialize};

use super::line::Line;
use calendar::{DAY, DateTime};

const NS: u64 = 1_000_000_000;
/// How long before the end of a second UIP is set: t_BUC, 244 us.
const UPDATE_NS: u64 = 244_000;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
/// The registers that show the time.
const TIME: [u8; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY_OF_MONTH, MONTH, YEAR, CENTURY];

/// Register A: update in progress.
const UIP: u8 = 0x80;
/// Register B: halt updates; periodic, alarm and update-ended interrupt enables; binary; 24 hours.
const SET: u8 = 0x80;
const PIE: u8 = 0x40;
const AIE: u8 = 0x20;
const UIE: u8 = 0x10;
const BINARY: u8 = 0x04;
const HOURS_24: u8 = 0x02;
/// Register C: an enabled interrupt is pending. The flags have the bits of their enables.
const IRQF: u8 = 0x80;
/// Register D: valid RAM and time.
const VRT: u8 = 0x80;
/// An alarm byte from 0xc0 up matches everything.
const DONT_CARE: u8 = 0xc0;
/// The hour's PM bit in 12-hour mode.
const PM: u8 = 0x80;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rtc {
    index: u8,
    /// All 128 bytes: alarm, registers A and B, battery-backed bytes; the time registers only while SET is on.
    bytes: Vec<u8>,
    /// Register C's flags, without IRQF.
    flags: u8,
    /// Seconds since 1970 at guest time zero, by this clock.
    base: i64,
    /// Interrupt causes up to this time are in `flags` already.
    seen: u64,
    pub(super) line: Line,
}

impl Rtc {
    pub(super) fn new(base: i64) -> Self {
        let mut bytes = vec![0; 128];
        // 32.768 kHz time base, 1024 Hz periodic rate, BCD, 24 hours: what a PC's firmware leaves.
        bytes[usize::from(REGISTER_A)] = 0x26;
        bytes[usize::from(REGISTER_B)] = HOURS_24;
        Self {
            index: 0,
            bytes,
            flags: 0,
            base,
            seen: 0,
            line: Line::default(),
        }
    }

    /// The time at guest time zero, in seconds since 1970.
    pub(super) fn set_base(&mut self, base: i64) {
        self.base = base;
    }

    fn byte(&self, register: u8) -> u8 {
        self.bytes[usize::from(register & 0x7f)]
    }

    fn is_set(&self, bit: u8) -> bool {
        self.byte(REGISTER_B) & bit != 0
    }

    fn encode(&self, value: u8) -> u8 {
        if self.is_set(BINARY) {
            value
        } else {
            ((value / 10 % 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, byte: u8) -> u8 {
        if self.is_set(BINARY) {
            byte
        } else {
            (byte >> 4) * 10 + (byte & 15)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.is_set(HOURS_24) {
            return self.encode(hour);
        }
        let twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, byte: u8) -> u8 {
        if self.is_set(HOURS_24) {
            return self.decode(byte);
        }
        self.decode(byte & !PM) % 12 + if byte & PM != 0 { 12 } else { 0 }
    }

    fn seconds(&self, now: u64) -> i64 {
        self.base.saturating_add_unsigned(now / NS)
    }

    /// A time register as it shows `time`.
    fn show(&self, register: u8, time: &DateTime) -> u8 {
        match register {
            SECONDS => self.encode(time.second),
            MINUTES => self.encode(time.minute),
            HOURS => self.encode_hour(time.hour),
            WEEKDAY => self.encode(time.weekday),
            DAY_OF_MONTH => self.encode(time.day),
            MONTH => self.encode(time.month),
            YEAR => self.encode(time.year.rem_euclid(100) as u8),
            _ => self.encode((time.year.div_euclid(100).rem_euclid(100)) as u8),
        }
    }

    /// Copies the running time into the time registers.
    fn freeze(&mut self, now: u64) {
        let time = DateTime::from_seconds(self.seconds(now));
        for register in TIME {
            self.bytes[usize::from(register)] = self.show(register, &time);
        }
    }

    /// Makes the time registers' contents the running time.
    fn thaw(&mut self, now: u64) {
        let time = DateTime {
            year: i64::from(self.decode(self.byte(CENTURY))) * 100 + i64::from(self.decode(self.byte(YEAR))),
            month: self.decode(self.byte(MONTH)),
            day: self.decode(self.byte(DAY_OF_MONTH)),
            weekday: 0,
            hour: self.decode_hour(self.byte(HOURS)),
            minute: self.decode(self.byte(MINUTES)),
            second: self.decode(self.byte(SECONDS)),
        };
        self.base = time.seconds().saturating_sub_unsigned(now / NS);
        for register in TIME {
            self.bytes[usize::from(register)] = 0;
        }
    }

    /// The periodic interrupt's rate: every so many clocks of 32,768 Hz (data sheet, table 5).
    fn period(&self) -> Option<u64> {
        let a = self.byte(REGISTER_A);
        match a & 15 {
            _ if a & 0x70 != 0x20 => None,
            0 => None,
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// When the periodic flag is set next after `after`.
    fn next_periodic(&self, after: u64) -> Option<u64> {
        let period = u128::from(self.period()?);
        let clocks = u128::from(after) * 32_768 / u128::from(NS);
        let next = (clocks / period + 1) * period;
        u64::try_from((next * u128::from(NS)).div_ceil(32_768)).ok()
    }

    /// When the time is updated next after `after`.
    fn next_update(&self, after: u64) -> Option<u64> {
        (!self.is_set(SET)).then(|| (after / NS + 1).checked_mul(NS)).flatten()
    }

    /// When the alarm matches an update next after `after`.
    fn next_alarm(&self, after: u64) -> Option<u64> {
        let first = self.next_update(after)?;
        let of_day = self.seconds(first).rem_euclid(DAY) as u32;
        let wanted = |register: u8, decoded: u8| (self.byte(register) < DONT_CARE).then_some(u32::from(decoded));
        // In 12-hour mode PM hours lie from 0x81 to 0x92: below the don't-care codes.
        let hour = wanted(HOURS_ALARM, self.decode_hour(self.byte(HOURS_ALARM)));
        let minute = wanted(MINUTES_ALARM, self.decode(self.byte(MINUTES_ALARM)));
        let second = wanted(SECONDS_ALARM, self.decode(self.byte(SECONDS_ALARM)));
        let matching = match_from(of_day, hour, minute, second)
            .or_else(|| match_from(0, hour, minute, second).map(|at| at + DAY as u32))?;
        first.checked_add(u64::from(matching - of_day) * NS)
    }

    /// Sets the flags of what happened by `now`, and drives the line.
    pub(super) fn advance(&mut self, now: u64) {
        let happened = |at: Option<u64>| at.is_some_and(|at| at <= now);
        for (flag, at) in [
            (PIE, self.next_periodic(self.seen)),
            (UIE, self.next_update(self.seen)),
            (AIE, self.next_alarm(self.seen)),
        ] {
            if happened(at) {
                self.flags |= flag;
            }
        }
        self.seen = self.seen.max(now);
        self.drive();
    }

    /// When an enabled interrupt raises the line next, if the guest does not touch the clock.
    pub(super) fn deadline(&self) -> Option<u64> {
        if self.line.is_high() {
            return None;
        }
        let when = |enable: u8, at: Option<u64>| at.filter(|_| self.is_set(enable));
        [
            when(PIE, self.next_periodic(self.seen)),
            when(UIE, self.next_update(self.seen)),
            when(AIE, self.next_alarm(self.seen)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn drive(&mut self) {
        let pending = self.flags & self.byte(REGISTER_B) & (PIE | AIE | UIE) != 0;
        self.line.set(pending);
    }

    /// Port 0x70: bits 6:0 choose a byte (bit 7, the NMI mask, has nothing to mask).
    pub(super) fn select(&mut self, value: u8) {
        self.index = value & 0x7f;
    }

    /// Port 0x71; `advance(now)` was called.
    pub(super) fn read(&mut self, now: u64) -> u8 {
        match self.index {
            REGISTER_A => {
                let updating = !self.is_set(SET) && now % NS >= NS - UPDATE_NS;
                self.byte(REGISTER_A) | if updating { UIP } else { 0 }
            }
            REGISTER_C => {
                let irqf = if self.line.is_high() { IRQF } else { 0 };
                let flags = std::mem::take(&mut self.flags);
                self.drive();
                flags | irqf
            }
            REGISTER_D => VRT,
            register if TIME.contains(&register) && !self.is_set(SET) => {
                self.show(register, &DateTime::from_seconds(self.seconds(now)))
            }
            register => self.byte(register),
        }
    }

    /// Port 0x71; `advance(now)` was called.
    pub(super) fn write(&mut self, value: u8, now: u64) {
        let index = usize::from(self.index);
        match self.index {
            REGISTER_A => self.bytes[index] = value & !UIP,
            REGISTER_B => {
                let was_set = self.is_set(SET);
                if value & SET != 0 && !was_set {
                    self.freeze(now);
                }
                // "SET going high clears UIE."
                self.bytes[index] = if value & SET != 0 { value & !UIE } else { value };
                if value & SET == 0 && was_set {
                    self.thaw(now);
                }
                self.drive();
            }
            REGISTER_C | REGISTER_D => {}
            register if TIME.contains(&register) && !self.is_set(SET) => {
                self.freeze(now);
                self.bytes[index] = value;
                self.thaw(now);
            }
            _ => self.bytes[index] = value,
        }
    }

    /// Whether a deserialized state is one that this can get into, as far as safety depends on it.
    pub(super) fn is_sound(&self) -> bool {
        self.bytes.len() == 128 && self.index < 128 && self.flags & !(PIE | AIE | UIE) == 0 && self.line.is_settled()
    }
}

/// The first second of a day, not before `from`, whose hour, minute and second are the ones wanted (`None`: any).
fn match_from(from: u32, hour: Option<u32>, minute: Option<u32>, second: Option<u32>) -> Option<u32> {
    let candidates = |wanted: Option<u32>, end: u32| match wanted {
        Some(value) if value < end => value..value + 1,
        Some(_) => 0..0,
        None => 0..end,
    };
    for h in candidates(hour, 24).map(|h| h * 3_600).filter(|h| h + 3_600 > from) {
        for m in candidates(minute, 60).map(|m| h + m * 60).filter(|m| m + 60 > from) {
            if let Some(found) = candidates(second, 60).map(|s| m + s).find(|&s| s >= from) {
                return Some(found);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests;
