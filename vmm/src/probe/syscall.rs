//! SYSCALL and INT n in ring 3.
//!
//! Decides: whether an ordinary guest kernel can serve its programs, or needs the patch that turns the fault on its
//! entry point into the system call.

use std::fmt;
use std::time::Duration;

use iced_x86::code_asm::{cs, eax};
use serde::{Deserialize, Serialize};

use super::ProbeError;
use super::bench::{Bench, Event, vector_name};
use super::msrs::Outcome;
use super::signals::done;
use crate::micro::{DATA, MicroGuest, Ring};
use crate::sys::vcpu::Exit;

/// Where SYSCALL goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Syscall {
    /// To LSTAR in ring 0.
    EntersKernel,
    /// To LSTAR, still in ring 3.
    StaysInUser,
    /// An exception at the instruction.
    Faults(u8),
    /// KVM's emulator declines it.
    Declined,
    /// Something else.
    Other(String),
}

impl fmt::Display for Syscall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EntersKernel => f.write_str("enters ring 0 at LSTAR"),
            Self::StaysInUser => f.write_str("goes to LSTAR without leaving ring 3"),
            Self::Faults(vector) => f.write_str(&vector_name(*vector)),
            Self::Declined => f.write_str("declined by the emulator"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// Executes SYSCALL in ring 3 and reads CS at its target.
pub fn survey(bench: &mut Bench<'_>, limit: Duration) -> Result<Syscall, ProbeError> {
    let guest = MicroGuest::new(Ring::User, |a| {
        a.syscall()?;
        a.nop()?;
        // Not reached: the target ends the guest.
        a.ud2()
    })
    .with_syscall(DATA)
    .code(DATA, |a| {
        a.mov(eax, cs)?;
        done(a)
    });
    Ok(match bench.first(&guest, limit)? {
        Event::Done if bench.regs()?.rax & 3 == 0 => Syscall::EntersKernel,
        Event::Done => Syscall::StaysInUser,
        // The target's port write was refused, or its fetch: the frame says in which ring.
        Event::Frame(frame) if (DATA..DATA + 16).contains(&frame.rip) => {
            if frame.ring() == Ring::Kernel {
                Syscall::EntersKernel
            } else {
                Syscall::StaysInUser
            }
        }
        Event::Frame(frame) => Syscall::Faults(frame.vector),
        Event::Exit(Exit::EmulationFailed) => Syscall::Declined,
        other => Syscall::Other(format!("the guest {}", other.describe())),
    })
}

/// Executes INT 80H in ring 3, whose gate is open to it.
pub fn int80(bench: &mut Bench<'_>, limit: Duration) -> Result<Outcome, ProbeError> {
    let guest = MicroGuest::new(Ring::User, |a| {
        a.int(0x80)?;
        done(a)
    });
    Ok(match bench.first(&guest, limit)? {
        Event::Frame(frame) if frame.vector == 0x80 && frame.rip == guest.address(1) => Outcome::Works,
        other => Outcome::Instead(format!("the guest {}", other.describe())),
    })
}
