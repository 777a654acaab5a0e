//! Guest time: sampled at stops, in the log, and standing still in between.

use iced_x86::code_asm::*;
use lockstep_vmm::loader::trap::Trapped;
use lockstep_vmm::machine::{MachineError, StopKind};

use super::guest::*;
use super::harness::*;

#[test]
fn guest_time_stands_still_between_samples() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        for register in [r8, r9, r10] {
            trap(a, Trapped::Rdtsc, 2)?;
            a.mov(register, rax)?;
            // Any host time may pass here.
            a.mov(ecx, 5000)?;
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.dec(ecx)?;
            a.jnz(again)?;
        }
        mark(a, 1)?;
        finish(a)
    });
    let mut reads = 0;
    let recording = Micro::new(guest)
        .script(move |_, _, stop, turn| {
            if stop.wants_time {
                reads += 1;
                turn.clock = (reads != 2).then_some(reads * 1000);
            }
        })
        .check();
    let regs = recording.at(1).regs;
    assert_eq!([regs.r8, regs.r9, regs.r10], [1000, 1000, 4000]);
    assert_eq!(recording.end.now.ns(), 4000);
}

#[test]
fn the_timer_counts_guest_time() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        timer(a, 50_000)?;
        for register in [r8, r9] {
            outb(a, 0x43, 0)?;
            a.in_(al, 0x40)?;
            a.mov(bl, al)?;
            a.in_(al, 0x40)?;
            a.mov(bh, al)?;
            a.mov(register, rbx)?;
        }
        mark(a, 1)?;
        finish(a)
    });
    let recording = Micro::new(guest)
        .script(|_, _, stop, turn| {
            let latch = stop.kind
                == StopKind::Port {
                    port: 0x43,
                    write: true,
                };
            turn.clock = stop.wants_time.then_some(if latch { 10_000_000 } else { 0 });
        })
        .check();
    let regs = recording.at(1).regs;
    // Ten milliseconds are 11,931.8 ticks.
    let ticks = (regs.r8 & 0xffff) - (regs.r9 & 0xffff);
    assert!((11_931..=11_932).contains(&ticks), "{ticks}");
}

#[test]
fn the_calendar_clock_shows_guest_time() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        for register in [r8, r9] {
            outb(a, 0x70, 0)?;
            a.in_(al, 0x71)?;
            a.movzx(eax, al)?;
            a.mov(register, rax)?;
        }
        mark(a, 1)?;
        finish(a)
    });
    let mut micro = Micro::new(guest).script(|_, _, stop, turn| {
        turn.clock = (stop.kind
            == StopKind::Port {
                port: 0x71,
                write: false,
            })
        .then_some(7_000_000_000);
    });
    micro.config.rtc_base = 1_700_000_000;
    let regs = micro.check().at(1).regs;
    // 22:13:20 UTC, in BCD.
    assert_eq!([regs.r8, regs.r9], [0x27, 0x34]);
}

#[test]
fn a_clock_that_leaps_is_refused() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, finish);
    let result = Micro::new(guest)
        .script(|_, _, _, turn| turn.clock = Some(u64::MAX))
        .record();
    assert!(matches!(result, Err(Fault::Machine(MachineError::Turn { .. }))));
}
