//! Single-stepping and breakpoints.
//!
//! Decides: what the debugger can use, and whether a position inside a slice could be reached by stepping.

use std::fmt;
use std::time::{Duration, Instant};

use iced_x86::code_asm::{rax, rbx, rdx};
use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, kvm_guest_debug,
};
use serde::{Deserialize, Serialize};

use super::ProbeError;
use super::bench::{Bench, Event, vector_name};
use super::signals::done;
use crate::micro::{MicroGuest, Ring};
use crate::sys::vcpu::Exit;

/// Instructions stepped over.
const STEPS: usize = 240;
/// The instruction with the breakpoint.
const TARGET: usize = 5;

/// What a debugging aid of KVM's does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aid {
    /// Exits to us at the right instruction; nanoseconds a time.
    Works {
        /// Round trip of one exit.
        ns: u64,
    },
    /// Exits to us, but at another instruction.
    Misplaced,
    /// The guest gets the exception; whether at the right instruction.
    Guest {
        /// Its vector.
        vector: u8,
        /// At the right instruction.
        exact: bool,
    },
    /// Nothing happens.
    Nothing,
    /// KVM's emulator declines the instruction.
    Declined,
    /// Something else.
    Other(String),
}

impl Aid {
    /// Usable by us.
    pub fn works(&self) -> bool {
        matches!(self, Self::Works { .. })
    }
}

impl fmt::Display for Aid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works { ns } => write!(f, "exact, {:.1} us", *ns as f64 / 1e3),
            Self::Misplaced => f.write_str("exits at the wrong instruction"),
            Self::Guest { vector, exact } => {
                let place = if *exact {
                    "at the right instruction"
                } else {
                    "at a wrong instruction"
                };
                write!(f, "no exit: the guest gets {}, {place}", vector_name(*vector))
            }
            Self::Nothing => f.write_str("nothing happens"),
            Self::Declined => f.write_str("declined by the emulator"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// All aids in one ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aids {
    /// KVM_GUESTDBG_SINGLESTEP.
    pub step: Aid,
    /// KVM_GUESTDBG_USE_HW_BP.
    pub hardware: Aid,
    /// KVM_GUESTDBG_USE_SW_BP (INT3).
    pub software: Aid,
}

/// Tries all aids in `ring`.
pub fn survey(bench: &mut Bench<'_>, ring: Ring, limit: Duration) -> Result<Aids, ProbeError> {
    Ok(Aids {
        step: step(bench, ring, limit)?,
        hardware: breakpoint(bench, ring, limit, Kind::Hardware)?,
        software: breakpoint(bench, ring, limit, Kind::Software)?,
    })
}

fn other(event: &Event) -> Aid {
    match event {
        Event::Exit(Exit::EmulationFailed) => Aid::Declined,
        event => Aid::Other(format!("the guest {}", event.describe())),
    }
}

fn step(bench: &mut Bench<'_>, ring: Ring, limit: Duration) -> Result<Aid, ProbeError> {
    let guest = MicroGuest::new(ring, |a| {
        for _ in 0..STEPS / 4 {
            a.inc(rax)?;
            a.nop()?;
            a.mov(rbx, rax)?;
            a.lea(rdx, rbx + 1)?;
        }
        done(a)
    });
    bench.start(&guest, limit)?;
    let debug = kvm_guest_debug {
        control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
        ..Default::default()
    };
    if let Err(error) = bench.vcpu().fd().set_guest_debug(&debug) {
        return Ok(Aid::Other(format!("KVM_SET_GUEST_DEBUG: {error}")));
    }
    let start = Instant::now();
    for number in 1..=STEPS {
        match bench.next_event() {
            Event::Exit(Exit::Debug { rip, .. }) if rip == guest.address(number) => {}
            Event::Exit(Exit::Debug { rip, .. }) => {
                if ring == Ring::Kernel || guest.main().contains(rip) {
                    return Ok(Aid::Misplaced);
                }
                // The exit comes from the guest's own handler: ring 0 is stepped, ring 3 was not.
                if let Err(error) = bench.vcpu().fd().set_guest_debug(&kvm_guest_debug::default()) {
                    return Ok(Aid::Other(format!("KVM_SET_GUEST_DEBUG: {error}")));
                }
                return Ok(in_guest(&bench.next_event(), guest.address(number)));
            }
            event @ Event::Frame(_) => return Ok(in_guest(&event, guest.address(number))),
            Event::Done => return Ok(Aid::Nothing),
            event => return Ok(other(&event)),
        }
    }
    Ok(Aid::Works {
        ns: start.elapsed().as_nanos() as u64 / STEPS as u64,
    })
}

/// The guest got the exception of a step.
fn in_guest(event: &Event, right: u64) -> Aid {
    match event {
        Event::Frame(frame) if frame.vector == 1 => Aid::Guest {
            vector: 1,
            exact: frame.rip == right,
        },
        event => other(event),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Hardware,
    Software,
}

fn breakpoint(bench: &mut Bench<'_>, ring: Ring, limit: Duration, kind: Kind) -> Result<Aid, ProbeError> {
    let guest = MicroGuest::new(ring, |a| {
        for number in 0..2 * TARGET {
            if number == TARGET && kind == Kind::Software {
                a.int3()?;
            } else {
                a.nop()?;
            }
        }
        done(a)
    });
    let target = guest.address(TARGET);
    bench.start(&guest, limit)?;
    let mut debug = kvm_guest_debug {
        control: KVM_GUESTDBG_ENABLE,
        ..Default::default()
    };
    match kind {
        Kind::Hardware => {
            debug.control |= KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg[0] = target;
            // L0, G0 and the bit that is always one; execution, one byte.
            debug.arch.debugreg[7] = 0x403;
        }
        Kind::Software => debug.control |= KVM_GUESTDBG_USE_SW_BP,
    }
    if let Err(error) = bench.vcpu().fd().set_guest_debug(&debug) {
        return Ok(Aid::Other(format!("KVM_SET_GUEST_DEBUG: {error}")));
    }
    let start = Instant::now();
    let event = bench.next_event();
    let ns = start.elapsed().as_nanos() as u64;
    Ok(match event {
        Event::Exit(Exit::Debug { rip, .. }) if rip == target => Aid::Works { ns },
        Event::Exit(Exit::Debug { .. }) => Aid::Misplaced,
        Event::Frame(frame) if matches!(frame.vector, 1 | 3) => {
            // #BP is a trap: its frame has the next instruction.
            let right = if frame.vector == 3 {
                guest.address(TARGET + 1)
            } else {
                target
            };
            Aid::Guest {
                vector: frame.vector,
                exact: frame.rip == right,
            }
        }
        Event::Done => Aid::Nothing,
        event => other(&event),
    })
}
