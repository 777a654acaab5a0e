//! Who a report is of.

use std::path::PathBuf;

/// Who answers.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The machine's name.
    pub machine: String,
    /// This node's name.
    pub node: String,
    /// Where its certificate is.
    pub pki: PathBuf,
}
