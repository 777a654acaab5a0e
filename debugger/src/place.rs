//! A place in time as people type it: a [`Position`], or a time of the calendar.
//!
//! Which position a time of the calendar is, the recording tells ([`crate::parts`]).

use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::{DateTime, Time};

use crate::position::{Position, PositionError};

/// The help of an option that takes a place, which is there for this.
pub fn help(what: &str) -> String {
    format!(
        "{what}: a stop (`1234`), a guest time (`12.5s`), a time of the calendar (`2026-11-28T14:03:20.5Z`, `14:03:20`), a time \
         before the end (`-30s`), or `end`"
    )
}

/// A place as it was typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Needs no calendar.
    Position(Position),
    /// `2026-11-28T14:03:20.5Z`, with the offset from UTC.
    Instant(Timestamp),
    /// `2026-11-28T14:03:20.5`: of this host's time zone.
    Local(DateTime),
    /// `14:03:20`: of this host's time zone, on the day of the recording.
    TimeOfDay(Time),
    /// `-30s`: so many nanoseconds before the end.
    BeforeEnd(u64),
}

impl FromStr for Place {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        if let Some(length) = text.strip_prefix('-') {
            return match length.parse()? {
                Position::Time(ns) => Ok(Self::BeforeEnd(ns)),
                _ => Err(PositionError::Form),
            };
        }
        if !text.contains(':') {
            return text.parse().map(Self::Position);
        }
        // What follows the time in brackets (a zone's name) is no RFC 3339.
        if !text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b"-+:.TtZz ".contains(&byte))
        {
            return Err(PositionError::Form);
        }
        let place = match (text.parse(), text.parse(), text.contains(['-', 'T', 't'])) {
            (Ok(instant), ..) => Self::Instant(instant),
            (_, Ok(local), true) => Self::Local(local),
            (.., false) => Self::TimeOfDay(text.parse().map_err(|_| PositionError::Form)?),
            _ => return Err(PositionError::Form),
        };
        Ok(place)
    }
}

impl From<Position> for Place {
    fn from(position: Position) -> Self {
        Self::Position(position)
    }
}

#[cfg(test)]
mod tests {
    use lockstep_proto::quantity::StopNumber;

    use super::*;

    #[test]
    fn what_is_typed_is_read() {
        let instant = |text: &str| Place::Instant(text.parse().expect("a time"));
        for (text, place) in [
            ("1234", Position::Stop(StopNumber::new(1234)).into()),
            ("12.5s", Position::Time(12_500_000_000).into()),
            ("end", Position::End.into()),
            ("-30s", Place::BeforeEnd(30_000_000_000)),
            ("-1.5m", Place::BeforeEnd(90_000_000_000)),
            ("-1h", Place::BeforeEnd(3_600_000_000_000)),
            ("2026-11-28T14:03:20.5Z", instant("2026-11-28T14:03:20.5Z")),
            ("2026-11-28t14:03:20z", instant("2026-11-28T14:03:20Z")),
            (
                "2026-11-28 14:03:20.000000001Z",
                instant("2026-11-28T14:03:20.000000001Z"),
            ),
            ("2026-11-28T15:03:20+01:00", instant("2026-11-28T14:03:20Z")),
            ("2026-11-28T08:33:20.5-05:30", instant("2026-11-28T14:03:20.5Z")),
            (
                "2026-11-28T14:03:20.5",
                Place::Local(DateTime::constant(2026, 11, 28, 14, 3, 20, 500_000_000)),
            ),
            ("14:03:20", Place::TimeOfDay(Time::constant(14, 3, 20, 0))),
            ("14:03:20.5", Place::TimeOfDay(Time::constant(14, 3, 20, 500_000_000))),
            ("14:03", Place::TimeOfDay(Time::constant(14, 3, 0, 0))),
        ] {
            assert_eq!(text.parse(), Ok(place), "{text}");
        }
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for text in [
            "",
            "-",
            "-30",
            "-end",
            "--30s",
            "-1.5ns",
            "30",
            "14:",
            ":03",
            "14:03:20Z",
            "25:00:00",
            "14:61:00",
            "14:03:20.",
            "2026-02-30T00:00:00Z",
            "2026-11-28",
            "2026-11-28T14Z",
            "2026-11-28T14:03:20[Europe/Berlin]",
            "14:03:20 ",
            " 14:03:20",
            "2026-11-28T14:03:20+99:00",
            "20261128T14:03:20Z14:03",
            "14:03:20.0000000001",
            "2026-11-28T14:03:20Z\n",
        ] {
            let read = text.parse::<Place>();
            assert!(read.is_err() || text == "30", "{text:?} is {read:?}");
        }
        assert_eq!("-99999999999h".parse::<Place>(), Err(PositionError::TooLarge));
    }
}
