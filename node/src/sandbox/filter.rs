//! Filters of system calls, one for each kind of thread. A call that is not in it ends the process by SIGSYS.
//!
//! One call is refused with EACCES instead, to threads that open no files: glibc's allocator looks at
//! `/proc/sys/vm/overcommit_memory` on whichever thread it gives memory back to the kernel, and goes on without it.

use std::collections::BTreeMap;
use std::fs;
use std::sync::OnceLock;

use libc::c_long;
use lockstep_vmm::sys::requests;
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter};
use seccompiler::{SeccompRule, TargetArch};
use xxhash_rust::xxh3::xxh3_64;

use super::SandboxError;
use super::calls;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All that any thread of the process may do. What begins, opens devices, or takes the process' place.
    Base,
    /// Runs the vCPU of a live machine: neither files by name, nor sockets, threads, programs, VMs or memory slots.
    Vcpu,
    /// The same, and saves the machine into a file at its end.
    VcpuSaving,
    /// Replays on a vCPU, builds the machines that come, and goes live.
    Replica,
    /// Does disk requests or copies disks, on files that are open.
    Disk,
    /// Moves bytes between descriptors: frames of a tap device, the console.
    Bytes,
    /// Waits, and tells others.
    Waits,
    /// Writes recordings.
    Files,
    /// Talks: the link, the arbiter, the operations API, metrics, the service manager.
    Network,
}

/// All, in the order of their numbers in [`COMPILED`].
const KINDS: [Kind; 9] = [
    Kind::Base,
    Kind::Vcpu,
    Kind::VcpuSaving,
    Kind::Replica,
    Kind::Disk,
    Kind::Bytes,
    Kind::Waits,
    Kind::Files,
    Kind::Network,
];

static COMPILED: OnceLock<Vec<BpfProgram>> = OnceLock::new();
/// Refuses to open files.
static REFUSING: OnceLock<BpfProgram> = OnceLock::new();

/// Of `<asm-generic/ioctls.h>`: the terminal is given back by whichever thread panics, and is looked at by whichever prints.
const TERMINAL: [u64; 12] = [
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TCGETS2,
    libc::TCSETS2,
    libc::TCSETSW2,
    libc::TCSETSF2,
    libc::TIOCGPGRP,
    libc::TIOCGWINSZ,
    libc::FIONREAD,
    libc::FIOCLEX,
];
/// An interface's carrier and number, and sockets that do not block.
const SOCKETS: [u64; 3] = [libc::SIOCGIFFLAGS, libc::SIOCGIFINDEX, libc::FIONBIO];
/// A tap device is bound.
const TAPS: [u64; 1] = [libc::TUNSETIFF];
/// A disk's blocks are shared with a copy.
const COPIES: [u64; 1] = [libc::FICLONE];
/// What getaddrinfo(3) asks the kernel about its addresses by, beside the sockets that are talked through.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Of `<linux/prctl.h>`: what the kernel told the program at its start, such as the size of a page.
const PR_GET_AUXV: i32 = 0x4155_5856;

/// Calls, each with the rules of which one must hold; none: always.
type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

impl Kind {
    fn rules(self) -> Result<Rules, seccompiler::Error> {
        let mut rules = Rules::new();
        let lists: &[&[c_long]] = match self {
            Self::Base => &[
                calls::COMMON,
                calls::DATA,
                calls::FILES,
                calls::START,
                calls::NETWORK,
                calls::PROCESS,
            ],
            Self::Vcpu => &[calls::COMMON, calls::READ],
            Self::Bytes | Self::Waits => &[calls::COMMON],
            Self::VcpuSaving | Self::Files => &[calls::COMMON, calls::DATA, calls::FILES],
            Self::Replica => &[calls::COMMON, calls::DATA, calls::FILES, calls::START],
            Self::Disk => &[calls::COMMON, calls::DATA],
            Self::Network => &[calls::COMMON, calls::DATA, calls::FILES, calls::NETWORK],
        };
        for call in lists.iter().copied().flatten() {
            rules.insert(*call, Vec::new());
        }
        if !self.opens() {
            // Another filter refuses it.
            rules.insert(libc::SYS_openat, Vec::new());
        }
        // How large an open file is; by their names, files are no business of those that open none.
        for (call, flags) in [(libc::SYS_statx, 2), (libc::SYS_newfstatat, 3)] {
            let by_descriptor = SeccompCmpOp::MaskedEq(libc::AT_EMPTY_PATH as u64);
            rules.insert(call, vec![rule(flags, by_descriptor, libc::AT_EMPTY_PATH as u64)?]);
            if self.opens() {
                rules.insert(call, Vec::new());
            }
        }
        rules.insert(libc::SYS_ioctl, any_of(1, &self.requests())?);
        // Its own threads alone.
        let me = u64::from(std::process::id());
        rules.insert(libc::SYS_tgkill, any_of(0, &[me])?);
        let memory = match self {
            // Name services are libraries that are loaded when they are needed.
            Self::Base | Self::Network => Vec::new(),
            _ => vec![rule(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?],
        };
        rules.insert(libc::SYS_mmap, memory.clone());
        rules.insert(libc::SYS_mprotect, memory);
        if rules.contains_key(&libc::SYS_connect) {
            rules.insert(libc::SYS_socket, any_of(0, &FAMILIES.map(|family| family as u64))?);
        }
        rules.insert(libc::SYS_prctl, any_of(0, &self.controls())?);
        Ok(rules)
    }

    /// Whether it opens files.
    fn opens(self) -> bool {
        !matches!(self, Self::Vcpu | Self::Disk | Self::Bytes | Self::Waits)
    }

    fn requests(self) -> Vec<u64> {
        let mut requests = match self {
            Self::Base => [requests::running(), requests::building(), requests::probing()].concat(),
            Self::Replica => [requests::running(), requests::building()].concat(),
            Self::Vcpu | Self::VcpuSaving => requests::running(),
            _ => Vec::new(),
        };
        requests.extend(TERMINAL);
        if matches!(self, Self::Base | Self::Network) {
            requests.extend(SOCKETS);
        }
        if matches!(self, Self::Base | Self::Files) {
            requests.extend(COPIES);
        }
        if self == Self::Base {
            requests.extend(TAPS);
        }
        requests
    }

    /// Operations of prctl(2).
    fn controls(self) -> Vec<u64> {
        const OWN: [i32; 3] = [PR_GET_AUXV, libc::PR_SET_NAME, libc::PR_SET_VMA];
        let more: &[i32] = match self {
            Self::Base => &[
                libc::PR_SET_NO_NEW_PRIVS,
                libc::PR_CAPBSET_READ,
                libc::PR_CAPBSET_DROP,
                libc::PR_CAP_AMBIENT,
            ],
            // The filter that comes next.
            Self::Replica => &[libc::PR_SET_NO_NEW_PRIVS],
            _ => &[],
        };
        OWN.iter().chain(more).map(|control| *control as u64).collect()
    }

    fn program(self) -> Option<&'static BpfProgram> {
        let number = KINDS.iter().position(|kind| *kind == self)?;
        COMPILED.get()?.get(number)
    }
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::Error> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

fn any_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, seccompiler::Error> {
    let equal = |value: &u64| rule(argument, SeccompCmpOp::Eq, *value);
    values.iter().map(equal).collect()
}

/// Makes all filters: what can be wrong with them is wrong before a thread needs one.
pub(super) fn compile() -> Result<(), SandboxError> {
    let programs = KINDS
        .iter()
        .map(|kind| {
            let failed = |error: seccompiler::Error| SandboxError::Filter(kind.name(), error.to_string());
            let filter = SeccompFilter::new(
                kind.rules().map_err(failed)?,
                SeccompAction::KillProcess,
                SeccompAction::Allow,
                TargetArch::x86_64,
            );
            let filter = filter.map_err(|error| failed(error.into()))?;
            BpfProgram::try_from(filter).map_err(|error| failed(error.into()))
        })
        .collect::<Result<_, _>>()?;
    let failed = |error: seccompiler::BackendError| SandboxError::Filter("refusing", error.to_string());
    let refusing = SeccompFilter::new(
        [(libc::SYS_openat, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EACCES as u32),
        TargetArch::x86_64,
    );
    let refusing = refusing.and_then(BpfProgram::try_from).map_err(failed)?;
    // A second call makes the same.
    let _ = REFUSING.set(refusing);
    let _ = COMPILED.set(programs);
    Ok(())
}

impl Kind {
    /// As it stands in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Vcpu => "vCPU",
            Self::VcpuSaving => "saving vCPU",
            Self::Replica => "replica",
            Self::Disk => "disk",
            Self::Bytes => "byte-moving",
            Self::Waits => "waiting",
            Self::Files => "recording",
            Self::Network => "network",
        }
    }
}

/// Puts the base filter around all threads of the process.
pub(super) fn enter_base() -> Result<(), SandboxError> {
    match Kind::Base.program() {
        Some(program) => {
            seccompiler::apply_filter_all_threads(program).map_err(|error| SandboxError::Refused(error.to_string()))
        }
        None => Err(SandboxError::Filter(Kind::Base.name(), "it was not made".into())),
    }
}

/// Puts the filter of `kind` around this thread.
pub(super) fn enter(kind: Kind) -> Result<(), SandboxError> {
    let (Some(program), Some(refusing)) = (kind.program(), REFUSING.get()) else {
        return Err(SandboxError::Filter(kind.name(), "it was not made".into()));
    };
    // First: the other one lets no more in.
    let refusing = (!kind.opens()).then_some(refusing);
    refusing
        .into_iter()
        .chain([program])
        .try_for_each(|program| seccompiler::apply_filter(program))
        .map_err(|error| SandboxError::Refused(error.to_string()))
}

/// The base filter's digest and how many filters this thread has: what a process tells the one that replaces it.
pub(super) fn mark() -> Option<String> {
    let program = format!("{:?}", Kind::Base.program()?);
    let count = filters().filter(|count| *count > 0)?;
    Some(format!("{:016x}-{count}", xxh3_64(program.as_bytes())))
}

/// How many filters this thread has, as the kernel says; 0 for none.
fn filters() -> Option<u32> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"))?;
    line.trim().parse().ok()
}
