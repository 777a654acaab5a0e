//! What follows from the findings.
//!
//! A strategy that is cheaper than the general one is chosen only where an experiment on this very host has shown that
//! it is sound. What no experiment can show stays off.

use serde::{Deserialize, Serialize};

use super::essentials::Essentials;
use super::paging::Paging;
use super::syscall::Syscall;

/// Ring-0 instructions for which an interrupt may wait for IF=1 before the guest is stopped by force.
const GRACE_INSTRUCTIONS: u64 = 30_000;
const GRACE_MIN_NS: u64 = 1_000_000;
const GRACE_MAX_NS: u64 = 20_000_000;

/// How this host is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strategies {
    /// KVM keeps copies of the guest's page tables. Where this could not be found out it is assumed.
    pub shadow_paging: bool,
    /// Re-create the memory slots after userspace has written into guest memory that may hold page tables.
    ///
    /// Shadow paging needs it for its copies. Hardware paging needs a TLB flush, since a delta takes the place of
    /// instructions that would have flushed; KVM's userspace interface has none of its own, and re-creating the slots
    /// implies one. So this is true everywhere until a cheaper flush is proved.
    pub reset_slots_after_delta: bool,
    /// "The first interrupt window after stop n" names one instruction: a forced stop there needs no delta.
    pub windows_exact: bool,
    /// Time for which something due may wait before the guest is stopped by force: that of 30,000 ring-0 instructions,
    /// 1 to 20 ms.
    pub grace_ns: u64,
    /// RDTSC, RDTSCP, RDRAND and RDSEED of the guest kernel are rewritten to port reads and logged. True on every host:
    /// no stock KVM makes RDTSC exit to userspace.
    pub rewrite_kernel: bool,
    /// RDTSC and RDTSCP of the guest's programs fault by CR4.TSD and are answered and logged.
    pub guard_programs: bool,
    /// SYSCALL in ring 3 goes to the kernel's entry and stays in ring 3: the guest's kernel has to take the fault there for the
    /// system call.
    pub syscalls_fault: bool,
    /// What the guest writes into IA32_SYSENTER_ESP and _EIP is given to KVM by us.
    pub gives_cut_msrs: bool,
    /// The TSC of guest programs is frozen by scaling. Off: not verified on any host so far.
    pub freeze_user_tsc: bool,
    /// Positions between exits are counted by the PMU. Off: not verified on any host so far.
    pub pmu_positions: bool,
}

impl Strategies {
    /// Chooses.
    pub fn from_findings(found: &Essentials) -> Self {
        let grace = found.kernel_rate.per_second().map_or(GRACE_MAX_NS, |rate| {
            (GRACE_INSTRUCTIONS * 1_000_000_000 / rate.max(1)).clamp(GRACE_MIN_NS, GRACE_MAX_NS)
        });
        Self {
            shadow_paging: found.paging != Paging::Hardware,
            reset_slots_after_delta: true,
            windows_exact: found.windows_exact(),
            grace_ns: grace,
            rewrite_kernel: true,
            guard_programs: found.tsd_works(),
            syscalls_fault: found.syscall == Syscall::StaysInUser,
            gives_cut_msrs: found.cuts_msrs,
            freeze_user_tsc: false,
            pmu_positions: false,
        }
    }
}
