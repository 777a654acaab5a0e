//! What KVM and the kernel offer: the TSC's rate, dirty logs, the PMU.
//!
//! Decides: whether the TSC of guest programs can be frozen, how dirty pages are found, and whether positions could be
//! counted. What is offered but cannot be checked by experiment here is not used.

use std::time::Duration;

use iced_x86::code_asm::{ecx, qword_ptr, rax, rbx, rdx, rsi};
use kvm_ioctls::Cap;
use lockstep_proto::quantity::PageNumber;
use serde::{Deserialize, Serialize};

use super::ProbeError;
use super::bench::{Bench, Event};
use super::msrs::Outcome;
use super::signals::done;
use crate::micro::{DATA, MicroGuest, Ring};
use crate::sys::perf;

/// What is offered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// KVM_CAP_TSC_CONTROL: the CPU scales the TSC.
    pub tsc_control: bool,
    /// With a guest TSC of 1 kHz, RDTSC stands still in ring 0 / in ring 3.
    pub tsc_frozen: [Outcome; 2],
    /// The dirty log names the pages that the guest wrote.
    pub dirty_log: Outcome,
    /// KVM_CAP_DIRTY_LOG_RING: most bytes of the ring, 0 for none.
    pub dirty_ring_bytes: u32,
    /// A counter of retired instructions can be had.
    pub pmu: Outcome,
}

/// The slowest rate that makes the TSC stand still for a millisecond.
const SLOW_KHZ: u32 = 1;

/// Looks and tries. The VM's TSC is slow afterwards, where it can be.
pub fn survey(bench: &mut Bench<'_>, limit: Duration) -> Result<Capabilities, ProbeError> {
    let vm = &bench.vm().fd;
    let tsc_control = vm.check_extension(Cap::TscControl);
    let dirty_ring_bytes = vm.check_extension_int(Cap::DirtyLogRing).max(0).cast_unsigned();
    Ok(Capabilities {
        tsc_control,
        dirty_log: dirty_log(bench, limit)?,
        dirty_ring_bytes,
        pmu: match perf::try_instruction_counter() {
            Ok(()) => Outcome::Works,
            Err(error) => Outcome::Instead(match error.raw_os_error() {
                Some(libc::ENOENT | libc::EOPNOTSUPP | libc::ENODEV) => format!("none: {error}"),
                Some(libc::EACCES | libc::EPERM) => format!("not permitted ({error}): see kernel.perf_event_paranoid"),
                _ => format!("perf_event_open: {error}"),
            }),
        },
        tsc_frozen: [frozen(bench, Ring::Kernel, limit)?, frozen(bench, Ring::User, limit)?],
    })
}

fn dirty_log(bench: &mut Bench<'_>, limit: Duration) -> Result<Outcome, ProbeError> {
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(rbx, DATA)?;
        a.mov(qword_ptr(rbx), rbx)?;
        a.mov(qword_ptr(rbx + 0x5000), rbx)?;
        done(a)
    });
    bench.start(&guest, limit)?;
    let collect = |bench: &Bench<'_>| bench.memory().collect_dirty(&bench.vm().fd);
    if let Err(error) = collect(bench) {
        return Ok(Outcome::Instead(error.to_string()));
    }
    let event = bench.next_event();
    if event != Event::Done {
        return Ok(Outcome::Instead(format!("the guest {}", event.describe())));
    }
    let wanted = [DATA, DATA + 0x5000].map(PageNumber::of);
    Ok(match collect(bench) {
        // More pages than those, page tables for instance, do no harm.
        Ok(frames) if wanted.iter().all(|frame| frames.contains(frame)) => Outcome::Works,
        Ok(frames) => {
            let found: Vec<_> = frames.into_iter().map(PageNumber::get).collect();
            let wanted = wanted.map(PageNumber::get);
            Outcome::Instead(format!("misses pages: {found:x?} instead of {wanted:x?}"))
        }
        Err(error) => Outcome::Instead(error.to_string()),
    })
}

fn frozen(bench: &mut Bench<'_>, ring: Ring, limit: Duration) -> Result<Outcome, ProbeError> {
    if let Err(error) = bench.vcpu().fd().set_tsc_khz(SLOW_KHZ) {
        return Ok(Outcome::Instead(format!("KVM_SET_TSC_KHZ: {error}")));
    }
    let guest = MicroGuest::new(ring, |a| {
        let mut again = a.create_label();
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.mov(rsi, rax)?;
        a.mov(ecx, 20)?;
        a.set_label(&mut again)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        done(a)
    });
    // A tick may fall between the two reads, but hardly three times.
    let mut last = String::new();
    for _ in 0..3 {
        match bench.first(&guest, limit)? {
            Event::Done => {
                let regs = bench.regs()?;
                if regs.rax == regs.rsi {
                    return Ok(Outcome::Works);
                }
                last = format!("it went on by {}", regs.rax.wrapping_sub(regs.rsi));
            }
            other => return Ok(Outcome::Instead(format!("the guest {}", other.describe()))),
        }
    }
    Ok(Outcome::Instead(last))
}
