//! The KVM virtual machine: one VM, one vCPU, set up the one way that Lockstep needs.

use kvm_bindings::{
    KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL, KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use thiserror::Error;

use super::msr;
use super::profile::Profile;
use crate::memory::{Memory, MemoryError};
use crate::sys::kick;
use crate::sys::vcpu::RawVcpu;

/// Three pages below 4 GiB that KVM may use on Intel hosts (KVM_SET_TSS_ADDR); outside memory and devices.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// Why no VM could be had.
#[derive(Debug, Error)]
pub enum VmError {
    /// /dev/kvm is missing.
    #[error("/dev/kvm does not exist: load the kvm module, or enable (nested) virtualization for this machine")]
    NoKvm,
    /// /dev/kvm is not for us.
    #[error("no permission to open /dev/kvm: add this user to the group `kvm` (then log in again), or run as root")]
    NoPermission,
    /// KVM refused something.
    #[error("KVM: {what} failed: {cause}")]
    Kvm {
        /// The call.
        what: &'static str,
        /// Its error.
        cause: std::io::Error,
    },
    /// A capability that the design rests on is missing.
    #[error("this host's KVM lacks {0}; Linux 5.10 or newer has it")]
    Lacks(&'static str),
    /// Guest memory could not be attached.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmError {
    move |cause| VmError::Kvm {
        what,
        cause: cause.into(),
    }
}

/// Opens /dev/kvm and checks what the design rests on.
pub fn open() -> Result<Kvm, VmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => VmError::NoKvm,
        libc::EACCES | libc::EPERM => VmError::NoPermission,
        _ => VmError::Kvm {
            what: "open /dev/kvm",
            cause: error.into(),
        },
    })?;
    if kvm.get_api_version() != 12 {
        return Err(VmError::Lacks("API version 12"));
    }
    for (cap, name) in [
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::X86UserSpaceMsr, "KVM_CAP_X86_USER_SPACE_MSR"),
        (Cap::X86MsrFilter, "KVM_CAP_X86_MSR_FILTER"),
        (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
        (Cap::Xsave, "KVM_CAP_XSAVE"),
        (Cap::Xcrs, "KVM_CAP_XCRS"),
        (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(VmError::Lacks(name));
        }
    }
    Ok(kvm)
}

/// A VM with its vCPU. Dropped before the memory that it runs on.
pub struct Vm {
    /// The vCPU. Declared first: it goes before the VM.
    pub vcpu: RawVcpu,
    /// The VM.
    pub fd: VmFd,
}

impl Vm {
    /// Creates the VM on `memory` with the CPU of `profile`.
    pub fn create(memory: &Memory, profile: Profile) -> Result<Self, VmError> {
        let kvm_fd = open()?;
        // A signal that waits ends it with EINTR: another machine of this thread may be kicked.
        let fd = kick::held_back(|| kvm_fd.create_vm()).map_err(kvm("KVM_CREATE_VM"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(kvm("KVM_SET_TSS_ADDR"))?;
        let reasons = KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL;
        let cap = kvm_enable_cap {
            cap: Cap::X86UserSpaceMsr as u32,
            args: [reasons.into(), 0, 0, 0],
            ..Default::default()
        };
        fd.enable_cap(&cap).map_err(kvm("KVM_CAP_X86_USER_SPACE_MSR"))?;
        msr::install_filter(&fd, false).map_err(|cause| VmError::Kvm {
            what: "KVM_X86_SET_MSR_FILTER",
            cause,
        })?;
        memory.attach(&fd)?;
        let vcpu = fd.create_vcpu(0).map_err(kvm("KVM_CREATE_VCPU"))?;
        vcpu.set_cpuid2(&profile.cpuid()).map_err(kvm("KVM_SET_CPUID2"))?;
        let sync_regs = kvm_fd.check_extension(Cap::SyncRegs);
        Ok(Self {
            vcpu: RawVcpu::new(vcpu, sync_regs),
            fd,
        })
    }
}
