//! What the running program is: its version, and the newest revision of the device model that it has.
//!
//! Each program says it first of all ([`this_program!`](crate::this_program)), by what its own few lines were told when they were
//! compiled. So another version is no reason to compile anything else again.

use std::ops::RangeInclusive;
use std::sync::OnceLock;

use crate::model::NEWEST_REVISION;

static PROGRAM: OnceLock<Program> = OnceLock::new();

/// What a program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    version: &'static str,
    newest_revision: u32,
}

impl Program {
    /// One that was told LOCKSTEP_VERSION and LOCKSTEP_NEWEST_REVISION when it was compiled: its version, else the workspace's;
    /// and the revision of the device model after which it knows none, as an older program. With that an upgrade that brings a
    /// revision is tried. An empty variable is as good as none.
    #[must_use]
    pub const fn of(version: Option<&'static str>, newest_revision: Option<&str>) -> Self {
        let version = match version {
            Some(version) if !version.is_empty() => version,
            _ => env!("CARGO_PKG_VERSION"),
        };
        let newest_revision = match newest_revision {
            Some(told) if !told.is_empty() => revision(told.as_bytes()),
            _ => NEWEST_REVISION,
        };
        Self {
            version,
            newest_revision,
        }
    }

    /// It is the one that runs.
    ///
    /// # Panics
    ///
    /// Where something has asked already what it is.
    pub fn begin(self) {
        assert!(PROGRAM.set(self).is_ok(), "a program says first of all what it is");
    }
}

/// Says what the program is whose code this stands in.
#[macro_export]
macro_rules! this_program {
    () => {{
        const PROGRAM: $crate::program::Program = $crate::program::Program::of(
            ::core::option_env!("LOCKSTEP_VERSION"),
            ::core::option_env!("LOCKSTEP_NEWEST_REVISION"),
        );
        PROGRAM.begin();
    }};
}

/// A test, a bench: nothing was said.
fn program() -> Program {
    *PROGRAM.get_or_init(|| Program::of(None, None))
}

/// The version, as Debian's packages have them.
#[must_use]
pub fn version() -> &'static str {
    program().version
}

/// The newest revision of the device model that it has: what a machine gets that is booted anew.
#[must_use]
pub fn newest_revision() -> u32 {
    program().newest_revision
}

/// The revisions that it has.
#[must_use]
pub fn model_revisions() -> RangeInclusive<u32> {
    1..=newest_revision()
}

/// The revision that these digits say.
const fn revision(digits: &[u8]) -> u32 {
    let (mut number, mut at) = (0, 0);
    while at < digits.len() {
        assert!(
            digits[at].is_ascii_digit() && at < 4,
            "LOCKSTEP_NEWEST_REVISION is not a revision's number"
        );
        number = number * 10 + (digits[at] - b'0') as u32;
        at += 1;
    }
    assert!(
        number >= 1 && number <= NEWEST_REVISION,
        "this source has no revision LOCKSTEP_NEWEST_REVISION"
    );
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_told_what_it_is() {
        let of = |version, revision| {
            let Program {
                version,
                newest_revision,
            } = Program::of(version, revision);
            (version, newest_revision)
        };
        let own = env!("CARGO_PKG_VERSION");
        assert_eq!(of(None, None), (own, NEWEST_REVISION));
        assert_eq!(of(Some(""), Some("")), (own, NEWEST_REVISION));
        assert_eq!(of(Some("0.2.0~test"), Some("1")), ("0.2.0~test", 1));
        let next = (NEWEST_REVISION + 1).to_string();
        for wrong in ["0", &next, "two", "-1", "11111111111"] {
            assert!(std::panic::catch_unwind(|| of(None, Some(wrong))).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_was_asked_for_is_not_said_again() {
        assert_eq!(version(), env!("CARGO_PKG_VERSION"));
        assert_eq!(model_revisions(), 1..=NEWEST_REVISION);
        assert!(std::panic::catch_unwind(|| Program::of(None, Some("1")).begin()).is_err());
        assert_eq!(newest_revision(), NEWEST_REVISION);
    }
}
