//! All experiments, one after the other.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::bench::{Bench, Lab};
use super::capabilities::{self, Capabilities};
use super::completion::{self, Completion};
use super::debugging::{self, Aids};
use super::emulator::{self, Tried};
use super::engine::{self, Rate};
use super::essentials::{self, Essentials};
use super::interrupts::{self, Window};
use super::msrs::{self, Msrs, Outcome};
use super::paging::{self, PagingTest};
use super::sensitive::{self, Seen};
use super::states::{self, States};
use super::timing::{self, Timing};
use super::{ProbeError, syscall, transfer};
use crate::micro::Ring;

/// What an experiment found, or why it could not be made.
pub type Tested<T> = Result<T, String>;

/// What all experiments found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// What every start looks at.
    pub essentials: Essentials,
    /// Speed of ring 0.
    pub kernel_rate: Tested<Rate>,
    /// Speed of ring 3.
    pub user_rate: Tested<Rate>,
    /// The instructions that show the host.
    pub sensitive: Tested<Vec<Seen>>,
    /// MSR exits.
    pub msrs: Tested<Msrs>,
    /// Where windows open in ring 0, all runs.
    pub kernel_window: Tested<Window>,
    /// Where windows open on the way to ring 3, all runs.
    pub user_window: Tested<Window>,
    /// Injection at an exit, ring 0.
    pub kernel_injection: Tested<Outcome>,
    /// Injection at an exit, ring 3.
    pub user_injection: Tested<Outcome>,
    /// Completing exits.
    pub completion: Tested<Completion>,
    /// Moving a vCPU into another VM.
    pub transfer: Tested<Outcome>,
    /// Setting states and reading them back.
    pub states: Tested<States>,
    /// Debugging ring 0.
    pub kernel_aids: Tested<Aids>,
    /// Debugging ring 3.
    pub user_aids: Tested<Aids>,
    /// Who walks page tables.
    pub paging: Tested<PagingTest>,
    /// INT 80H in ring 3.
    pub int80: Tested<Outcome>,
    /// Instructions in ring 0.
    pub emulator: Tested<Vec<Tried>>,
    /// What exits cost.
    pub timing: Tested<Timing>,
    /// What KVM and the kernel offer.
    pub capabilities: Tested<Capabilities>,
    /// Milliseconds that all this took.
    pub took_ms: u64,
}

/// Time of one experiment.
const LIMIT: Duration = Duration::from_millis(300);
/// Time over which rates are measured.
const RATE_TIME: Duration = Duration::from_millis(30);

/// Makes all experiments. One that cannot be made does not keep the others from being made.
pub fn survey(lab: &Lab) -> Result<Findings, ProbeError> {
    fn on<T>(lab: &Lab, work: impl FnOnce(&mut Bench<'_>) -> Result<T, ProbeError>) -> Tested<T> {
        lab.bench()
            .and_then(|mut bench| work(&mut bench))
            .map_err(|error| error.to_string())
    }
    let start = Instant::now();
    let mut findings = Findings {
        essentials: essentials::survey(lab)?,
        kernel_rate: on(lab, |bench| engine::rate(bench, Ring::Kernel, RATE_TIME, LIMIT)),
        user_rate: on(lab, |bench| engine::rate(bench, Ring::User, RATE_TIME, LIMIT)),
        sensitive: on(lab, |bench| sensitive::survey(bench, LIMIT)),
        msrs: on(lab, |bench| msrs::survey(bench, LIMIT)),
        kernel_window: on(lab, |bench| interrupts::window(bench, Ring::Kernel, true, LIMIT)),
        user_window: on(lab, |bench| interrupts::window(bench, Ring::User, true, LIMIT)),
        kernel_injection: on(lab, |bench| interrupts::injection(bench, Ring::Kernel, LIMIT)),
        user_injection: on(lab, |bench| interrupts::injection(bench, Ring::User, LIMIT)),
        completion: on(lab, |bench| completion::survey(bench, LIMIT)),
        transfer: on(lab, |bench| transfer::survey(lab, bench, LIMIT)),
        states: on(lab, |bench| states::survey(bench, LIMIT)),
        kernel_aids: on(lab, |bench| debugging::survey(bench, Ring::Kernel, LIMIT)),
        user_aids: on(lab, |bench| debugging::survey(bench, Ring::User, LIMIT)),
        paging: on(lab, |bench| paging::survey(bench, LIMIT)),
        int80: on(lab, |bench| syscall::int80(bench, LIMIT)),
        emulator: on(lab, |bench| emulator::survey(bench, LIMIT)),
        timing: on(lab, |bench| timing::survey(bench, LIMIT)),
        capabilities: on(lab, |bench| capabilities::survey(bench, LIMIT)),
        took_ms: 0,
    };
    findings.took_ms = start.elapsed().as_millis() as u64;
    Ok(findings)
}
