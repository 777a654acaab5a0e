//! Where interrupts can be injected exactly.
//!
//! Decides: whether "the first interrupt window after stop n" names one instruction, the same on every run, so that a
//! forced stop there needs no delta; and whether an interrupt injected at an ordinary exit arrives at the very next
//! instruction, on which the whole design rests.
//!
//! That several runs agree proves little: they could agree by accident, and differ tomorrow. So a window counts as
//! exact only where it comes every time at the *first instruction possible*, where the architecture says that a
//! pending interrupt is taken (one instruction after STI; at the first instruction after an IRETQ that sets IF).

use std::fmt;
use std::time::Duration;

use iced_x86::code_asm::{rbx, rcx};
use serde::{Deserialize, Serialize};

use super::ProbeError;
use super::bench::{Bench, Event};
use super::msrs::Outcome;
use super::signals::{done, mark};
use crate::micro::{DATA, FLAG_IF, MicroGuest, Ring, USER_CS, USER_DS, USER_STACK};
use crate::sys::vcpu::Exit;

/// Runs with a window pending. Their waits with IF=0 differ, so that none of them fits a period of the host's.
const RUNS: u64 = 8;
/// Instructions after the first possible one.
const ROUNDS: i32 = 6_000;
const VECTOR: u8 = 0x40;

/// Where the window's exit came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Window {
    /// Every time at the first instruction possible.
    Exact,
    /// Later: counts of loop rounds executed before it came, in the runs made.
    Late(Vec<u64>),
    /// Not at all within some ten thousand instructions.
    Never,
    /// Something else.
    Other(String),
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::Late(rounds) => {
                let (least, most) = (rounds.iter().min().unwrap_or(&0), rounds.iter().max().unwrap_or(&0));
                write!(f, "not exact: {least} to {most} rounds late")
            }
            Self::Never => f.write_str("never opened"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// Waits with interrupts off for `wait` rounds, then turns them on for `ring`, and counts in RBX from the first
/// instruction at which an interrupt may come, at [`DATA`].
fn window_guest(ring: Ring, wait: u64) -> MicroGuest {
    MicroGuest::new(Ring::Kernel, |a| {
        let mut again = a.create_label();
        a.mov(rcx, wait)?;
        a.set_label(&mut again)?;
        a.dec(rcx)?;
        a.jne(again)?;
        match ring {
            Ring::Kernel => {
                a.mov(rcx, DATA)?;
                a.sti()?;
                // The shadow of STI covers this instruction.
                a.jmp(rcx)
            }
            Ring::User => {
                a.push(i32::from(USER_DS))?;
                a.push(USER_STACK as i32)?;
                a.push((FLAG_IF | 2) as i32)?;
                a.push(i32::from(USER_CS))?;
                a.push(DATA as i32)?;
                a.iretq()
            }
        }
    })
    .code(DATA, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(rbx)?;
        a.cmp(rbx, ROUNDS)?;
        a.jb(again)?;
        done(a)
    })
}

/// Asks for a window before the guest starts and looks where it comes. `patient`: makes all runs even when an early one
/// has shown that windows are not exact.
pub fn window(bench: &mut Bench<'_>, ring: Ring, patient: bool, limit: Duration) -> Result<Window, ProbeError> {
    let mut late = Vec::new();
    for run in 0..RUNS {
        let guest = window_guest(ring, 50 + 37 * run);
        bench.start(&guest, limit)?;
        bench.vcpu().request_window(true);
        let event = bench.next_event();
        bench.vcpu().request_window(false);
        match event {
            Event::Exit(Exit::Window) => {
                let regs = bench.regs()?;
                let is_first = regs.rip == DATA && regs.rbx == 0;
                late.push(if is_first { 0 } else { regs.rbx.max(1) });
            }
            Event::Done => return Ok(Window::Never),
            other => return Ok(Window::Other(format!("the guest {}", other.describe()))),
        }
        if !patient && late.iter().any(|&rounds| rounds != 0) {
            break;
        }
    }
    Ok(if late.iter().all(|&rounds| rounds == 0) {
        Window::Exact
    } else {
        Window::Late(late)
    })
}

/// Injects an interrupt at an ordinary exit with IF=1 and looks where it arrives.
pub fn injection(bench: &mut Bench<'_>, ring: Ring, limit: Duration) -> Result<Outcome, ProbeError> {
    for run in 0..RUNS {
        let guest = MicroGuest::new(ring, |a| {
            let mut again = a.create_label();
            a.mov(rcx, 50 + 37 * run)?;
            a.set_label(&mut again)?;
            a.dec(rcx)?;
            a.jne(again)?;
            mark(a)?;
            for _ in 0..32 {
                a.inc(rbx)?;
            }
            done(a)
        })
        .with_flags(FLAG_IF);
        // MOV, DEC, JNE, the mark.
        let next = guest.address(4);
        match bench.first(&guest, limit)? {
            Event::Mark => {}
            other => return Ok(Outcome::Instead(format!("the guest {}", other.describe()))),
        }
        if let Some(exit) = bench.complete()? {
            return Ok(Outcome::Instead(format!("completing the exit brought {exit:?}")));
        }
        if !bench.vcpu().ready_for_interrupt() {
            return Ok(Outcome::Instead(
                "KVM was not ready for an interrupt at an exit with IF=1".into(),
            ));
        }
        if let Err(error) = bench.vcpu().interrupt(VECTOR) {
            return Ok(Outcome::Instead(format!("KVM_INTERRUPT failed: {error}")));
        }
        match bench.next_event() {
            Event::Frame(frame) if frame.vector == VECTOR && frame.rip == next && frame.ring() == ring => {}
            Event::Frame(frame) if frame.vector == VECTOR => {
                return Ok(Outcome::Instead(format!(
                    "it came at {:#x}, not at {next:#x}",
                    frame.rip
                )));
            }
            other => {
                return Ok(Outcome::Instead(format!(
                    "after the injection the guest {}",
                    other.describe()
                )));
            }
        }
    }
    Ok(Outcome::Works)
}
