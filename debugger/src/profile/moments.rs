//! What was sampled, in the order of guest time: for a format that shows time.

use anyhow::{Result, ensure};

use super::stacks::Weight;

/// Ticks that are kept: each is a row of such a file.
const MOST_TICKS: u64 = 2_000_000;

/// Ticks that follow each other and have one stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// How many ticks came before the first of them.
    pub first: u64,
    /// The stack's number.
    pub stack: u32,
    /// How many there are. What is carried is last.
    pub weight: Weight,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Moments {
    list: Vec<Moment>,
    ticks: u64,
}

impl Moments {
    /// The next one.
    pub fn add(&mut self, moment: Moment) -> Result<()> {
        self.ticks = self.ticks.saturating_add(moment.weight.samples);
        ensure!(
            self.ticks <= MOST_TICKS,
            "there are more than {MOST_TICKS} samples, too many to be shown one by one: take a shorter stretch, a lower --rate or one --task"
        );
        self.list.push(moment);
        Ok(())
    }

    /// In the order of time.
    pub fn iter(&self) -> impl Iterator<Item = &Moment> {
        self.list.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_a_file_shows_is_an_error() {
        let mut moments = Moments::default();
        let mut add = |samples| {
            moments.add(Moment {
                first: 0,
                stack: 0,
                weight: Weight { samples, carried: 0 },
            })
        };
        add(MOST_TICKS - 1).unwrap();
        add(1).unwrap();
        assert!(add(1).unwrap_err().to_string().contains("--rate"));
        assert!(add(u64::MAX).is_err());
    }
}
