//! Whether a machine whose guest has ended is booted anew, and how often in how long.
//!
//! Each boot is another process' ([`again`](crate::cli::again)): what was counted is handed on as a text.

use std::fmt;
use std::time::Duration;

use lockstep_proto::end::Reason;
use lockstep_proto::session::Nanos;

/// Boots that are remembered one by one: more than that cannot be allowed within a time.
pub const MOST: u32 = 100;

/// How often a machine is booted anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// At most so many times, no more than [`MOST`] ...
    pub most: u32,
    /// ... within this time.
    pub within: Duration,
}

/// What becomes of a machine whose guest has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    End,
    /// It is booted anew.
    Restart,
    /// It would be, and was too often: people have to look at it.
    Stopped,
}

/// The boots after a reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restarts {
    /// All of them.
    total: u64,
    /// When the newest were, in seconds of `CLOCK_BOOTTIME`, oldest first.
    newest: Vec<u64>,
}

/// What a node does when its guest ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How often a reset boots the machine anew; `None`: never.
    pub limit: Option<Limit>,
    /// How often one has.
    pub so_far: Restarts,
}

impl Policy {
    /// What becomes of a machine that has ended in this way at `now`, of `CLOCK_BOOTTIME`.
    pub fn next(&self, how: Reason, now: Nanos) -> Next {
        let Some(limit) = self.limit.filter(|_| how == Reason::Reset) else {
            return Next::End;
        };
        if self.so_far.within(limit.within, now).count() < limit.most.min(MOST) as usize {
            Next::Restart
        } else {
            Next::Stopped
        }
    }
}

impl Restarts {
    /// How many there were.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// With one more, at `now`.
    #[must_use]
    pub fn and_one(mut self, now: Nanos) -> Self {
        self.total = self.total.saturating_add(1);
        self.newest.push(seconds(now));
        let superfluous = self.newest.len().saturating_sub(MOST as usize);
        self.newest.drain(..superfluous);
        self
    }

    fn within(&self, time: Duration, now: Nanos) -> impl Iterator<Item = &u64> {
        let now = seconds(now);
        // A clock that went back is another boot of the host: what was counted there is over.
        self.newest
            .iter()
            .filter(move |at| now.checked_sub(**at).is_some_and(|age| age < time.as_secs()))
    }

    /// Of a text that [`fmt::Display`] made; of anything else none.
    pub fn parse(text: &str) -> Self {
        let parts = text.split_once(':');
        let total = parts.and_then(|(total, _)| total.parse().ok());
        let newest = parts.map_or("", |(_, newest)| newest).split(',');
        let newest: Option<Vec<u64>> = newest.take(MOST as usize).map(|at| at.parse().ok()).collect();
        match (total, newest) {
            (Some(total), Some(newest)) => Self { total, newest },
            _ => Self::default(),
        }
    }
}

impl fmt::Display for Restarts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.total)?;
        for (index, at) in self.newest.iter().enumerate() {
            write!(f, "{}{at}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

fn seconds(ns: Nanos) -> u64 {
    ns / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit {
        most: 3,
        within: Duration::from_secs(600),
    };

    fn at(seconds: u64) -> Nanos {
        seconds * 1_000_000_000
    }

    fn after(times: &[u64]) -> Restarts {
        let times = times.iter();
        times.fold(Restarts::default(), |so_far, time| so_far.and_one(at(*time)))
    }

    #[test]
    fn what_becomes_of_a_machine() {
        let many: Vec<u64> = (0..u64::from(MOST)).collect();
        for (limit, so_far, how, now, next) in [
            (None, &[][..], Reason::Reset, 0, Next::End),
            (Some(LIMIT), &[], Reason::PoweredOff, 0, Next::End),
            (Some(LIMIT), &[], Reason::Halted, 0, Next::End),
            (Some(LIMIT), &[], Reason::Quit, 0, Next::End),
            (Some(LIMIT), &[], Reason::Reset, 0, Next::Restart),
            (Some(LIMIT), &[10, 20], Reason::Reset, 20, Next::Restart),
            (Some(LIMIT), &[10, 20, 30], Reason::Reset, 30, Next::Stopped),
            (Some(LIMIT), &[10, 20, 30], Reason::PoweredOff, 30, Next::End),
            // The first one is forgotten after the time, not before.
            (Some(LIMIT), &[10, 20, 30], Reason::Reset, 609, Next::Stopped),
            (Some(LIMIT), &[10, 20, 30], Reason::Reset, 610, Next::Restart),
            // Those of a boot of the host before this one.
            (Some(LIMIT), &[10, 20, 30], Reason::Reset, 9, Next::Restart),
            (Some(Limit { most: 0, ..LIMIT }), &[], Reason::Reset, 0, Next::Stopped),
            (
                Some(Limit {
                    most: u32::MAX,
                    ..LIMIT
                }),
                &many,
                Reason::Reset,
                100,
                Next::Stopped,
            ),
        ] {
            let policy = Policy {
                limit,
                so_far: after(so_far),
            };
            assert_eq!(policy.next(how, at(now)), next, "{policy:?}, {how:?} at {now}");
        }
    }

    #[test]
    fn what_was_counted_is_handed_on() {
        for times in [&[][..], &[7], &[7, 7, 900]] {
            let so_far = after(times);
            assert_eq!(Restarts::parse(&so_far.to_string()).newest, so_far.newest, "{so_far}");
            assert_eq!(Restarts::parse(&so_far.to_string()).total(), times.len() as u64);
        }
        let many = (0..1000).fold(Restarts::default(), |so_far, time| so_far.and_one(at(time)));
        assert_eq!((many.total(), many.newest.len()), (1000, MOST as usize));
        assert_eq!(many.newest.last(), Some(&999));
        assert_eq!(Restarts::parse(&many.to_string()), many);
        for text in ["", "x", "1", "1:x", "-1:2", "1:2,,3", "99999999999999999999:1"] {
            assert_eq!(Restarts::parse(text), Restarts::default(), "{text}");
        }
        let long = format!("5:{}", vec!["1"; 100_000].join(","));
        assert_eq!(Restarts::parse(&long).newest.len(), MOST as usize);
    }
}
