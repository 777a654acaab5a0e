//! A position in one recording: a stop, a guest time, or the end. What else people type for one is a [`crate::place`].

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use lockstep_proto::quantity::StopNumber;
use thiserror::Error;

/// A position in a recording: `1234` is natural stop 1234, `12.5s` a guest time (`ns`, `us`, `ms`, `s`, `m`, `h`), `end`
/// the last stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// A natural stop.
    Stop(StopNumber),
    /// Guest time, in nanoseconds since the machine was made.
    Time(u64),
    /// Wherever the log ends.
    End,
}

/// Why a text is no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PositionError {
    /// It has not the form of one.
    #[error(
        "a position is a stop (`1234`), a guest time with its unit (`12.5s`; ns, us, ms, s, m or h), a time of the calendar \
         (`2026-11-28T14:03:20.5Z`, `14:03:20`), a time before the end (`-30s`), or `end`"
    )]
    Form,
    /// The number has no room in 64 bits.
    #[error("this is beyond any recording: stops and nanoseconds have 64 bits")]
    TooLarge,
}

/// Units of time and their nanoseconds. Where one ends with another's letters, it comes first.
const UNITS: [(&str, u64); 6] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3600 * 1_000_000_000),
];

impl Position {
    /// How the place at `stop` and `guest_ns` lies to this position: before, at or after it. Every place lies before the
    /// end.
    pub fn order_of(self, stop: StopNumber, guest_ns: u64) -> Ordering {
        match self {
            Self::Stop(at) => stop.cmp(&at),
            Self::Time(at) => guest_ns.cmp(&at),
            Self::End => Ordering::Less,
        }
    }
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        if text == "end" {
            return Ok(Self::End);
        }
        for (unit, scale) in UNITS {
            if let Some(number) = text.strip_suffix(unit) {
                return nanoseconds(number, scale).map(Self::Time);
            }
        }
        whole(text).map(|number| Self::Stop(StopNumber::new(number)))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop(stop) => write!(f, "stop {stop}"),
            Self::Time(ns) => {
                let fraction = format!("{:09}", ns % 1_000_000_000);
                let fraction = fraction.trim_end_matches('0');
                let point = if fraction.is_empty() { "" } else { "." };
                write!(f, "{}{point}{fraction}s", ns / 1_000_000_000)
            }
            Self::End => f.write_str("end"),
        }
    }
}

/// Digits and nothing else: `u64::from_str` takes a sign too.
fn whole(digits: &str) -> Result<u64, PositionError> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(PositionError::Form);
    }
    digits.parse().map_err(|_| PositionError::TooLarge)
}

/// `12.5` of a unit with `scale` nanoseconds, exactly. What is finer than a nanosecond is refused.
fn nanoseconds(number: &str, scale: u64) -> Result<u64, PositionError> {
    let (integer, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let integer = whole(integer)?.checked_mul(scale).ok_or(PositionError::TooLarge)?;
    let digits = fraction.trim_end_matches('0');
    if digits.is_empty() {
        whole(fraction)?;
        return Ok(integer);
    }
    let parts = u128::from(whole(digits)?) * u128::from(scale);
    let digits = u32::try_from(digits.len()).map_err(|_| PositionError::Form)?;
    let ten = 10u128.checked_pow(digits).ok_or(PositionError::Form)?;
    if !parts.is_multiple_of(ten) {
        return Err(PositionError::Form);
    }
    // Less than one unit, so it fits.
    integer.checked_add((parts / ten) as u64).ok_or(PositionError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOP: StopNumber = StopNumber::new(4);

    fn at(stop: u64) -> Position {
        Position::Stop(StopNumber::new(stop))
    }

    #[test]
    fn stops_times_and_the_end() {
        let good = [
            ("0", at(0)),
            ("1234", at(1234)),
            ("18446744073709551615", at(u64::MAX)),
            ("end", Position::End),
            ("0s", Position::Time(0)),
            ("12.5s", Position::Time(12_500_000_000)),
            ("1.000000001s", Position::Time(1_000_000_001)),
            ("1.50000000000000s", Position::Time(1_500_000_000)),
            ("250ms", Position::Time(250_000_000)),
            ("1.5us", Position::Time(1_500)),
            ("7ns", Position::Time(7)),
            ("2m", Position::Time(120_000_000_000)),
            ("0.5h", Position::Time(1_800_000_000_000)),
            ("0.3m", Position::Time(18_000_000_000)),
        ];
        for (text, position) in good {
            assert_eq!(text.parse(), Ok(position), "{text}");
        }
    }

    #[test]
    fn what_is_no_position_is_refused() {
        let form = [
            "",
            " 1",
            "+1",
            "-1",
            "1e9",
            "0x10",
            "End",
            "s",
            ".5s",
            "5.s",
            "1.5",
            "-1s",
            "1.-5s",
            "1.5 s",
            "1ks",
            "NaNs",
            "1.5ns",
            "0.0000000001s",
            "1..5s",
            "1.2.3s",
        ];
        for text in form {
            assert_eq!(text.parse::<Position>(), Err(PositionError::Form), "{text}");
        }
        for text in [
            "18446744073709551616",
            "18446744073.709551616s",
            "99999999999h",
            "18446744073709551616ns",
        ] {
            assert_eq!(text.parse::<Position>(), Err(PositionError::TooLarge), "{text}");
        }
    }

    #[test]
    fn what_is_shown_parses_to_the_same() {
        for position in [0, 1, 12_500_000_000, 60_000_000_000, u64::MAX].map(Position::Time) {
            assert_eq!(position.to_string().parse(), Ok(position));
        }
        assert_eq!(Position::Time(12_500_000_000).to_string(), "12.5s");
        assert_eq!(Position::Time(2_000_000_000).to_string(), "2s");
    }

    #[test]
    fn places_lie_before_at_or_after_a_position() {
        assert_eq!(at(5).order_of(STOP, 100), Ordering::Less);
        assert_eq!(at(5).order_of(STOP.plus(1), 100), Ordering::Equal);
        assert_eq!(Position::Time(5).order_of(STOP, 100), Ordering::Greater);
        assert_eq!(Position::End.order_of(StopNumber::NO_LIMIT, u64::MAX), Ordering::Less);
    }
}
