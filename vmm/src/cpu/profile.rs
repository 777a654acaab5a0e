//! The CPU that the guest sees: a fixed CPUID table with a name.
//!
//! The table is ours, not the host's filtered one: two hosts of a pair must show the same CPU, and a recording must
//! replay years later. It names no feature that lets the guest kernel observe the host: no RDRAND, no RDSEED, no XSAVE
//! (FXSAVE has no XINUSE freedom), no TSX, no PMU, no x2APIC or local APIC (interrupts come from the 8259A), no KVM
//! paravirtual leaves, no SMAP, SMEP, FSGSBASE, POPCNT or CMPXCHG16B (not every KVM can emulate them, see the assist).
//!
//! Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Guest TSC frequency in Hz: one tick a nanosecond, so that the TSC is guest time.
pub const TSC_HZ: u64 = 1_000_000_000;

/// A named CPUID table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// For hosts whose vendor is `GenuineIntel`.
    Intel1,
    /// For hosts whose vendor is `AuthenticAMD`.
    Amd1,
}

impl Profile {
    /// All profiles.
    pub const ALL: [Self; 2] = [Self::Intel1, Self::Amd1];

    /// The profile for this host: SYSCALL, SYSENTER and FXSAVE differ between vendors, so the guest sees the host's.
    pub fn for_this_host() -> Option<Self> {
        let leaf = std::arch::x86_64::__cpuid(0);
        match (leaf.ebx, leaf.edx, leaf.ecx) {
            (0x756e_6547, 0x4965_6e69, 0x6c65_746e) => Some(Self::Intel1),
            (0x6874_7541, 0x6974_6e65, 0x444d_4163) => Some(Self::Amd1),
            _ => None,
        }
    }

    /// The name, as it stands in logs and configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Intel1 => "lockstep-intel-1",
            Self::Amd1 => "lockstep-amd-1",
        }
    }

    /// The profile with this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|profile| profile.name() == name)
    }

    /// The table for `KVM_SET_CPUID2`.
    pub fn cpuid(self) -> CpuId {
        // FPU VME DE PSE TSC MSR PAE CX8 PGE CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2; no MCE, APIC, SEP, MTRR or MCA.
        let leaf1_edx = 0x078b_a17f_u32;
        // SSE3, SSSE3, SSE4.1, SSE4.2; the hypervisor bit stays clear: there is no paravirtual interface to look for.
        let leaf1_ecx = 1 | (1 << 9) | (1 << 19) | (1 << 20);
        let vendor = match self {
            Self::Intel1 => [0x756e_6547, 0x6c65_746e, 0x4965_6e69],
            Self::Amd1 => [0x6874_7541, 0x444d_4163, 0x6974_6e65],
        };
        let brand = brand_leaves(match self {
            Self::Intel1 => "Lockstep virtual CPU (Intel, revision 1)",
            Self::Amd1 => "Lockstep virtual CPU (AMD, revision 1)",
        });
        let (signature, extended_edx) = match self {
            // Family 6 model 0x3a stepping 9; SYSCALL NX LM.
            Self::Intel1 => (0x0003_06a9, (1 << 11) | (1 << 20) | (1 << 29)),
            // Family 0x17 model 1 stepping 2; SYSCALL NX LM.
            Self::Amd1 => (0x0080_0f12, (1 << 11) | (1 << 20) | (1 << 29)),
        };
        let mut entries = vec![
            leaf(0, [0x16, vendor[0], vendor[1], vendor[2]]),
            // CLFLUSH line of 64 bytes, one logical processor, APIC id 0.
            leaf(1, [signature, 0x0001_0800, leaf1_ecx, leaf1_edx]),
            leaf(2, [0x0000_0001, 0, 0, 0]),
        ];
        for function in 3..=0x14 {
            entries.push(leaf(function, [0; 4]));
        }
        // TSC = 25 MHz crystal * 40 / 1; base frequency 1000 MHz: the kernel need not calibrate against the PIT.
        entries.push(leaf(0x15, [1, 40, 25_000_000, 0]));
        entries.push(leaf(0x16, [1000, 1000, 100, 0]));
        entries.push(leaf(0x8000_0000, [0x8000_0008, 0, 0, 0]));
        // LAHF in 64-bit mode.
        entries.push(leaf(0x8000_0001, [signature, 0, 1, extended_edx]));
        for (index, registers) in brand.into_iter().enumerate() {
            entries.push(leaf(0x8000_0002 + index as u32, registers));
        }
        entries.push(leaf(0x8000_0005, [0; 4]));
        entries.push(leaf(0x8000_0006, [0, 0, 0x0100_6040, 0]));
        // Invariant TSC.
        entries.push(leaf(0x8000_0007, [0, 0, 0, 1 << 8]));
        // 40 physical and 48 linear address bits.
        entries.push(leaf(0x8000_0008, [0x3028, 0, 0, 0]));
        CpuId::from_entries(&entries).unwrap_or_else(|_| unreachable!("the table is far below KVM_MAX_CPUID_ENTRIES"))
    }
}

fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    // Leaves whose answer depends on ECX are flagged so that KVM serves this entry for index 0 only.
    let flags = if matches!(function, 4 | 7 | 0xb | 0xd | 0xf | 0x10 | 0x12 | 0x14) {
        KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    } else {
        0
    };
    kvm_cpuid_entry2 {
        function,
        index: 0,
        flags,
        eax,
        ebx,
        ecx,
        edx,
        padding: [0; 3],
    }
}

fn brand_leaves(brand: &str) -> [[u32; 4]; 3] {
    let mut bytes = [0u8; 48];
    let len = brand.len().min(47);
    bytes[..len].copy_from_slice(&brand.as_bytes()[..len]);
    let mut leaves = [[0; 4]; 3];
    for (index, word) in bytes.chunks_exact(4).enumerate() {
        leaves[index / 4][index % 4] = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
    }
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(profile: Profile, function: u32) -> kvm_cpuid_entry2 {
        let table = profile.cpuid();
        let found = table.as_slice().iter().find(|entry| entry.function == function);
        *found.expect("leaf is in the table")
    }

    #[test]
    fn nothing_that_lets_the_kernel_see_the_host_is_shown() {
        for profile in Profile::ALL {
            let one = find(profile, 1);
            for (name, bit) in [
                ("RDRAND", 30),
                ("XSAVE", 26),
                ("OSXSAVE", 27),
                ("AVX", 28),
                ("x2APIC", 21),
                ("hypervisor", 31),
            ] {
                assert_eq!(one.ecx >> bit & 1, 0, "{name} in {}", profile.name());
            }
            assert_eq!(one.edx >> 9 & 1, 0, "local APIC");
            assert_eq!(find(profile, 7).ebx, 0, "RDSEED, SMAP, SMEP, FSGSBASE, RTM");
            assert_eq!(find(profile, 0x8000_0001).edx >> 27 & 1, 0, "RDTSCP");
            assert_eq!(find(profile, 0xa).eax, 0, "PMU");
        }
    }

    #[test]
    fn leaf_15_says_one_gigahertz() {
        let leaf = find(Profile::Intel1, 0x15);
        assert_eq!(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax), TSC_HZ);
    }

    #[test]
    fn names_are_found_again() {
        for profile in Profile::ALL {
            assert_eq!(Profile::by_name(profile.name()), Some(profile));
        }
        assert_eq!(Profile::by_name("host"), None);
    }
}
