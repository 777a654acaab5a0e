//! Whether a process is fine. That is not whether the machine is protected: an unprotected machine runs, and to end its
//! process would only make it worse.

use std::time::Duration;

use lockstep_proto::quantity::HostTime;
use serde::Serialize;

use super::report::Report;
use crate::status::Pulses;
use crate::status::pulse::Pulse;

/// The link's thread looks around every second.
const LINK: Duration = Duration::from_secs(10);
/// A halted or frozen vCPU thread looks around every ten seconds, and a guest that runs stops for its timer.
const VCPU: Duration = Duration::from_secs(30);

/// What is told.
#[derive(Debug, Serialize)]
pub(super) struct Health {
    /// The process does what it is to do.
    pub healthy: bool,
    /// Either host may die.
    pub protected: bool,
    /// The state with its reason.
    pub state: String,
    /// Why it is not healthy.
    pub problem: Option<String>,
}

impl Health {
    /// How the process is `now`.
    pub fn of(report: &Report, pulses: &Pulses, now: HostTime) -> Self {
        let silent = |who, pulse: &Pulse, limit| {
            let silence = pulse.silence(now).filter(|silence| *silence > limit)?;
            Some(format!("{who} has been silent for {} s", silence.as_secs()))
        };
        let frozen = (report.state == "frozen").then(|| "the machine stands still".to_owned());
        let stopped = (report.state == "stopped").then(|| {
            let reason = report.reason.as_deref().unwrap_or_default();
            format!("the machine is stopped ({reason})")
        });
        let stalled = report.state.starts_with("stalled").then(|| {
            let reason = report.reason.as_deref().unwrap_or_default();
            format!("the guest does not move though something is due ({reason})")
        });
        let cut_off = (report.state == "cut-off").then(|| {
            let reason = report.reason.as_deref().unwrap_or_default();
            format!("the machine's clients cannot reach it here ({reason})")
        });
        let problem = frozen
            .or(stopped)
            .or(stalled)
            .or(cut_off)
            .or_else(|| silent("the link's thread", &pulses.link, LINK))
            .or_else(|| silent("the vCPU", &pulses.vcpu, VCPU));
        Self {
            healthy: problem.is_none(),
            protected: report.is_protected(),
            state: report.words(),
            problem,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Identity;
    use crate::api::report::{Rates, Sample};
    use crate::host::clock::monotonic;
    use crate::status::Status;
    use std::time::Instant;

    #[test]
    fn a_thread_that_is_stuck_is_found() {
        let status = Status::default();
        let now = Instant::now();
        let rates = Rates::since(Sample::of(status.gauges(), now));
        let identity = Identity {
            machine: "m".into(),
            node: "a".into(),
            pki: "/nowhere".into(),
        };
        let report = Report::of(&identity, &status, &rates, now);
        let second = 1_000_000_000_u64;
        let problem = |at| {
            Health::of(&report, status.pulses(), monotonic().plus_ns(at * second))
                .problem
                .unwrap_or_default()
        };
        assert_eq!(problem(1000), "");
        let link = status.pulses().link.begin(|| {});
        let _vcpu = status.pulses().vcpu.begin(|| {});
        assert_eq!(problem(5), "");
        assert!(problem(15).starts_with("the link's thread has been silent for 1"));
        drop(link);
        assert_eq!(problem(15), "");
        assert!(problem(31).starts_with("the vCPU has been silent for 3"));
    }
}
