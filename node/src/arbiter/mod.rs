//! The arbiter: one record for each machine, changed only by compare-and-set, that says which node may be live.
//!
//! Invariants that every implementation keeps:
//! - A set happens as a whole, and only if the stored record is the expected one at that moment, whoever else tries.
//! - [`Outcome::Done`] means that the record is on the arbiter's disk.
//! - A record that cannot be read is an error. It is never taken for a missing one, and never overwritten.
//! - A call ends within a time that the implementation names, however the arbiter behaves.
//! - After [`ArbiterError::Unreachable`] a set may have happened, or may yet happen while its request is still under
//!   way. Repeating it is harmless: if the record already is the new one, the answer is `Done`. Only its writer can have
//!   written it, because a record names its owner, terms only grow, and a node's name is used by one process at a time.
//! - Records are compared by value. That is as good as a revision number, because no record comes back: within a term a
//!   peer is only added, and everything else takes the next term.

mod codec;
mod endpoint;
mod etcd;
mod failure;
mod file;
mod gateway;
mod http;
mod kept;
mod login;
mod seen;
mod spec;
mod thread;
mod tls;

pub use codec::decode;
pub use endpoint::{Endpoint, TlsError, TlsFiles};
pub use etcd::{Etcd, PREFIX, RECORD};
pub use file::{FileArbiter, LOCK_TIMEOUT};
pub use gateway::{Gateway, REQUEST_TIMEOUT};
pub use kept::{Kept, NotBelieved};
pub use lockstep_proto::session::Record;
pub use login::{HalfLogin, Login};
pub use seen::Seen;
pub use spec::{Spec, SpecError, gateway, is_machine_name, open};
pub use thread::{Answer, ArbiterThread, NotQueued, QUEUE};

use thiserror::Error;

/// What became of a compare-and-set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The record is the new one.
    Done,
    /// It is neither the expected nor the new one, but this. Nothing was changed, and nothing will be.
    Changed(Option<Record>),
}

/// Why there is no answer. Each carries the arbiter, as [`Arbiter::describe`] names it, and a reason for people.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ArbiterError {
    /// Later it may work. Whether a set has happened, or will yet, is UNKNOWN; repeat the same set to find out.
    #[error(
        "no answer from the arbiter {arbiter}: {reason}. It is worth trying again; see that the arbiter runs and that this host reaches it"
    )]
    Unreachable {
        /// Which arbiter.
        arbiter: String,
        /// What was tried, and what came of it.
        reason: String,
    },
    /// The arbiter, or what answered in its place, said no. Nothing was changed, and repeating will not help.
    #[error(
        "the arbiter {arbiter} refused: {reason}. Trying again will not help; correct the arbiter or this node's access to it"
    )]
    Refused {
        /// Which arbiter.
        arbiter: String,
        /// What it said.
        reason: String,
    },
    /// The stored record is not one. Nothing was changed, and repeating will not help.
    #[error(
        "the record at the arbiter {arbiter} is damaged: {reason}. Nobody may guess it: make sure that at most one of the hosts is live, power the other off, remove the record and start the live one again"
    )]
    Damaged {
        /// Which arbiter.
        arbiter: String,
        /// What is wrong with the record.
        reason: String,
    },
    /// The request or the configuration cannot work. Nothing was changed.
    #[error("the arbiter {arbiter} cannot be used: {reason}")]
    Config {
        /// Which arbiter.
        arbiter: String,
        /// What is wrong, and what to do about it.
        reason: String,
    },
}

impl ArbiterError {
    /// Whether the same call may succeed later. For a set this also means that its outcome is unknown.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// A machine's record, or that there is none, for people.
pub fn in_words(record: Option<&Record>) -> String {
    record.map_or_else(|| "no record".into(), Record::to_string)
}

/// One machine's record at an arbiter.
pub trait Arbiter: Send {
    /// The record as it is now: every set that was `Done` before this call began is in it. None if there is none yet.
    fn read(&mut self) -> Result<Option<Record>, ArbiterError>;

    /// Sets the record to `new` if it is `expected` now; `None`: if there is none yet.
    ///
    /// If the record already is `new`, that is `Done` too: an earlier attempt, whose outcome its writer did not learn,
    /// has set it. Whoever is told `Changed` has lost and does not read again to retry.
    fn compare_and_set(&mut self, expected: Option<&Record>, new: &Record) -> Result<Outcome, ArbiterError>;

    /// The arbiter's kind, place and record, for people.
    fn describe(&self) -> String;
}
