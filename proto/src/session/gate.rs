//! The output gate: effects wait in it until the log behind them is safe.

use std::collections::VecDeque;

use crate::quantity::LogPosition;

/// Effects in the order they were made, each with the position of the log that makes it safe to let it go.
#[derive(Debug)]
pub struct Gate<T> {
    waiting: VecDeque<(LogPosition, T)>,
    released: LogPosition,
}

impl<T> Default for Gate<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            released: LogPosition::START,
        }
    }
}

impl<T> Gate<T> {
    /// Keeps `effect`, all that one turn gave, until the log is safe up to `position`; each is larger than the one before.
    pub fn push(&mut self, position: LogPosition, effect: T) {
        // Out of order an effect would leave by the acknowledgement of another.
        assert!(
            self.waiting.back().is_none_or(|(last, _)| *last < position),
            "an effect at {position} is behind a later one"
        );
        self.waiting.push_back((position, effect));
    }

    /// The next effect that may go when the log is safe up to `limit`. Ask for the limit anew before each one.
    pub fn pop(&mut self, limit: LogPosition) -> Option<T> {
        if self.waiting.front()?.0 > limit {
            return None;
        }
        let (position, effect) = self.waiting.pop_front()?;
        self.released = position;
        Some(effect)
    }

    /// Position up to which nothing waits any more: everything at or before it has left.
    pub fn released(&self) -> LogPosition {
        self.released
    }

    /// Effects that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: u64) -> LogPosition {
        LogPosition::new(position)
    }

    #[test]
    fn lets_go_in_order_up_to_the_limit() {
        let mut gate = Gate::default();
        for position in [3, 5, 9] {
            gate.push(at(position), position * 10);
        }
        assert_eq!(gate.pop(at(2)), None);
        assert_eq!(gate.released(), at(0));
        assert_eq!(gate.pop(at(5)), Some(30));
        assert_eq!(gate.released(), at(3));
        assert_eq!(gate.pop(at(5)), Some(50));
        assert_eq!(gate.pop(at(8)), None);
        assert_eq!((gate.released(), gate.len()), (at(5), 1));
        assert_eq!(gate.pop(LogPosition::NO_LIMIT), Some(90));
        assert_eq!((gate.released(), gate.is_empty()), (at(9), true));
    }

    #[test]
    fn what_is_forgotten_was_not_released() {
        let mut gate = Gate::default();
        gate.push(at(1), ());
        gate.clear();
        assert_eq!(gate.pop(LogPosition::NO_LIMIT), None);
        assert_eq!(gate.released(), at(0));
    }
}
