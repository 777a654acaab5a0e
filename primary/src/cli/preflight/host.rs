//! KVM, what the probe finds, and the clock.

use lockstep_node::sys::clock;
use lockstep_vmm::cpu::profile::Profile;
use lockstep_vmm::probe::{self, Start};

use super::Finding;

/// What is found, and what the probe says of the host.
pub(super) fn check() -> (Vec<Finding>, Option<Start>) {
    let mut findings = Vec::new();
    let start = probe::at_start();
    match &start {
        Ok(start) => {
            findings.push(Finding::pass("kvm", "/dev/kvm can be used"));
            findings.push(Finding::pass("probe", format!("host class `{}`", start.class)));
        }
        Err(error) => findings.push(Finding::fail(
            "kvm",
            error.to_string(),
            "load kvm_intel or kvm_amd, let this user open /dev/kvm (group kvm), and look at `lockstep-primary probe`",
        )),
    }
    findings.push(match Profile::for_this_host() {
        Some(profile) => Finding::pass("cpu", format!("CPU profile `{}`", profile.name())),
        None => Finding::fail(
            "cpu",
            "this host's CPU is neither Intel's nor AMD's",
            "use hosts with one of these",
        ),
    });
    findings.push(match clock::is_synchronized() {
        Ok(true) => Finding::pass("clock", "synchronized"),
        Ok(false) => Finding::warn(
            "clock",
            "the kernel says that nobody synchronizes it",
            "run chrony or systemd-timesyncd: certificates are valid by this clock, and a guest boots with it",
        ),
        Err(error) => Finding::warn("clock", error.to_string(), "run `timedatectl`"),
    });
    (findings, start.ok())
}
