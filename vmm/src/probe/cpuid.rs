//! What CPUID shows to the guest, against the table that was asked for with KVM_SET_CPUID2.
//!
//! Decides: whether the CPU profile binds. Where KVM adds to it, the guest sees features that the profile hides on
//! purpose, and the guest kernel must be told not to use them; two hosts are of one class only if KVM adds the same.

use std::time::Duration;

use iced_x86::code_asm::{dword_ptr, eax, ebx, ecx, edx, r8};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};
use xxhash_rust::xxh3::Xxh3;

use super::ProbeError;
use super::bench::{Bench, Event};
use super::signals::done;
use crate::cpu::profile::Profile;
use crate::micro::{DATA, MicroGuest, Ring};

/// Registers of one leaf: EAX, EBX, ECX, EDX.
type Registers = [u32; 4];

/// A leaf that KVM serves differently from what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Altered {
    /// EAX at the instruction.
    pub leaf: u32,
    /// EAX, EBX, ECX, EDX in the profile.
    pub wanted: Registers,
    /// What KVM_GET_CPUID2 says instead.
    pub have: Registers,
}

/// What the guest reads in one ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reads {
    /// KVM's table, every leaf of it.
    Table,
    /// Other values in these leaves: those of the host, most likely.
    Differs(Vec<u32>),
    /// The guest did not get so far.
    Other(String),
}

impl std::fmt::Display for Reads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Table => f.write_str("KVM's table"),
            Self::Differs(leaves) => write!(f, "not KVM's table, in {} leaves", leaves.len()),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// CPUID as the guest has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidTest {
    /// Leaves that KVM changed.
    pub altered: Vec<Altered>,
    /// Features that the profile hides and KVM shows.
    pub shown: Vec<String>,
    /// What ring 0 reads.
    pub kernel: Reads,
    /// What ring 3 reads.
    pub user: Reads,
}

/// Sizes of the XSAVE area.
const XSAVE_LEAF: u32 = 0xd;

/// Features that matter to determinism or to KVM's emulator: leaf, register (EAX is 0), bit, name as Linux has it.
const FEATURES: [(u32, usize, u32, &str); 24] = [
    (1, 2, 3, "monitor"),
    (1, 2, 12, "fma"),
    (1, 2, 13, "cx16"),
    (1, 2, 21, "x2apic"),
    (1, 2, 23, "popcnt"),
    (1, 2, 24, "tsc_deadline_timer"),
    (1, 2, 26, "xsave"),
    (1, 2, 27, "osxsave"),
    (1, 2, 28, "avx"),
    (1, 2, 30, "rdrand"),
    (1, 2, 31, "hypervisor"),
    (1, 3, 9, "apic"),
    (7, 1, 0, "fsgsbase"),
    (7, 1, 4, "hle"),
    (7, 1, 5, "avx2"),
    (7, 1, 7, "smep"),
    (7, 1, 11, "rtm"),
    (7, 1, 16, "avx512f"),
    (7, 1, 18, "rdseed"),
    (7, 1, 20, "smap"),
    (7, 2, 3, "pku"),
    (7, 2, 5, "waitpkg"),
    (7, 2, 22, "rdpid"),
    (0x8000_0001, 3, 27, "rdtscp"),
];

fn registers(entry: &kvm_cpuid_entry2) -> Registers {
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

/// The entry that CPUID with ECX = 0 reads.
fn find(table: &CpuId, leaf: u32) -> Option<Registers> {
    table
        .as_slice()
        .iter()
        .find(|entry| entry.function == leaf && entry.index == 0)
        .map(registers)
}

/// Compares the profile with what KVM made of it, and that with what the guest reads.
pub fn survey(bench: &mut Bench<'_>, profile: Profile, limit: Duration) -> Result<CpuidTest, ProbeError> {
    let wanted = profile.cpuid();
    let have = bench
        .vcpu()
        .fd()
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(|cause| crate::cpu::VmError::Kvm {
            what: "KVM_GET_CPUID2",
            cause: cause.into(),
        })?;
    let altered: Vec<_> = wanted
        .as_slice()
        .iter()
        .filter_map(|entry| {
            let leaf = entry.function;
            let (wanted, mut have) = (registers(entry), find(&have, leaf).unwrap_or_default());
            if leaf == XSAVE_LEAF {
                // KVM itself computes EBX from the guest's XCR0: the same on every host.
                have[1] = wanted[1];
            }
            (wanted != have).then_some(Altered { leaf, wanted, have })
        })
        .collect();
    let shown = FEATURES
        .iter()
        .filter(|&&(leaf, register, bit, _)| {
            altered
                .iter()
                .any(|a| a.leaf == leaf && (a.have[register] & !a.wanted[register]) >> bit & 1 == 1)
        })
        .map(|&(_, _, _, name)| name.to_owned())
        .collect();
    let leaves: Vec<_> = wanted.as_slice().iter().map(|entry| entry.function).collect();
    Ok(CpuidTest {
        altered,
        shown,
        kernel: reads(bench, Ring::Kernel, &leaves, &have, limit)?,
        user: reads(bench, Ring::User, &leaves, &have, limit)?,
    })
}

fn reads(
    bench: &mut Bench<'_>,
    ring: Ring,
    leaves: &[u32],
    have: &CpuId,
    limit: Duration,
) -> Result<Reads, ProbeError> {
    let guest = MicroGuest::new(ring, |a| {
        a.mov(r8, DATA)?;
        for &leaf in leaves {
            a.mov(eax, leaf)?;
            a.xor(ecx, ecx)?;
            a.cpuid()?;
            a.mov(dword_ptr(r8), eax)?;
            a.mov(dword_ptr(r8 + 4), ebx)?;
            a.mov(dword_ptr(r8 + 8), ecx)?;
            a.mov(dword_ptr(r8 + 12), edx)?;
            a.add(r8, 16)?;
        }
        done(a)
    });
    let event = bench.first(&guest, limit)?;
    if event != Event::Done {
        return Ok(Reads::Other(format!("the guest {}", event.describe())));
    }
    let mut differs = Vec::new();
    for (index, &leaf) in leaves.iter().enumerate() {
        let mut bytes = [0; 16];
        bench
            .memory()
            .ram()
            .read_slice(&mut bytes, GuestAddress(DATA + index as u64 * 16))
            .map_err(|error| ProbeError::Guest(error.into()))?;
        let (words, _) = bytes.as_chunks::<4>();
        let read = [0, 1, 2, 3].map(|register| u32::from_le_bytes(words[register]));
        if read != find(have, leaf).unwrap_or_default() {
            differs.push(leaf);
        }
    }
    Ok(if differs.is_empty() {
        Reads::Table
    } else {
        Reads::Differs(differs)
    })
}

impl CpuidTest {
    /// The guest sees exactly the profile, in both rings.
    pub fn binds(&self) -> bool {
        self.altered.is_empty() && self.kernel == Reads::Table && self.user == Reads::Table
    }

    /// A short word for what KVM made of the table: the same for two hosts only if the guest sees the same.
    pub fn fingerprint(&self) -> String {
        if self.altered.is_empty() {
            return "profile".into();
        }
        let mut hasher = Xxh3::new();
        for altered in &self.altered {
            hasher.update(&altered.leaf.to_le_bytes());
            for register in altered.have {
                hasher.update(&register.to_le_bytes());
            }
        }
        format!("altered-{:08x}", hasher.digest() as u32)
    }
}
