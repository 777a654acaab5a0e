//! What enters at a turn, by kind.

use clap::ValueEnum;
use lockstep_proto::Turn;

/// A kind of input; the commonest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    Epoch,
    Clock,
    Random,
    Frame,
    Console,
    Disk,
    Entropy,
    Forced,
    Keyboard,
    PowerButton,
}

impl Kind {
    /// All of them.
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// As it is typed.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// A set of kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(u16);

impl Kinds {
    /// Those of a turn.
    pub fn of(turn: &Turn) -> Self {
        [
            (turn.epoch.is_some(), Kind::Epoch),
            (turn.clock.is_some(), Kind::Clock),
            (turn.random.is_some(), Kind::Random),
            (!turn.frames.is_empty(), Kind::Frame),
            (!turn.console.is_empty(), Kind::Console),
            (!turn.disks.is_empty(), Kind::Disk),
            (!turn.entropy.is_empty(), Kind::Entropy),
            (turn.forced.is_some(), Kind::Forced),
            (!turn.keyboard.is_empty(), Kind::Keyboard),
            (turn.power_button, Kind::PowerButton),
        ]
        .into_iter()
        .filter(|(present, _)| *present)
        .fold(Self::default(), |set, (_, kind)| Self(set.0 | 1 << kind as u16))
    }

    /// Whether this one is among them.
    pub fn contains(self, kind: Kind) -> bool {
        self.0 & 1 << kind as u16 != 0
    }

    /// They, the commonest first.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Kind> {
        Kind::all().iter().copied().filter(move |kind| self.contains(*kind))
    }

    /// The rarest kind, which says most: the clock is in nearly all turns.
    pub fn rarest(self) -> Option<Kind> {
        self.iter().next_back()
    }
}
