//! What every start needs to know: the class of this host, and the strategies that follow. Takes some tens of
//! milliseconds.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ProbeError;
use super::bench::{Bench, Lab};
use super::cpuid::{self, CpuidTest, Reads};
use super::engine::{self, Engine, Rate};
use super::interrupts::{self, Window};
use super::paging::{self, Paging};
use super::sensitive::{self, Sensitive, Sight};
use super::states;
use super::syscall::{self, Syscall};
use crate::micro::Ring;

/// The host's CPU as CPUID shows it to this program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// `GenuineIntel`, `AuthenticAMD` ...
    pub vendor: String,
    /// Family with the extended family added.
    pub family: u32,
    /// Model with the extended model.
    pub model: u32,
}

impl Cpu {
    /// This host's.
    pub fn of_this_host() -> Self {
        let leaf = std::arch::x86_64::__cpuid(0);
        let vendor: Vec<u8> = [leaf.ebx, leaf.edx, leaf.ecx]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        let signature = std::arch::x86_64::__cpuid(1).eax;
        let (family, model) = family_and_model(signature);
        Self {
            vendor: String::from_utf8_lossy(&vendor).trim_end_matches('\0').to_owned(),
            family,
            model,
        }
    }
}

/// Family and model of a CPU signature (Intel SDM volume 2A, CPUID, leaf 1).
fn family_and_model(signature: u32) -> (u32, u32) {
    let base = signature >> 8 & 0xf;
    let family = if base == 0xf {
        base + (signature >> 20 & 0xff)
    } else {
        base
    };
    let low = signature >> 4 & 0xf;
    let model = if base == 0xf || base == 6 {
        low | (signature >> 16 & 0xf) << 4
    } else {
        low
    };
    (family, model)
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vendor = match self.vendor.as_str() {
            "GenuineIntel" => "intel",
            "AuthenticAMD" => "amd",
            other => other,
        };
        write!(f, "{vendor}-{}-{}", self.family, self.model)
    }
}

/// The findings that a start rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Essentials {
    /// The CPU.
    pub cpu: Cpu,
    /// What executes ring 0.
    pub engine: Engine,
    /// How fast.
    pub kernel_rate: Rate,
    /// Who walks page tables.
    pub paging: Paging,
    /// Where a window opens in ring 0.
    pub kernel_window: Window,
    /// Where a window opens on the way to ring 3.
    pub user_window: Window,
    /// RDTSC in ring 0.
    pub kernel_rdtsc: Sight,
    /// RDTSC in ring 3.
    pub user_rdtsc: Sight,
    /// RDTSC in ring 3 with CR4.TSD set.
    pub user_rdtsc_with_tsd: Sight,
    /// RDRAND, which the profile hides, in ring 3.
    pub user_rdrand: Sight,
    /// What CPUID shows.
    pub cpuid: CpuidTest,
    /// SYSCALL in ring 3.
    pub syscall: Syscall,
    /// KVM keeps less of IA32_SYSENTER_ESP or _EIP than it is given.
    pub cuts_msrs: bool,
}

/// #GP.
const GP_VECTOR: u8 = 13;
/// Time that an experiment may take here. Far more than any needs: only a KVM that is broken reaches it, and the class
/// of a host must not depend on how busy it is.
const LIMIT: Duration = Duration::from_secs(10);
/// Time over which the rate of ring 0 is measured.
const RATE_TIME: Duration = Duration::from_millis(8);

/// Makes the experiments.
pub fn survey(lab: &Lab) -> Result<Essentials, ProbeError> {
    let mut bench = lab.bench()?;
    let sight = |bench: &mut Bench<'_>, instruction, ring| sensitive::sight(bench, instruction, ring, LIMIT);
    Ok(Essentials {
        cpu: Cpu::of_this_host(),
        engine: engine::engine(&mut bench, LIMIT)?,
        kernel_rate: engine::rate(&mut bench, Ring::Kernel, RATE_TIME, LIMIT)?,
        paging: paging::survey(&mut bench, LIMIT)?.paging,
        kernel_window: interrupts::window(&mut bench, Ring::Kernel, false, LIMIT)?,
        user_window: interrupts::window(&mut bench, Ring::User, false, LIMIT)?,
        kernel_rdtsc: sight(&mut bench, Sensitive::Rdtsc, Ring::Kernel)?,
        user_rdtsc: sight(&mut bench, Sensitive::Rdtsc, Ring::User)?,
        user_rdtsc_with_tsd: sight(&mut bench, Sensitive::RdtscWithTsd, Ring::User)?,
        user_rdrand: sight(&mut bench, Sensitive::Rdrand, Ring::User)?,
        cpuid: cpuid::survey(&mut bench, lab.profile, LIMIT)?,
        syscall: syscall::survey(&mut bench, LIMIT)?,
        cuts_msrs: states::cuts_msrs(&mut bench)?,
    })
}

impl Essentials {
    /// Whether "the first window after stop n" names one instruction.
    pub fn windows_exact(&self) -> bool {
        self.kernel_window == Window::Exact && self.user_window == Window::Exact
    }

    /// Whether CR4.TSD brings RDTSC in ring 3 under control.
    pub fn tsd_works(&self) -> bool {
        self.engine == Engine::Cpu && self.user_rdtsc_with_tsd == Sight::Faults(GP_VECTOR)
    }

    /// What kind of host this is, for people: whose CPU, and what runs ring 0.
    pub fn kind(&self) -> String {
        let vendor = match self.cpu.vendor.as_str() {
            "AuthenticAMD" => "AMD",
            "GenuineIntel" => "Intel",
            other => other,
        };
        let ring0 = match &self.engine {
            Engine::Cpu => "the CPU runs the guest's kernel",
            Engine::Emulator => "KVM interprets the guest's kernel",
            Engine::Unknown(_) => "it is not known what runs the guest's kernel",
        };
        format!("{vendor}, {ring0}")
    }

    /// The class of this host: hosts whose strings differ cannot replay each other's logs.
    ///
    /// Only what is the same at every start is in it: no times, no counts, no values.
    pub fn class(&self) -> String {
        let engine = match &self.engine {
            Engine::Cpu => "native",
            Engine::Emulator => "emulated",
            Engine::Unknown(_) => "unknown",
        };
        let paging = match &self.paging {
            Paging::Hardware => "hardware",
            Paging::Shadow => "shadow",
            Paging::Unknown(_) => "unknown",
        };
        let cpuid3 = match &self.cpuid.user {
            Reads::Table => "table",
            Reads::Differs(_) => "host",
            Reads::Other(_) => "unknown",
        };
        // What the engine is known for, and not what was seen: where nothing in a log depends on a window, a busy host that opens
        // one late is still the same host. Versions before compare the whole string, so the word stays.
        let windows = match &self.engine {
            Engine::Cpu => "exact",
            Engine::Emulator | Engine::Unknown(_) => "inexact",
        };
        let syscall = match &self.syscall {
            Syscall::EntersKernel => "ring0",
            Syscall::StaysInUser => "ring3",
            Syscall::Faults(_) => "faults",
            Syscall::Declined | Syscall::Other(_) => "unknown",
        };
        // Said only where it is so: elsewhere the class is what it was before this was asked.
        let tsd = if self.tsd_works() { " tsd=traps" } else { "" };
        let msrs = if self.cuts_msrs { " sysenter=cut" } else { "" };
        format!(
            "{} ring0={engine} paging={paging} windows={windows} rdtsc0={} rdtsc3={} rdrand3={} cpuid={} cpuid3={cpuid3} syscall={syscall}{tsd}{msrs}",
            self.cpu,
            word(&self.kernel_rdtsc),
            word(&self.user_rdtsc),
            word(&self.user_rdrand),
            self.cpuid.fingerprint(),
        )
    }
}

fn word(sight: &Sight) -> &'static str {
    match sight {
        Sight::Exits => "exits",
        Sight::Host => "host",
        Sight::Faults(_) => "faults",
        Sight::Declined => "declined",
        Sight::Other(_) => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_taken_apart_as_the_manuals_say() {
        assert_eq!(family_and_model(0x000c_06f2), (6, 0xcf));
        assert_eq!(family_and_model(0x0080_0f12), (0x17, 0x01));
        assert_eq!(
            family_and_model(0x0000_0543),
            (5, 4),
            "no extended model outside families 6 and 15"
        );
    }
}
