//! Exits of RDMSR and WRMSR.
//!
//! Decides: whether the guest's MSRs are under our control. The machine rests on it: IA32_TSC is guest time.

use std::time::Duration;

use iced_x86::code_asm::{eax, ecx, edx};
use serde::{Deserialize, Serialize};

use super::ProbeError;
use super::bench::{Bench, Event};
use super::signals::done;
use crate::cpu::msr;
use crate::micro::{MicroGuest, Ring};
use crate::sys::vcpu::Exit;

/// An MSR that no CPU has (Intel SDM volume 4 reserves 4000_0000H to 4000_00FFH for it).
const NO_MSR: u32 = 0x4000_00ff;
const APIC_BASE: u32 = 0x1b;
const VALUE: u64 = 0x1122_3344_5566_7788;

/// Which accesses exit, and whether their answers arrive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msrs {
    /// RDMSR of a filtered MSR exits, and the value that we answer is what the guest reads.
    pub read: Outcome,
    /// WRMSR of a filtered MSR exits with its value.
    pub write: Outcome,
    /// RDMSR of an unknown MSR exits, and faults if we answer so.
    pub unknown: Outcome,
    /// RDMSR of IA32_APIC_BASE exits too.
    pub apic_base: Outcome,
}

impl Msrs {
    /// All that the machine rests on work: the guest is told that it has no APIC.
    pub fn work(&self) -> bool {
        [&self.read, &self.write, &self.unknown]
            .into_iter()
            .all(|outcome| *outcome == Outcome::Works)
    }
}

/// Whether something works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// As it should.
    Works,
    /// What happened instead.
    Instead(String),
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Works => f.write_str("works"),
            Self::Instead(what) => f.write_str(what),
        }
    }
}

/// Tries all three.
pub fn survey(bench: &mut Bench<'_>, limit: Duration) -> Result<Msrs, ProbeError> {
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(ecx, msr::TSC)?;
        a.rdmsr()?;
        done(a)
    });
    let read = match bench.first(&guest, limit)? {
        Event::Exit(Exit::ReadMsr { index: msr::TSC }) => {
            bench.vcpu().answer_msr(Some(VALUE));
            let event = bench.next_event();
            let regs = bench.regs()?;
            match event {
                Event::Done if regs.rax == VALUE & 0xffff_ffff && regs.rdx == VALUE >> 32 => Outcome::Works,
                Event::Done => Outcome::Instead(format!("the guest read {:#x}:{:#x}", regs.rdx, regs.rax)),
                other => Outcome::Instead(format!("after the answer the guest {}", other.describe())),
            }
        }
        other => Outcome::Instead(format!("the guest {}", other.describe())),
    };
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(ecx, msr::TSC)?;
        a.mov(eax, VALUE as u32)?;
        a.mov(edx, (VALUE >> 32) as u32)?;
        a.wrmsr()?;
        done(a)
    });
    let write = match bench.first(&guest, limit)? {
        Event::Exit(Exit::WriteMsr {
            index: msr::TSC,
            value: VALUE,
        }) => {
            bench.vcpu().answer_msr(Some(0));
            match bench.next_event() {
                Event::Done => Outcome::Works,
                other => Outcome::Instead(format!("after the answer the guest {}", other.describe())),
            }
        }
        other => Outcome::Instead(format!("the guest {}", other.describe())),
    };
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(ecx, NO_MSR)?;
        a.rdmsr()?;
        done(a)
    });
    let unknown = match bench.first(&guest, limit)? {
        Event::Exit(Exit::ReadMsr { index: NO_MSR }) => {
            bench.vcpu().answer_msr(None);
            match bench.next_event() {
                Event::Frame(frame) if frame.vector == 13 && frame.rip == guest.address(1) => Outcome::Works,
                other => Outcome::Instead(format!("after the refusal the guest {}", other.describe())),
            }
        }
        other => Outcome::Instead(format!("the guest {}", other.describe())),
    };
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(ecx, APIC_BASE)?;
        a.rdmsr()?;
        done(a)
    });
    let apic_base = match bench.first(&guest, limit)? {
        Event::Exit(Exit::ReadMsr { index: APIC_BASE }) => Outcome::Works,
        Event::Done => Outcome::Instead("answered by KVM, whatever the filter says".into()),
        other => Outcome::Instead(format!("the guest {}", other.describe())),
    };
    Ok(Msrs {
        read,
        write,
        unknown,
        apic_base,
    })
}
