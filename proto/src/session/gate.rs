//! The output gate: effects wait in it until the log behind them is safe.

use std::collections::VecDeque;

/// Effects in the order they were made, each with the position of the log that makes it safe to let it go.
#[derive(Debug)]
pub struct Gate<T> {
    waiting: VecDeque<(u64, T)>,
    released: u64,
}

impl<T> Default for Gate<T> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            released: 0,
        }
    }
}

impl<T> Gate<T> {
    /// Keeps `effect`, all that one turn gave, until the log is safe up to `position`; each is larger than the one before.
    pub fn push(&mut self, position: u64, effect: T) {
        debug_assert!(self.waiting.back().is_none_or(|(last, _)| *last < position));
        self.waiting.push_back((position, effect));
    }

    /// The next effect that may go when the log is safe up to `limit`. Ask for the limit anew before each one.
    pub fn pop(&mut self, limit: u64) -> Option<T> {
        if self.waiting.front()?.0 > limit {
            return None;
        }
        let (position, effect) = self.waiting.pop_front()?;
        self.released = position;
        Some(effect)
    }

    /// Position up to which nothing waits any more: everything at or before it has left.
    pub fn released(&self) -> u64 {
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

    #[test]
    fn lets_go_in_order_up_to_the_limit() {
        let mut gate = Gate::default();
        for position in [3, 5, 9] {
            gate.push(position, position * 10);
        }
        assert_eq!(gate.pop(2), None);
        assert_eq!(gate.released(), 0);
        assert_eq!(gate.pop(5), Some(30));
        assert_eq!(gate.released(), 3);
        assert_eq!(gate.pop(5), Some(50));
        assert_eq!(gate.pop(8), None);
        assert_eq!((gate.released(), gate.len()), (5, 1));
        assert_eq!(gate.pop(u64::MAX), Some(90));
        assert_eq!((gate.released(), gate.is_empty()), (9, true));
    }

    #[test]
    fn what_is_forgotten_was_not_released() {
        let mut gate = Gate::default();
        gate.push(1, ());
        gate.clear();
        assert_eq!(gate.pop(u64::MAX), None);
        assert_eq!(gate.released(), 0);
    }
}
