//! Why a request to the arbiter has no answer, and whether it may have been carried out.

/// Why a request has no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It may have been carried out or not.
    Unknown(String),
    /// It was not, and will not be.
    Refused(String),
    /// It was not: who asks is not known there, or not any more.
    Stranger(String),
}
