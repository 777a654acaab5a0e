//! Forced stops: the machine is carried across a stretch without a usable stop by a delta.

use iced_x86::code_asm::*;
use lockstep_proto::Epoch;
use lockstep_vmm::machine::{MachineError, StopKind};

use super::guest::*;
use super::harness::*;

const USER: u64 = 0x3_0000;

/// Ring 0 sets the timer up, then `body` runs with interrupts on in `ring`; the handler counts ticks at [`DATA`].
pub fn computing(ring: Ring, body: impl FnOnce(&mut CodeAssembler) -> Body) -> MicroGuest {
    interrupted(ring, 0xfffe, |_| Ok(()), body)
}

/// The same with another mask of interrupts, and with what lets devices raise them.
fn interrupted(
    ring: Ring,
    mask: u16,
    devices: impl FnOnce(&mut CodeAssembler) -> Body,
    body: impl FnOnce(&mut CodeAssembler) -> Body,
) -> MicroGuest {
    MicroGuest::new(Ring::Kernel, |a| {
        pic(a, mask)?;
        timer(a, 2000)?;
        devices(a)?;
        if ring == Ring::Kernel {
            a.sti()?;
            a.mov(eax, USER as u32)?;
            return a.jmp(rax);
        }
        a.push(0x2b)?;
        a.push(0x1_e000)?;
        a.push(0x202)?;
        a.push(0x33)?;
        a.push(USER as i32)?;
        a.iretq()
    })
    .code(USER, body)
    .handler(0x20, |a| {
        a.inc(qword_ptr(DATA))?;
        end_of_interrupt(a)
    })
}

/// Stops by force at every kick after the MMIO store to [`NOBODY`] that each body begins with.
pub fn after_the_store(guest: MicroGuest) -> Micro {
    forced_after(guest, |kind| matches!(kind, StopKind::Mmio { .. }))
}

/// Stops by force at every kick after the first stop that `is_first` picks.
fn forced_after(guest: MicroGuest, is_first: impl Fn(StopKind) -> bool + 'static) -> Micro {
    let begun = std::rc::Rc::new(std::cell::Cell::new(false));
    let seen = begun.clone();
    Micro::new(guest)
        .script(move |_, _, stop, _| {
            if is_first(stop.kind) {
                seen.set(true);
            }
        })
        .forced(move |_| begun.get())
}

/// Loops until `ticks` ticks were counted.
pub fn until(a: &mut CodeAssembler, ticks: i32, work: impl FnOnce(&mut CodeAssembler) -> Body) -> Body {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    work(a)?;
    a.cmp(qword_ptr(DATA), ticks)?;
    a.jb(again)
}

#[test]
fn a_compute_loop_gets_its_ticks() {
    if no_kvm() {
        return;
    }
    for ring in [Ring::Kernel, Ring::User] {
        let guest = computing(ring, |a| {
            a.mov(dword_ptr(NOBODY), eax)?;
            until(a, 4, |a| {
                a.inc(r8)?;
                a.imul_3(r9, r9, 31)?;
                a.add(r9, r8)?;
                a.mov(qword_ptr(DATA + 0x2000), r9)
            })?;
            a.mov(dword_ptr(NOBODY + 4), r9d)?;
            a.ud2()
        });
        let recording = after_the_store(guest).check();
        assert!(recording.forced() >= 4, "{ring:?}");
        let interrupts = recording.interrupts();
        assert!(interrupts.iter().all(|step| step.is_forced()), "{ring:?}");
        println!(
            "{ring:?}: loop counts {:?}",
            interrupts.iter().map(|step| step.regs.r8).collect::<Vec<_>>()
        );
        assert!(recording.end.counters.carried_pages > 0);
    }
}

/// Of two interrupts that wait at a forced stop the second one enters as soon as the first one's handler has returned:
/// before the program has got anywhere, and not when the machine is kicked again.
#[test]
fn a_second_interrupt_follows_the_first() {
    if no_kvm() {
        return;
    }
    let body = |a: &mut CodeAssembler| {
        a.mov(dword_ptr(NOBODY), eax)?;
        until(a, 12, |a| a.inc(r8))?;
        a.mov(dword_ptr(NOBODY + 4), r8d)?;
        a.ud2()
    };
    let guest = interrupted(Ring::User, 0xffee, |a| outb(a, 0x3f9, 1), body).handler(0x24, |a| {
        a.push(rax)?;
        a.push(rdx)?;
        a.mov(edx, 0x3f8)?;
        a.in_(al, dx)?;
        a.pop(rdx)?;
        a.pop(rax)?;
        end_of_interrupt(a)
    });
    let mut micro = after_the_store(guest).windows();
    let mut before = micro.script;
    micro.script = Box::new(move |world, machine, stop, turn| {
        before(world, machine, stop, turn);
        if stop.kind != StopKind::Forced {
            return;
        }
        if machine.interrupt_waits() {
            // The one that follows: no time has passed.
            turn.clock = Some(0);
        } else if turn.clock.is_some_and(|passed| passed > 0) && machine.devices().console_room() > 0 {
            turn.console = b"x".as_slice().into();
        }
    });
    let recording = micro.check();
    let interrupts = recording.interrupts();
    let between: Vec<u64> = interrupts
        .windows(2)
        .filter(|pair| (pair[0].interrupt, pair[1].interrupt) == (Some(0x20), Some(0x24)))
        .map(|pair| pair[1].regs.r8 - pair[0].regs.r8)
        .collect();
    println!("loop counts between the two: {between:?}");
    assert!(between.len() >= 10);
    assert!(between.iter().all(|&count| count == 0));
}

/// A recorder that hands its state to a backup collects dirty pages for that, and the log does not tell. A replay that knows
/// nothing of it finds the same memory at the next epoch.
#[test]
fn a_transfer_between_a_store_and_a_delta() {
    if no_kvm() {
        return;
    }
    let guest = computing(Ring::User, |a| {
        a.mov(qword_ptr(DATA + 0x7000), rsp)?;
        a.mov(dword_ptr(NOBODY), eax)?;
        until(a, 3, |a| a.inc(r8))?;
        a.mov(dword_ptr(NOBODY + 4), eax)?;
        a.ud2()
    });
    let begun = std::rc::Rc::new(std::cell::Cell::new(false));
    let (seen, ready) = (begun.clone(), begun.clone());
    let mut micro = Micro::new(guest)
        .script(move |_, _, stop, turn| {
            // The only epoch ends at the second store.
            if matches!(stop.kind, StopKind::Mmio { .. }) && seen.replace(true) {
                turn.epoch = Some(Epoch::default());
            }
        })
        .forced(move |_| begun.get());
    micro.epochs = u64::MAX;
    let mut is_transferred = false;
    micro.between = Box::new(move |machine, _| {
        if ready.get() && !std::mem::replace(&mut is_transferred, true) {
            let watch = machine.memory_mut().start_watch();
            machine.take_transfer("micro", &watch).expect("a transfer");
        }
    });
    let recording = micro.check();
    assert!(recording.forced() >= 3);
    assert_eq!(recording.end.counters.epochs, 1);
}

/// x87, SSE and MXCSR are part of what is carried.
#[test]
fn the_fpu_is_carried() {
    if no_kvm() {
        return;
    }
    let guest = computing(Ring::User, |a| {
        a.fldpi()?;
        a.fld1()?;
        a.mov(rax, 1.25f64.to_bits())?;
        a.movq(xmm1, rax)?;
        a.mov(dword_ptr(DATA + 0x3000), 0x7f80)?;
        a.ldmxcsr(dword_ptr(DATA + 0x3000))?;
        a.mov(dword_ptr(NOBODY), eax)?;
        until(a, 3, |a| {
            a.fadd_2(st0, st1)?;
            a.addsd(xmm0, xmm1)?;
            a.paddq(xmm15, xmm1)
        })?;
        a.movdqu(xmmword_ptr(DATA + 0x3010), xmm0)?;
        a.movdqu(xmmword_ptr(DATA + 0x3020), xmm15)?;
        a.fstp(qword_ptr(DATA + 0x3030))?;
        a.fstp(qword_ptr(DATA + 0x3038))?;
        a.stmxcsr(dword_ptr(DATA + 0x3004))?;
        a.mov(dword_ptr(NOBODY + 4), eax)?;
        a.ud2()
    });
    let recording = after_the_store(guest).check();
    assert!(recording.forced() >= 3);
    let words = recording.words(DATA + 0x3000, 8);
    assert_eq!(words[0] >> 32 & 0xffc0, 0x7f80, "MXCSR");
    assert_eq!(f64::from_bits(words[7]).to_bits(), std::f64::consts::PI.to_bits());
    assert!(f64::from_bits(words[2]) > 0.0 && f64::from_bits(words[6]) > 0.0);
}

/// The handler remaps a page after its last stop, so that the replica learns of it by a delta; ring 3 has read the page
/// before and reads it again.
#[test]
fn a_delta_changes_a_mapping_that_the_replica_has_cached() {
    if no_kvm() {
        return;
    }
    let (page, other) = (DATA + 0x1_0000, DATA + 0x1_1000);
    let guest = computing(Ring::User, |a| {
        a.mov(rbx, qword_ptr(page))?;
        a.mov(dword_ptr(NOBODY), ebx)?;
        until(a, 3, |a| a.inc(r8))?;
        a.mov(rbx, qword_ptr(page))?;
        a.mov(dword_ptr(NOBODY + 4), ebx)?;
        a.ud2()
    })
    .data(page, &1u64.to_le_bytes())
    .data(other, &2u64.to_le_bytes())
    .handler(0x20, |a| {
        let mut done = a.create_label();
        a.inc(qword_ptr(DATA))?;
        a.push(rax)?;
        a.mov(al, 0x20)?;
        a.out(0x20, al)?;
        // At the first tick only: the later ones run on the replica too.
        a.cmp(qword_ptr(DATA), 1)?;
        a.jne(done)?;
        a.mov(eax, page_entry(other) as u32)?;
        a.mov(dword_ptr(page_entry_address(page)), eax)?;
        a.invlpg(byte_ptr(page))?;
        a.set_label(&mut done)?;
        a.pop(rax)?;
        a.iretq()
    });
    let recording = after_the_store(guest).check();
    let values: Vec<_> = recording
        .steps
        .iter()
        .filter(|step| matches!(step.stop.kind, StopKind::Mmio { .. }))
        .map(|step| step.regs.rbx)
        .collect();
    assert_eq!(values, [1, 2]);
}

/// A replica stands at an IN when the delta comes. Were the IN not completed, its value would land in the delta's RAX.
#[test]
fn an_in_is_completed_before_a_delta_is_applied() {
    if no_kvm() {
        return;
    }
    for port in [0x84u32, 0x3fd] {
        let guest = computing(Ring::Kernel, |a| {
            a.mov(edx, port)?;
            a.in_(al, dx)?;
            // A completion that comes after the delta takes RIP back to here.
            a.inc(r8)?;
            until(a, 2, |a| a.mov(eax, 7))?;
            mark(a, 1)?;
            a.ud2()
        });
        let read = StopKind::Port {
            port: port as u16,
            write: false,
        };
        let recording = forced_after(guest, move |kind| kind == read).check();
        assert_eq!(recording.at(1).regs.rax, 7);
        assert_eq!(recording.at(1).regs.r8, 1);
        let before = recording.steps.iter().position(Step::is_forced).expect("forced stops") - 1;
        assert_eq!(recording.steps[before].stop.kind, read);
    }
}

/// The same for a load and a 16-byte store.
#[test]
fn mmio_is_completed_before_a_delta_is_applied() {
    if no_kvm() {
        return;
    }
    for store in [false, true] {
        let guest = computing(Ring::User, |a| {
            if store {
                a.movdqu(xmmword_ptr(NOBODY), xmm0)?;
            } else {
                a.mov(eax, dword_ptr(NOBODY))?;
            }
            until(a, 2, |a| a.mov(eax, 7))?;
            a.mov(dword_ptr(NOBODY), eax)?;
            a.ud2()
        });
        let recording = after_the_store(guest).check();
        let stores = |step: &&Step| matches!(step.stop.kind, StopKind::Mmio { write: true, .. });
        let last = recording.steps.iter().rev().find(stores).expect("the store");
        assert_eq!(last.regs.rax, 7);
    }
}

/// Accessed and dirty bits in page tables start clear: whatever sets them, and when, is carried or the same.
#[test]
fn accessed_and_dirty_bits() {
    if no_kvm() {
        return;
    }
    for ring in [Ring::Kernel, Ring::User] {
        let guest = computing(ring, |a| {
            a.mov(dword_ptr(NOBODY), eax)?;
            a.mov(eax, dword_ptr(DATA + 0x5000))?;
            a.mov(dword_ptr(DATA + 0x6000), eax)?;
            until(a, 3, |a| a.mov(qword_ptr(DATA + 0x7000), r8))?;
            a.mov(eax, dword_ptr(DATA + 0x8000))?;
            a.mov(dword_ptr(DATA + 0x9000), eax)?;
            a.mov(dword_ptr(NOBODY), eax)?;
            a.ud2()
        })
        .untouched();
        after_the_store(guest).check();
    }
}

#[test]
fn an_epoch_does_not_end_at_a_forced_stop() {
    if no_kvm() {
        return;
    }
    let guest = computing(Ring::Kernel, |a| {
        a.mov(dword_ptr(NOBODY), eax)?;
        until(a, 3, |a| a.inc(r8))?;
        a.ud2()
    });
    let mut micro = after_the_store(guest);
    let mut script = micro.script;
    micro.script = Box::new(move |world, machine, stop, turn| {
        script(world, machine, stop, turn);
        turn.epoch = Some(Epoch::default());
    });
    assert!(matches!(micro.record(), Err(Fault::Machine(MachineError::Turn { .. }))));
}
