//! A question to the arbiter, asked until it is answered.

use super::Record;
use crate::quantity::SessionTime;

/// A compare-and-set that was begun. It stays the same until it is won or lost: after an unknown verdict the record may be
/// the new one already, which only the same question can tell.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) expected: Record,
    pub(super) new: Record,
    /// When to ask; none while an answer is awaited.
    at: Option<SessionTime>,
}

impl Question {
    /// To be asked at `at`.
    pub(super) fn new(expected: Record, new: Record, at: SessionTime) -> Self {
        Self {
            expected,
            new,
            at: Some(at),
        }
    }

    /// When it wants to be asked.
    pub(super) fn at(&self) -> Option<SessionTime> {
        self.at
    }

    /// Whether an answer is awaited. A verdict at any other time is of no question.
    pub(super) fn is_asked(&self) -> bool {
        self.at.is_none()
    }

    /// Not answered: to be asked again at `at`.
    pub(super) fn put_off(&mut self, at: SessionTime) {
        self.at = Some(at);
    }

    /// Whether it is to be asked at `now`; then its answer is awaited.
    pub(super) fn ask(&mut self, now: SessionTime) -> bool {
        let due = self.at.is_some_and(|at| now >= at);
        if due {
            self.at = None;
        }
        due
    }
}
