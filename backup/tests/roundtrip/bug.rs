//! Bugs that are planted around recorder, log and gate, to see that the replay finds them. Each strikes once in a run: at one
//! of the places where it could.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A turn of a halted guest that does not wake it is not logged.
    HaltNotLogged,
    /// Time goes on at a stop where nobody looks, and is not logged.
    UnseenTime,
    /// A disk's completion stands a turn before its own.
    InputEarly,
    /// The delta is taken twice: the second has nothing in it.
    DeltaTwice,
    /// A forced stop is not in the log.
    DeltaLeftOut,
    /// A page of a delta is not in the log.
    PageLeftOut,
    /// An epoch ends at a forced stop.
    EpochAtForced,
    /// What brings an interrupt is logged one stop late.
    InterruptLate,
    /// A frame of a batch is lost.
    FrameLost,
    /// A batch ends a stop later than its chain.
    BatchSplitWrong,
    /// Effects may leave before the batch that they come of is safe.
    EffectEarly,
    /// What is typed is logged in another order.
    TypedOtherwise,
    /// A random value is logged with another bit.
    RandomOtherwise,
}
