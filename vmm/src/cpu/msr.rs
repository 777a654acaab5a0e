//! Which MSRs the guest has.
//!
//! Three kinds: those that KVM keeps (pass-through by the filter, saved with the vCPU), those that we answer
//! ([`read`], [`write()`]; the TSC is guest time), and all others, which fault with #GP as on a CPU that lacks them.
//! Numbers: Intel SDM volume 4.

use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use lockstep_proto::model::AMD_MSRS_REVISION;

/// IA32_TIME_STAMP_COUNTER.
pub const TSC: u32 = 0x10;
/// EFER; also in the special registers, where it must agree.
pub const EFER: u32 = 0xc000_0080;

/// MSRs that KVM keeps and that belong to the vCPU's state, in the order in which they are saved.
pub const SAVED: [u32; 12] = [
    0x174, // IA32_SYSENTER_CS
    0x175, // IA32_SYSENTER_ESP
    0x176, // IA32_SYSENTER_EIP
    0x277, // IA32_PAT
    EFER,
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // FMASK
    0xc000_0100, // FS_BASE
    0xc000_0101, // GS_BASE
    0xc000_0102, // KERNEL_GS_BASE
];

/// IA32_SYSENTER_ESP and IA32_SYSENTER_EIP. On SVM KVM keeps the 64 bits that a guest writes, but only 32 of those that it
/// is given (no SYSENTER of a 64-bit kernel works there): a replica that a state was given would have another value than
/// the recorder. Where the probe finds that, what the guest writes is given by us as well ([`install_filter`]).
pub const CUT: [u32; 2] = [0x175, 0x176];

/// HWCR of AMD's processors, and the bit that says that the TSC counts with the frequency of P0, whatever the CPU's is. Kernels
/// for them read it at boot (AMD APM volume 2, 3.2.10).
const HWCR: u32 = 0xc001_0015;
const TSC_FREQ_SEL: u64 = 1 << 24;
/// NB_CFG of AMD's processors: switches of a northbridge that is not here. Their kernels set one as they start a CPU.
const NB_CFG: u32 = 0xc001_001f;

/// What an MSR access that reached us gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrAnswer {
    /// The value that RDMSR reads, or that WRMSR was accepted.
    Value(u64),
    /// Guest time is asked for.
    Time,
    /// KVM is given the value that was written.
    Give,
    /// #GP; the MSR does not exist.
    Fault,
}

/// Answers RDMSR for a machine of this revision.
pub fn read(index: u32, revision: u32) -> MsrAnswer {
    match index {
        HWCR if revision >= AMD_MSRS_REVISION => MsrAnswer::Value(TSC_FREQ_SEL),
        NB_CFG if revision >= AMD_MSRS_REVISION => MsrAnswer::Value(0),
        TSC => MsrAnswer::Time,
        // IA32_PLATFORM_ID, IA32_BIOS_SIGN_ID (microcode revision), IA32_MISC_ENABLE (fast strings).
        0x17 | 0x8b => MsrAnswer::Value(0),
        0x1a0 => MsrAnswer::Value(1),
        _ => MsrAnswer::Fault,
    }
}

/// Answers WRMSR for a machine of this revision. Writes that must not change anything (the TSC cannot be set, it *is* guest time) are accepted where
/// kernels do them at boot, and ignored.
pub fn write(index: u32, revision: u32) -> MsrAnswer {
    match index {
        HWCR | NB_CFG if revision >= AMD_MSRS_REVISION => MsrAnswer::Value(0),
        TSC | 0x8b | 0x1a0 => MsrAnswer::Value(0),
        _ if CUT.contains(&index) => MsrAnswer::Give,
        _ => MsrAnswer::Fault,
    }
}

/// Sets the filter: [`SAVED`] pass, everything else exits to us; so do writes of [`CUT`] with `gives_cut`.
pub fn install_filter(vm: &VmFd, gives_cut: bool) -> std::io::Result<()> {
    const PASS: &[u8] = &[0xff];
    let both = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    let cut = if gives_cut { MsrFilterRangeFlags::READ } else { both };
    let ranges = [
        (0x174, 1, both),
        (CUT[0], 2, cut),
        (0x277, 1, both),
        (0xc000_0080, 5, both),
        (0xc000_0100, 3, both),
    ]
    .map(|(base, msr_count, flags)| MsrFilterRange {
        flags,
        base,
        msr_count,
        bitmap: PASS,
    });
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_of_amds_processors_are_taken_and_do_nothing() {
        let nothing = MsrAnswer::Value(0);
        for (revision, answer) in [(AMD_MSRS_REVISION, nothing), (AMD_MSRS_REVISION - 1, MsrAnswer::Fault)] {
            assert_eq!(
                (read(NB_CFG, revision), write(NB_CFG, revision)),
                (answer, answer),
                "{revision}"
            );
        }
        assert_eq!(read(HWCR, AMD_MSRS_REVISION), MsrAnswer::Value(0x0100_0000));
        assert_eq!(write(HWCR, AMD_MSRS_REVISION), nothing);
        assert_eq!(read(HWCR, AMD_MSRS_REVISION - 1), MsrAnswer::Fault);
        assert_eq!(read(NB_CFG + 1, AMD_MSRS_REVISION), MsrAnswer::Fault);
    }
}
