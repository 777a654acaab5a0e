//! Moving a vCPU's state into another VM.
//!
//! Decides: whether deltas, snapshots and joins are exact. Nothing works without.

use std::time::Duration;

use iced_x86::code_asm::{r8, r15, rax, rbx, xmm0, xmm15};
use zerocopy::IntoBytes;

use super::ProbeError;
use super::bench::{Bench, Event, Lab};
use super::msrs::Outcome;
use super::signals::{done, mark};
use crate::cpu::state;
use crate::micro::{MicroGuest, Ring};

/// Runs a guest in ring 3 that fills registers, moves it to a second VM in its middle, and compares both the state read
/// there and where the guest ends.
pub fn survey(lab: &Lab, bench: &mut Bench<'_>, limit: Duration) -> Result<Outcome, ProbeError> {
    let guest = MicroGuest::new(Ring::User, |a| {
        a.mov(rax, 0x0123_4567_89ab_cdef_u64)?;
        a.mov(r15, rax)?;
        a.movq(xmm0, rax)?;
        a.not(rax)?;
        a.movq(xmm15, rax)?;
        mark(a)?;
        a.movq(rbx, xmm0)?;
        a.movq(r8, xmm15)?;
        a.add(r15, rbx)?;
        done(a)
    });
    let failed = |event: &Event| Outcome::Instead(format!("the guest {}", event.describe()));
    match bench.first(&guest, limit)? {
        Event::Mark => {}
        event => return Ok(failed(&event)),
    }
    if let Some(exit) = bench.complete()? {
        return Ok(Outcome::Instead(format!("completing an exit brought {exit:?}")));
    }
    let saved = state::save(bench.vcpu())?;
    let mut second = lab.bench()?;
    second.start(&guest, limit)?;
    state::restore(second.vcpu(), &saved)?;
    if state::save(second.vcpu())? != saved {
        return Ok(Outcome::Instead(
            "the state read back differs from the state set".into(),
        ));
    }
    let there = second.next_event();
    let there_regs = second.regs()?;
    bench.allow(limit);
    let here = bench.next_event();
    let here_regs = bench.regs()?;
    Ok(match (here, there) {
        (Event::Done, Event::Done) if here_regs.as_bytes() == there_regs.as_bytes() => Outcome::Works,
        (Event::Done, Event::Done) => Outcome::Instead("the guest ends with other registers".into()),
        (Event::Done, event) | (event, _) => failed(&event),
    })
}
