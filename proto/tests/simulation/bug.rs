//! Bugs that are planted in the drivers and models around the sessions, to see that the checkers find them.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The backup acknowledges log that is still on its way.
    AckBeforeReceive,
    /// The backup goes by the term that it has only asked for.
    ReleaseBeforeWin,
    /// The arbiter compares first and sets later.
    TwoTerms,
    /// The primary goes on without having asked for the next term.
    OpenWithoutFencing,
    /// What was acknowledged leaves at any time.
    LeaseIgnored,
    /// The limit is asked for once for all effects that wait.
    LimitAskedOnce,
    /// The join's state is sent while effects from before it wait.
    StateBeforeEffects,
    /// A node that was the owner boots again though its backup has the machine.
    BootBesidePeer,
    /// The effects that may not have left are not emitted again.
    NothingEmittedAgain,
    /// What was acknowledged leaves also when the backup was told to go on.
    OpenAfterHandover,
    /// A verdict that was given up is taken for the answer to a later question.
    LateVerdicts,
    /// The backup is told of the machine's end while something has not left.
    GoodbyeTooEarly,
    /// A primary that has told its backup ends without waiting for it to hang up.
    NoWaitForTheBackup,
    /// A machine that resets is booted anew without the next term.
    RebootInItsTerm,
}
