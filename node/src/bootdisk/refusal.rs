//! Why there is no kernel to be had from a disk.

use thiserror::Error;

/// What to do where the disk has what this program cannot read.
pub const GIVE_FILES: &str =
    "give its kernel and initrd as files on the host instead (`kernel` and `initrd`), and `root=` in `cmdline`";

/// Why there is no kernel to be had from a disk: where, what, and what to do.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{at}: {why}. Remedy: {remedy}")]
pub struct Refusal {
    /// The place: a partition, a file, a line.
    pub at: String,
    /// What is wrong.
    pub why: String,
    /// What to do.
    pub remedy: String,
}

impl Refusal {
    /// At this place, for this reason; the remedy is files on the host.
    pub fn new(at: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            at: at.into(),
            why: why.into(),
            remedy: GIVE_FILES.into(),
        }
    }

    /// With another remedy.
    #[must_use]
    pub fn or(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}
