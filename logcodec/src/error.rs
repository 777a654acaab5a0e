//! What can go wrong with a log. Each message says what, where, and what to do next.

use std::io;
use std::path::{Path, PathBuf};

use lockstep_proto::quantity::StopNumber;
use thiserror::Error as ThisError;

use crate::frame::FrameError;

/// This crate's result.
pub type Result<T, E = LogError> = std::result::Result<T, E>;

/// Why a log could not be read or written.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum LogError {
    /// The operating system refused.
    #[error("cannot {action} {path}: {cause}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// Not a file of this kind, or one of a version that this program does not read.
    #[error("cannot use {path}: {cause}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: FrameError,
    },
    /// Damage that is not a torn tail.
    #[error(
        "{path} is damaged at offset {offset}: {what}; what comes before is good, nothing after it can be trusted: \
         restore the file from a copy, or use the log up to here"
    )]
    Corrupt {
        /// The segment file.
        path: PathBuf,
        /// Offset of the frame, in bytes from the start of the (uncompressed) segment.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The first segment ends before its first record: there is nothing to deliver, not even an identity.
    #[error(
        "{path} ends inside its header ({bytes} bytes): the recording stopped before it began; remove the directory \
         and record again"
    )]
    NoHeader {
        /// The segment file.
        path: PathBuf,
        /// How long it is, in bytes.
        bytes: u64,
    },
    /// There is no log in this directory.
    #[error("{dir} holds no log (no segment-00000000.lsl or .lsl.zst); give the directory that was passed to --record")]
    NoLog {
        /// The directory.
        dir: PathBuf,
    },
    /// A segment is missing between others.
    #[error("segment {number} is missing in {dir} but a later one is there; copy the directory again, as a whole")]
    MissingSegment {
        /// The directory.
        dir: PathBuf,
        /// The number that has no file.
        number: u32,
    },
    /// A log is in the way.
    #[error("{dir} already holds a log ({found}); record into another directory, or remove this one first")]
    LogExists {
        /// The directory.
        dir: PathBuf,
        /// The file that tells so.
        found: String,
    },
    /// What was to be written is not allowed in a log. Nothing was written.
    #[error("not written to the log: {0}; this is a bug in the recorder, please report it")]
    Refused(Violation),
    /// A record was read whole, but what it holds cannot be.
    #[error("the log holds what no recorder writes: {what}; use the log up to here, and please report it")]
    Damaged {
        /// What is wrong.
        what: String,
    },
    /// An earlier call failed; the log is whole up to the last frame before that.
    #[error("the log in {dir} stopped at natural stop {stop}: {why}; free the disk and start a new recording")]
    Stopped {
        /// The directory.
        dir: PathBuf,
        /// The last natural stop that was appended.
        stop: StopNumber,
        /// The failure that stopped it.
        why: String,
    },
    /// Somebody writes to this log.
    #[error("{path} is being written; stop the recorder first")]
    InUse {
        /// The segment file.
        path: PathBuf,
    },
}

impl LogError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io {
            action,
            path: path.to_owned(),
            cause,
        }
    }

    pub(crate) fn corrupt(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            offset,
            what: what.into(),
        }
    }

    /// For whoever finds more than this crate checks: a log whose content cannot be.
    pub fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged { what: what.into() }
    }

    /// A frame's error in the file `path`.
    pub(crate) fn frame(path: &Path, error: FrameError) -> Self {
        match error {
            FrameError::Io(cause) => Self::Io {
                action: "access",
                path: path.to_owned(),
                cause,
            },
            FrameError::Corrupt { offset, .. } | FrameError::TooLarge { offset, .. } => {
                Self::corrupt(path, offset, error.to_string())
            }
            cause => Self::Format {
                path: path.to_owned(),
                cause,
            },
        }
    }
}

impl From<Violation> for LogError {
    fn from(violation: Violation) -> Self {
        Self::damaged(violation.to_string())
    }
}

/// A rule of the log that a record breaks.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum Violation {
    /// More than a limit (see [`crate::limits`]).
    #[error("{what}: {value} where at most {limit} is allowed")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much.
        value: u64,
        /// How much there may be.
        limit: u64,
    },
    /// A value that has to be another.
    #[error("{what} is {found} where it has to be {expected}")]
    Mismatch {
        /// Which value.
        what: &'static str,
        /// What it is.
        found: u64,
        /// What it has to be.
        expected: u64,
    },
    /// A rule without numbers.
    #[error("{0}")]
    Rule(&'static str),
    /// A message that does not decode.
    #[error("{what} does not decode: {why}")]
    Undecodable {
        /// Which message.
        what: &'static str,
        /// What prost says.
        why: String,
    },
}
