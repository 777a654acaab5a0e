//! Effects of the replica, kept until the primary's have left.

use std::collections::VecDeque;

use lockstep_proto::quantity::LogPosition;
use lockstep_vmm::devices::Effect;

/// Effects in order, each with its position in the log.
#[derive(Default)]
pub struct Kept(VecDeque<(LogPosition, Effect)>);

impl Kept {
    /// Keeps one, and forgets what is known to have left.
    pub fn push(&mut self, position: LogPosition, effect: Effect, released: LogPosition) {
        self.forget(released);
        self.0.push_back((position, effect));
    }

    /// Forgets what stands at or before `released`.
    fn forget(&mut self, released: LogPosition) {
        while self.0.front().is_some_and(|(position, _)| *position <= released) {
            self.0.pop_front();
        }
    }

    /// What may not have left.
    pub fn take(&mut self, released: LogPosition) -> Vec<Effect> {
        self.forget(released);
        self.0.drain(..).map(|(_, effect)| effect).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(position: u64) -> LogPosition {
        LogPosition::new(position)
    }

    #[test]
    fn what_left_is_forgotten() {
        let mut kept = Kept::default();
        let effect = |byte: u8| Effect::Console(vec![byte]);
        for position in 1..=4 {
            kept.push(at(position), effect(position as u8), at(position / 2));
        }
        assert_eq!(kept.take(at(3)), [effect(4)]);
        assert_eq!(kept.take(at(3)), []);
    }
}
