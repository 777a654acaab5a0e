//! Runs `lockstep-debug verify`.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitStatus;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::debug::Debug;

/// What a verification said.
#[derive(Debug)]
pub struct Verify {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its report; `None` when there was none.
    pub report: Option<Value>,
    /// Standard error.
    pub messages: String,
}

impl Verify {
    /// Verifies the recording in `directory`.
    pub fn run(directory: &Path) -> Result<Self> {
        Self::run_with(directory, Vec::<OsString>::new())
    }

    /// The same with more arguments.
    pub fn run_with<S: Into<OsString>>(directory: &Path, arguments: impl IntoIterator<Item = S>) -> Result<Self> {
        let start = ["verify".into(), "--json".into(), directory.as_os_str().to_owned()];
        let verify = Debug::run(start.into_iter().chain(arguments.into_iter().map(Into::into)))?;
        let text = verify.text();
        let report = match text.trim() {
            "" => None,
            text => Some(serde_json::from_str(text).with_context(|| format!("no JSON: {text}"))?),
        };
        Ok(Self {
            status: verify.status,
            report,
            messages: verify.messages,
        })
    }

    /// The report of a recording that is identical, or an error that says what differs.
    pub fn identical(&self) -> Result<&Value> {
        let report = self
            .report
            .as_ref()
            .with_context(|| format!("no report, {}: {}", self.status, self.messages))?;
        if !self.status.success() || report["identical"] != true {
            bail!("verify ended with {}: {report:#}\n{}", self.status, self.messages);
        }
        Ok(report)
    }

    /// The batch that a divergence names.
    pub fn diverged_in(&self) -> Result<u64> {
        let batch = self
            .report
            .as_ref()
            .and_then(|report| report["divergence"]["batch"].as_u64());
        let batch = batch.with_context(|| format!("no divergence: {:?} {}", self.report, self.messages))?;
        if self.status.code() != Some(1) {
            bail!("a divergence must end with status 1, not {}", self.status);
        }
        Ok(batch)
    }
}

/// One line on what was executed and what was carried, for a test's output.
pub fn summary(report: &Value) -> String {
    let guest = report["guest_seconds"].as_f64().unwrap_or(0.0);
    let carried = report["carried_seconds"].as_f64().unwrap_or(0.0);
    format!(
        "executed {} stops in {:.1} s guest time, {} epochs over {} pages compared; \
         carried {} forced stops, {} pages, {:.2} s; log {} bytes; replayed in {:.1} s",
        report["stops"],
        guest - carried.min(guest),
        report["epochs"],
        report["epoch_pages"],
        report["deltas"],
        report["delta_pages"],
        carried,
        report["log_bytes"],
        report["wall_seconds"].as_f64().unwrap_or(0.0),
    )
}
