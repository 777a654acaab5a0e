//! What exits and kicks cost.
//!
//! Decides: nothing by itself; it explains the speed of a guest on this host, and says how late a forced stop is.

use std::time::{Duration, Instant};

use iced_x86::code_asm::{al, dword_ptr, eax, ecx, rbx};
use serde::{Deserialize, Serialize};

use super::ProbeError;
use super::bench::{Bench, Event, now};
use super::signals::done;
use crate::micro::{MicroGuest, NOBODY, Ring};
use crate::sys::vcpu::Exit;

const EXITS: u32 = 300;
const KICKS: u64 = 7;
/// No device is at this port.
const PORT: u16 = 0xf7;

/// Round trips to userspace, in nanoseconds; what did not work is described instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// Port write in ring 0.
    pub pio_ns: Result<u64, String>,
    /// Store to a device's memory in ring 0.
    pub mmio_ns: Result<u64, String>,
    /// Store to a device's memory in ring 3.
    pub mmio_user_ns: Result<u64, String>,
    /// From a timer's expiry to the return of KVM_RUN, in ring 0: the longest of a few.
    pub kick_ns: Result<u64, String>,
    /// The same in ring 3.
    pub kick_user_ns: Result<u64, String>,
}

/// Measures all.
pub fn survey(bench: &mut Bench<'_>, limit: Duration) -> Result<Timing, ProbeError> {
    Ok(Timing {
        pio_ns: pio(bench, limit)?,
        mmio_ns: mmio(bench, Ring::Kernel, limit)?,
        mmio_user_ns: mmio(bench, Ring::User, limit)?,
        kick_ns: kick(bench, Ring::Kernel)?,
        kick_user_ns: kick(bench, Ring::User)?,
    })
}

fn count(
    bench: &mut Bench<'_>,
    guest: &MicroGuest,
    limit: Duration,
    is_wanted: impl Fn(&Event) -> bool,
) -> Result<Result<u64, String>, ProbeError> {
    bench.start(guest, limit)?;
    let start = Instant::now();
    for _ in 0..EXITS {
        let event = bench.next_event();
        if !is_wanted(&event) {
            return Ok(Err(format!("the guest {}", event.describe())));
        }
    }
    Ok(Ok(start.elapsed().as_nanos() as u64 / u64::from(EXITS)))
}

fn pio(bench: &mut Bench<'_>, limit: Duration) -> Result<Result<u64, String>, ProbeError> {
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        let mut again = a.create_label();
        a.mov(ecx, EXITS)?;
        a.set_label(&mut again)?;
        a.out(u32::from(PORT), al)?;
        a.dec(ecx)?;
        a.jne(again)?;
        done(a)
    });
    count(bench, &guest, limit, |event| {
        matches!(event, Event::Exit(Exit::Out { port: PORT, .. }))
    })
}

fn mmio(bench: &mut Bench<'_>, ring: Ring, limit: Duration) -> Result<Result<u64, String>, ProbeError> {
    let guest = MicroGuest::new(ring, |a| {
        let mut again = a.create_label();
        a.mov(ecx, EXITS)?;
        a.mov(rbx, NOBODY)?;
        a.set_label(&mut again)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.dec(ecx)?;
        a.jne(again)?;
        done(a)
    });
    count(bench, &guest, limit, |event| {
        matches!(event, Event::Exit(Exit::MmioWrite { .. }))
    })
}

/// The guest loops for ever; its time limit is the kick.
fn kick(bench: &mut Bench<'_>, ring: Ring) -> Result<Result<u64, String>, ProbeError> {
    let guest = MicroGuest::new(ring, |a| {
        let mut stay = a.create_label();
        a.set_label(&mut stay)?;
        a.jmp(stay)
    });
    let mut longest = 0;
    for number in 0..KICKS {
        bench.start(&guest, Duration::from_micros(2000 + 130 * number))?;
        let event = bench.next_event();
        if event != Event::Hung {
            return Ok(Err(format!("the guest {}", event.describe())));
        }
        longest = longest.max(now().saturating_sub(bench.deadline()));
    }
    Ok(Ok(longest))
}
