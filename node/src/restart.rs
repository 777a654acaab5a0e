//! Whether a machine whose guest has ended is booted anew, and how often in how long.
//!
//! Each boot is another process' ([`again`](crate::cli::again)): what was counted is handed on as a text.

use std::fmt;
use std::time::Duration;

use lockstep_proto::end::Reason;
use lockstep_proto::quantity::SessionTime;
use lockstep_vmm::machine::Machine;

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

/// How a guest has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestEnd {
    /// In which way.
    pub how: Reason,
    /// Its kernel had said that it panicked: a reset is what comes of that.
    pub panicked: bool,
}

impl GuestEnd {
    /// The end of the guest of `machine`.
    pub fn of(machine: &Machine, how: Reason) -> Self {
        Self {
            how,
            panicked: machine.has_panicked(),
        }
    }
}

/// What a kind of reset does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// It ends the machine, as a power-off.
    End,
    /// The machine is booted anew.
    Restart,
    /// The machine is stopped: people have to look at it.
    Stop,
}

/// What becomes of a machine whose guest has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    End,
    /// It is booted anew.
    Restart,
    /// People have to look at it.
    Stopped(Why),
}

/// Why a machine is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was booted anew too often.
    TooOften,
    /// Its kernel panicked, and that is to stop it.
    Panic,
}

impl Why {
    /// The reason, as a status has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooOften => "restarts-too-often",
            Self::Panic => "panic",
        }
    }
}

/// The boots after a reset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restarts {
    /// All of them.
    total: u64,
    /// When the newest were, in whole seconds of session time, oldest first.
    newest: Vec<u64>,
}

/// What a node does when its guest ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What a reset does ...
    pub on_reset: Does,
    /// ... and one after a panic.
    pub on_panic: Does,
    /// How often the machine is booted anew.
    pub limit: Limit,
    /// How often it was.
    pub so_far: Restarts,
    /// An operator had suspended its protection when it was.
    pub suspended: bool,
}

impl Policy {
    /// What becomes of a machine that has ended in this way at `now`.
    pub fn next(&self, end: GuestEnd, now: SessionTime) -> Next {
        let does = match end {
            GuestEnd {
                how: Reason::Reset,
                panicked: true,
            } => self.on_panic,
            GuestEnd { how: Reason::Reset, .. } => self.on_reset,
            _ => Does::End,
        };
        let is_one_more = self.so_far.within(self.limit.within, now).count() < self.limit.most.min(MOST) as usize;
        match does {
            Does::End => Next::End,
            Does::Stop => Next::Stopped(Why::Panic),
            Does::Restart if is_one_more => Next::Restart,
            Does::Restart => Next::Stopped(Why::TooOften),
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
    pub fn and_one(mut self, now: SessionTime) -> Self {
        self.total = self.total.saturating_add(1);
        self.newest.push(seconds(now));
        let superfluous = self.newest.len().saturating_sub(MOST as usize);
        self.newest.drain(..superfluous);
        self
    }

    fn within(&self, time: Duration, now: SessionTime) -> impl Iterator<Item = &u64> {
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

fn seconds(at: SessionTime) -> u64 {
    at.ns() / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit {
        most: 3,
        within: Duration::from_secs(600),
    };

    fn at(seconds: u64) -> SessionTime {
        SessionTime::from_ns(seconds * 1_000_000_000)
    }

    fn after(times: &[u64]) -> Restarts {
        let times = times.iter();
        times.fold(Restarts::default(), |so_far, time| so_far.and_one(at(*time)))
    }

    fn ended(how: Reason) -> GuestEnd {
        GuestEnd { how, panicked: false }
    }

    #[test]
    fn what_becomes_of_a_machine() {
        let many: Vec<u64> = (0..u64::from(MOST)).collect();
        let (too_often, reset) = (Next::Stopped(Why::TooOften), Reason::Reset);
        let most = |most| Limit { most, ..LIMIT };
        for (limit, so_far, how, now, next) in [
            (LIMIT, &[][..], Reason::PoweredOff, 0, Next::End),
            (LIMIT, &[], Reason::Halted, 0, Next::End),
            (LIMIT, &[], Reason::Quit, 0, Next::End),
            (LIMIT, &[], reset, 0, Next::Restart),
            (LIMIT, &[10, 20], reset, 20, Next::Restart),
            (LIMIT, &[10, 20, 30], reset, 30, too_often),
            (LIMIT, &[10, 20, 30], Reason::PoweredOff, 30, Next::End),
            // The first one is forgotten after the time, not before.
            (LIMIT, &[10, 20, 30], reset, 609, too_often),
            (LIMIT, &[10, 20, 30], reset, 610, Next::Restart),
            // Those of a boot of the host before this one.
            (LIMIT, &[10, 20, 30], reset, 9, Next::Restart),
            (most(0), &[], reset, 0, too_often),
            (most(u32::MAX), &many, reset, 100, too_often),
        ] {
            let policy = Policy {
                on_reset: Does::Restart,
                on_panic: Does::End,
                limit,
                so_far: after(so_far),
                suspended: false,
            };
            assert_eq!(policy.next(ended(how), at(now)), next, "{policy:?}, {how:?} at {now}");
        }
    }

    #[test]
    fn a_panic_has_a_policy_of_its_own() {
        for (on_reset, on_panic, restarts, after_reset, after_panic) in [
            (Does::Restart, Does::Restart, &[][..], Next::Restart, Next::Restart),
            (Does::Restart, Does::Stop, &[], Next::Restart, Next::Stopped(Why::Panic)),
            (Does::End, Does::Restart, &[], Next::End, Next::Restart),
            (Does::End, Does::Stop, &[], Next::End, Next::Stopped(Why::Panic)),
            (Does::End, Does::End, &[], Next::End, Next::End),
            (
                Does::End,
                Does::Restart,
                &[1, 2, 3],
                Next::End,
                Next::Stopped(Why::TooOften),
            ),
            (
                Does::Restart,
                Does::Stop,
                &[1, 2, 3],
                Next::Stopped(Why::TooOften),
                Next::Stopped(Why::Panic),
            ),
        ] {
            let policy = Policy {
                on_reset,
                on_panic,
                limit: LIMIT,
                so_far: after(restarts),
                suspended: false,
            };
            let panicked = |how| GuestEnd { how, panicked: true };
            assert_eq!(policy.next(ended(Reason::Reset), at(3)), after_reset, "{policy:?}");
            assert_eq!(policy.next(panicked(Reason::Reset), at(3)), after_panic, "{policy:?}");
            // A kernel that halts or powers off where it has panicked has done so.
            assert_eq!(
                policy.next(panicked(Reason::PoweredOff), at(3)),
                Next::End,
                "{policy:?}"
            );
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
