//! The instructions that show the host: RDTSC, RDTSCP, RDRAND, RDSEED, XGETBV, RDPMC, RDPID, XTEST.
//!
//! Decides: which of them come into the log by themselves, which must be rewritten in the guest kernel, and which
//! cannot be controlled in the guest's programs, so that a program that executes them diverges (and is healed).

use std::fmt;
use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, ebx, ecx, rax, rdx, rsi};
use serde::{Deserialize, Serialize};

use super::ProbeError;
use super::bench::{Bench, Event, vector_name};
use super::signals::done;
use crate::micro::{CR4_TSD, MicroGuest, Ring};
use crate::sys::vcpu::Exit;

/// An instruction whose result depends on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sensitive {
    /// RDTSC.
    Rdtsc,
    /// RDTSC with CR4.TSD = 1: must fault in ring 3.
    RdtscWithTsd,
    /// RDTSCP.
    Rdtscp,
    /// RDRAND.
    Rdrand,
    /// RDSEED.
    Rdseed,
    /// XGETBV with CR4.OSXSAVE = 0: must fault.
    Xgetbv,
    /// RDPMC with CR4.PCE = 0: must fault in ring 3.
    Rdpmc,
    /// RDPID, which shows the processor's number.
    Rdpid,
    /// XTEST: transactional memory is there.
    Xtest,
}

impl Sensitive {
    /// All.
    pub const ALL: [Self; 9] = [
        Self::Rdtsc,
        Self::RdtscWithTsd,
        Self::Rdtscp,
        Self::Rdrand,
        Self::Rdseed,
        Self::Xgetbv,
        Self::Rdpmc,
        Self::Rdpid,
        Self::Xtest,
    ];

    /// The mnemonic.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rdtsc => "RDTSC",
            Self::RdtscWithTsd => "RDTSC with CR4.TSD",
            Self::Rdtscp => "RDTSCP",
            Self::Rdrand => "RDRAND",
            Self::Rdseed => "RDSEED",
            Self::Xgetbv => "XGETBV",
            Self::Rdpmc => "RDPMC",
            Self::Rdpid => "RDPID",
            Self::Xtest => "XTEST",
        }
    }

    /// A name for programs.
    pub fn key(self) -> &'static str {
        match self {
            Self::Rdtsc => "rdtsc",
            Self::RdtscWithTsd => "rdtsc-with-tsd",
            Self::Rdtscp => "rdtscp",
            Self::Rdrand => "rdrand",
            Self::Rdseed => "rdseed",
            Self::Xgetbv => "xgetbv",
            Self::Rdpmc => "rdpmc",
            Self::Rdpid => "rdpid",
            Self::Xtest => "xtest",
        }
    }

    /// Whether the loader rewrites it in a guest kernel.
    pub fn is_rewritten(self) -> bool {
        matches!(
            self,
            Self::Rdtsc | Self::RdtscWithTsd | Self::Rdtscp | Self::Rdrand | Self::Rdseed
        )
    }

    /// Executes it and leaves what it gave in RAX, twice: the first time's is in RSI.
    fn assemble(self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        for round in 0..2 {
            match self {
                Self::Rdtsc | Self::RdtscWithTsd => {
                    a.rdtsc()?;
                    a.shl(rdx, 32)?;
                    a.or(rax, rdx)?;
                }
                Self::Rdtscp => {
                    a.rdtscp()?;
                    a.shl(rdx, 32)?;
                    a.or(rax, rdx)?;
                }
                Self::Rdrand => a.rdrand(rax)?,
                Self::Rdseed => a.rdseed(rax)?,
                Self::Xgetbv => {
                    a.mov(ecx, 0)?;
                    a.xgetbv()?;
                }
                Self::Rdpmc => {
                    a.mov(ecx, 0)?;
                    a.rdpmc()?;
                }
                Self::Rdpid => a.rdpid(rax)?,
                Self::Xtest => a.xtest()?,
            }
            if round == 0 {
                a.mov(rsi, rax)?;
                // Time passes.
                let mut again = a.create_label();
                a.mov(ebx, 100)?;
                a.set_label(&mut again)?;
                a.dec(ebx)?;
                a.jne(again)?;
            }
        }
        Ok(())
    }
}

/// What the guest gets from a sensitive instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sight {
    /// It exits to us, so its result can be logged.
    Exits,
    /// The host's value.
    Host,
    /// An exception, as on a CPU without it.
    Faults(u8),
    /// KVM's emulator declines it: it reaches us and can be answered.
    Declined,
    /// Something else.
    Other(String),
}

impl Sight {
    /// Whether it is the same on every host that has our table, or reaches us.
    pub fn is_controlled(&self) -> bool {
        matches!(self, Self::Exits | Self::Faults(_) | Self::Declined)
    }
}

impl fmt::Display for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exits => f.write_str("exits"),
            Self::Host => f.write_str("host value"),
            Self::Faults(vector) => f.write_str(&vector_name(*vector)),
            Self::Declined => f.write_str("declined by the emulator"),
            Self::Other(what) => write!(f, "the guest {what}"),
        }
    }
}

/// One instruction in both rings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The instruction.
    pub instruction: Sensitive,
    /// In ring 0.
    pub kernel: Sight,
    /// In ring 3.
    pub user: Sight,
}

/// Executes one instruction in one ring.
pub fn sight(bench: &mut Bench<'_>, instruction: Sensitive, ring: Ring, limit: Duration) -> Result<Sight, ProbeError> {
    let mut guest = MicroGuest::new(ring, |a| {
        instruction.assemble(a)?;
        done(a)
    });
    if instruction == Sensitive::RdtscWithTsd {
        guest = guest.with_cr4(CR4_TSD);
    }
    Ok(match bench.first(&guest, limit)? {
        Event::Done => {
            let regs = bench.regs()?;
            match instruction {
                Sensitive::Rdtsc | Sensitive::RdtscWithTsd | Sensitive::Rdtscp if regs.rax == regs.rsi => {
                    Sight::Other(format!("read {:#x} twice", regs.rax))
                }
                _ => Sight::Host,
            }
        }
        Event::Frame(frame) => Sight::Faults(frame.vector),
        Event::Exit(Exit::EmulationFailed) => Sight::Declined,
        Event::Exit(Exit::Other { .. }) => Sight::Exits,
        other => Sight::Other(other.describe()),
    })
}

/// Executes all in both rings.
pub fn survey(bench: &mut Bench<'_>, limit: Duration) -> Result<Vec<Seen>, ProbeError> {
    Sensitive::ALL
        .into_iter()
        .map(|instruction| {
            Ok(Seen {
                instruction,
                kernel: sight(bench, instruction, Ring::Kernel, limit)?,
                user: sight(bench, instruction, Ring::User, limit)?,
            })
        })
        .collect()
}
