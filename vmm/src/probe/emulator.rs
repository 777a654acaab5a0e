//! Instructions that KVM's emulator declines in ring 0.
//!
//! Decides: which instructions of a guest kernel the machine's assist must execute on this host. Where a CPU executes
//! ring 0 this list is empty: an instruction that the CPU profile hides faults, as it should.

use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, dword_ptr, eax, ebx, ecx, edx, ptr, r8, rcx, xmm0, xmm1, xmmword_ptr};
use serde::{Deserialize, Serialize};

use super::ProbeError;
use super::bench::{Bench, Event, vector_name};
use super::signals::done;
use crate::micro::{DATA, MicroGuest, Ring};
use crate::sys::vcpu::Exit;

/// What became of one instruction in ring 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// Its mnemonic.
    pub instruction: String,
    /// What happened.
    pub fate: Fate,
}

/// What became of an instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Executed.
    Executes,
    /// An exception.
    Faults(u8),
    /// KVM_EXIT_INTERNAL_ERROR, suberror 1, with RIP on the instruction.
    Declined,
    /// Something else.
    Other(String),
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Executes => f.write_str("executes"),
            Self::Faults(vector) => f.write_str(&vector_name(*vector)),
            Self::Declined => f.write_str("declined"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// The instructions tried, each as the last one of its body. R8 points to 4 KiB of aligned, zeroed memory.
const TRIED: [(&str, Body); 20] = [
    ("int3", |a| a.int3()),
    ("fwait", |a| a.wait()),
    ("fninit", |a| a.fninit()),
    ("fnclex", |a| a.fnclex()),
    ("emms", |a| a.emms()),
    ("clac", |a| a.clac()),
    ("stac", |a| a.stac()),
    ("popcnt", |a| a.popcnt(eax, ebx)),
    ("cmpxchg8b", |a| a.cmpxchg8b(ptr(r8))),
    ("cmpxchg16b", |a| a.cmpxchg16b(ptr(r8))),
    ("rdtscp", |a| a.rdtscp()),
    ("xgetbv", |a| a.xgetbv()),
    ("xsave", |a| a.xsave(ptr(r8))),
    ("xrstor", |a| a.xrstor(ptr(r8))),
    ("fxsave", |a| a.fxsave(ptr(r8))),
    ("ldmxcsr", |a| a.ldmxcsr(dword_ptr(r8 + 0x800))),
    ("stmxcsr", |a| a.stmxcsr(dword_ptr(r8))),
    ("movaps load", |a| a.movaps(xmm0, xmmword_ptr(r8))),
    ("pxor", |a| a.pxor(xmm0, xmm0)),
    ("vpxor (VEX)", |a| a.vpxor(xmm0, xmm1, xmm1)),
];

/// Tries each.
pub fn survey(bench: &mut Bench<'_>, limit: Duration) -> Result<Vec<Tried>, ProbeError> {
    TRIED
        .into_iter()
        .map(|(name, body)| {
            let guest = MicroGuest::new(Ring::Kernel, |a| {
                a.mov(r8, DATA)?;
                a.xor(eax, eax)?;
                a.xor(edx, edx)?;
                a.mov(ebx, 0x77)?;
                a.xor(ecx, ecx)?;
                a.mov(rcx, rcx)?;
                body(a)?;
                done(a)
            })
            .data(DATA, &[0; 4096])
            .data(DATA + 0x800, &0x1f80_u32.to_le_bytes());
            // Six instructions stand before it.
            let at = guest.address(6);
            let fate = match bench.first(&guest, limit)? {
                Event::Done => Fate::Executes,
                // INT3 that reaches the guest's own handler has executed.
                Event::Frame(frame) if frame.vector == 3 => Fate::Executes,
                Event::Frame(frame) => Fate::Faults(frame.vector),
                Event::Exit(Exit::EmulationFailed) if bench.regs()?.rip == at => Fate::Declined,
                other => Fate::Other(format!("the guest {}", other.describe())),
            };
            Ok(Tried {
                instruction: name.into(),
                fate,
            })
        })
        .collect()
}
