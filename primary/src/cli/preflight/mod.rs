//! The pre-flight: whether this host can run a node as it is configured, looked at before anything runs.
//!
//! Invariant: it changes nothing. Locks are given back, the arbiter is only read, the peer is only greeted.

mod host;
mod pair;
mod places;
mod resources;

use std::path::Path;

use lockstep_node::cli::node::NodeArgs;
use serde::Serialize;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As it should be.
    Pass,
    /// The node can run; somebody should look.
    Warn,
    /// The node cannot run, or protects nothing.
    Fail,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it came out.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do, where something has to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    fn pass(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            outcome: Outcome::Pass,
            found: found.into(),
            remedy: None,
        }
    }

    fn warn(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            check,
            outcome: Outcome::Warn,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }

    fn fail(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            check,
            outcome: Outcome::Fail,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// Looks at everything that `node`, whose file this is, needs. `alone`: nothing is asked of other hosts.
pub fn run(file: &Path, node: &NodeArgs, alone: bool) -> Vec<Finding> {
    let (mut findings, start) = host::check();
    findings.extend(resources::check(file, node, start.as_ref()));
    findings.extend(pair::check_files(node));
    if !alone {
        findings.extend(pair::check_others(node));
    }
    findings
}
