//! What is left to do at an exit before the machine may be looked at.
//!
//! Decides: nothing that is not done on every host anyway (every exit is completed first); it checks that completing
//! does what the run loop relies on.

use std::time::Duration;

use iced_x86::code_asm::{al, r8, rbx, xmm0, xmmword_ptr};
use serde::{Deserialize, Serialize};

use super::ProbeError;
use super::bench::{Bench, Event};
use super::msrs::Outcome;
use super::signals::done;
use crate::micro::{MicroGuest, NOBODY, NOBODY_PHYSICAL, Ring};
use crate::sys::vcpu::Exit;

/// No device is at this port.
const PORT: u16 = 0xf7;

/// Completing exits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completion {
    /// A store of 16 bytes to a device is two exits, the second of which comes from completing the first.
    pub wide_store: Outcome,
    /// After `sti; in` KVM is ready for an interrupt once the IN is completed. What it says before, follows.
    pub after_sti: Outcome,
    /// KVM says "ready" at that exit even before the IN is completed: it must not be asked then.
    pub ready_too_early: bool,
}

/// Tries both.
pub fn survey(bench: &mut Bench<'_>, limit: Duration) -> Result<Completion, ProbeError> {
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(r8, NOBODY)?;
        a.movups(xmmword_ptr(r8), xmm0)?;
        done(a)
    });
    let instead = |event: &Event| Outcome::Instead(format!("the guest {}", event.describe()));
    let wide_store = match bench.first(&guest, limit)? {
        Event::Exit(Exit::MmioWrite {
            addr: NOBODY_PHYSICAL,
            len: 8,
            ..
        }) => match bench.complete()? {
            Some(Exit::MmioWrite { addr, len: 8, .. }) if addr == NOBODY_PHYSICAL + 8 => match bench.complete()? {
                None if bench.regs()?.rip == guest.address(2) => Outcome::Works,
                None => Outcome::Instead("the store is not over after its second half".into()),
                Some(exit) => Outcome::Instead(format!("a third exit: {exit:?}")),
            },
            other => Outcome::Instead(format!("completing the first half gave {other:?}")),
        },
        event => instead(&event),
    };
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.sti()?;
        a.in_(al, u32::from(PORT))?;
        for _ in 0..8 {
            a.inc(rbx)?;
        }
        done(a)
    });
    let event = bench.first(&guest, limit)?;
    let ready_too_early = bench.vcpu().ready_for_interrupt();
    let after_sti = match event {
        Event::Exit(Exit::In { port: PORT, .. }) => match bench.complete()? {
            None if bench.vcpu().ready_for_interrupt() => Outcome::Works,
            None => Outcome::Instead("not ready even then".into()),
            Some(exit) => Outcome::Instead(format!("completing it brought {exit:?}")),
        },
        event => instead(&event),
    };
    Ok(Completion {
        wide_store,
        after_sti,
        ready_too_early,
    })
}
