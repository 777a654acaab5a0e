//! An interrupt line from a device to the interrupt controller.

use serde::{Deserialize, Serialize};

/// A device's interrupt output. The device drives it during an access; afterwards the board takes what happened over to
/// the interrupt controller, so that devices need not know one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    high: bool,
    rose: bool,
}

/// What a line did since it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signal {
    /// The line's level now.
    pub(super) high: bool,
    /// Whether there was a low-to-high transition (even if the line fell again).
    pub(super) rose: bool,
}

impl Line {
    /// A line that is high from the start.
    pub(super) fn high() -> Self {
        Self {
            high: true,
            rose: false,
        }
    }

    /// Drives the line to a level.
    pub(super) fn set(&mut self, high: bool) {
        self.rose |= high && !self.high;
        self.high = high;
    }

    /// A transition from low to high in any case: the line drops for a moment if it was high.
    pub(super) fn raise(&mut self) {
        self.rose = true;
        self.high = true;
    }

    /// The line's level.
    pub(super) fn is_high(&self) -> bool {
        self.high
    }

    /// Whether a transition waits to be taken. Never between two accesses.
    pub(super) fn is_settled(&self) -> bool {
        !self.rose
    }

    /// Takes what happened since the last call.
    pub(super) fn take(&mut self) -> Signal {
        let rose = std::mem::take(&mut self.rose);
        Signal { high: self.high, rose }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_are_seen_once() {
        let mut line = Line::default();
        line.set(true);
        line.set(false);
        assert_eq!(
            line.take(),
            Signal {
                high: false,
                rose: true
            }
        );
        line.set(true);
        assert!(!line.is_settled());
        assert_eq!(line.take(), Signal { high: true, rose: true });
        line.set(true);
        assert_eq!(
            line.take(),
            Signal {
                high: true,
                rose: false
            }
        );
        line.raise();
        assert_eq!(line.take(), Signal { high: true, rose: true });
        assert_eq!(
            Line::high().take(),
            Signal {
                high: true,
                rose: false
            }
        );
    }
}
