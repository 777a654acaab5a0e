//! RDTSC in ring 3, answered by the machine where CR4.TSD works.

use iced_x86::code_asm::*;
use lockstep_vmm::loader::trap::Trapped;
use lockstep_vmm::machine::StopKind;
use lockstep_vmm::probe;

use super::guest::*;
use super::harness::*;

const USER: u64 = 0x3_0000;
const CR4_TSD: u64 = 4;

/// Whether RDTSC in ring 3 cannot be answered here; says so.
fn no_guard() -> bool {
    if no_kvm() {
        return true;
    }
    let works = probe::at_start().expect("a probe").strategies.guard_programs;
    if !works {
        println!("CR4.TSD brings nothing under control on this host");
    }
    !works
}

/// Ring 0 reads CR4, sets `bits` in it and goes to ring 3.
fn program(bits: u32, body: impl FnOnce(&mut CodeAssembler) -> Body) -> MicroGuest {
    MicroGuest::new(Ring::Kernel, |a| {
        trap(a, Trapped::ReadCr4 { reg: 0 }, 3)?;
        a.mov(qword_ptr(DATA + 0x100), rax)?;
        a.or(eax, bits as i32)?;
        trap(a, Trapped::WriteCr4 { reg: 0 }, 3)?;
        trap(a, Trapped::ReadCr4 { reg: 9 }, 4)?;
        a.mov(qword_ptr(DATA + 0x108), r9)?;
        a.push(0x2b)?;
        a.push(0x1_e000)?;
        a.push(0x202)?;
        a.push(0x33)?;
        a.push(USER as i32)?;
        a.iretq()
    })
    .code(USER, body)
    // As Linux' own begins. It counts, and goes on behind an instruction of one byte.
    .handler(13, |a| {
        a.db(&[0x0f, 0x1f, 0x00])?;
        a.inc(qword_ptr(DATA))?;
        a.inc(qword_ptr(rsp + 8))?;
        a.lea(rsp, qword_ptr(rsp + 8))?;
        a.iretq()
    })
}

fn is_fault(step: &Step) -> bool {
    step.stop.kind == StopKind::Trap(Trapped::GpHandler)
}

#[test]
fn a_program_reads_guest_time() {
    if no_guard() {
        return;
    }
    let guest = program(0, |a| {
        a.mov(rax, u64::MAX)?;
        a.mov(rdx, rax)?;
        a.mov(r10, 0x1234_5678_9abc_def0_u64)?;
        a.stc()?;
        a.rdtsc()?;
        a.mov(r8, rax)?;
        a.mov(r9, rdx)?;
        a.pushfq()?;
        a.pop(r11)?;
        // As a program of another assembler may have it: with a prefix.
        a.db(&[0x48, 0x0f, 0x31])?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.mov(dword_ptr(NOBODY), eax)?;
        a.ud2()
    });
    let recording = Micro::new(guest).guarded().check();
    let faults: Vec<_> = recording.steps.iter().filter(|step| is_fault(step)).collect();
    assert_eq!(faults.len(), 2);
    let end = recording.steps.last().expect("steps").regs;
    let store = recording
        .steps
        .iter()
        .find(|step| matches!(step.stop.kind, StopKind::Mmio { .. }))
        .expect("the store");
    let samples: u64 = faults[0].turn.clock.expect("time is sampled");
    assert!(samples > 0);
    assert_eq!(
        store.regs.r8 | store.regs.r9 << 32,
        faults[0].regs.rax | faults[0].regs.rdx << 32
    );
    assert_eq!(
        store.regs.rax - (store.regs.r8 | store.regs.r9 << 32),
        faults[1].turn.clock.expect("time")
    );
    assert_eq!(
        (store.regs.r10, store.regs.r11 & 1),
        (0x1234_5678_9abc_def0, 1),
        "nothing else changes"
    );
    assert_eq!(end.r10, 0x1234_5678_9abc_def0);
    assert_eq!(recording.word(DATA), 0, "the guest's handler has not seen it");
    assert_eq!(
        recording.word(DATA + 0x100) & CR4_TSD,
        0,
        "the guest does not see our TSD"
    );
    assert_eq!(recording.word(DATA + 0x108), recording.word(DATA + 0x100));
    assert_eq!(recording.end.counters.program_tsc, 2);
}

#[test]
fn another_fault_goes_to_the_guests_handler() {
    if no_guard() {
        return;
    }
    let guest = program(0, |a| {
        a.mov(rax, 0x1111_2222_3333_4444_u64)?;
        a.mov(r15, 0x5555_6666_7777_8888_u64)?;
        a.stc()?;
        a.hlt()?;
        a.mov(rbx, rax)?;
        a.mov(dword_ptr(NOBODY), eax)?;
        a.ud2()
    });
    let recording = Micro::new(guest).guarded().check();
    assert_eq!(recording.steps.iter().filter(|step| is_fault(step)).count(), 1);
    let end = recording.steps.last().expect("steps").regs;
    assert_eq!((end.rbx, end.r15), (0x1111_2222_3333_4444, 0x5555_6666_7777_8888));
    assert_eq!(recording.word(DATA), 1, "the guest's handler has seen it");
    assert_eq!(recording.end.counters.program_tsc, 0);
}

/// A guest that has set TSD itself gets its fault (Linux: prctl PR_SET_TSC), and sees its own bit.
#[test]
fn a_guest_that_sets_tsd_gets_its_fault() {
    if no_guard() {
        return;
    }
    let guest = program(CR4_TSD as u32, |a| {
        a.mov(rax, 7u64)?;
        // The handler goes on at its second byte, which begins an instruction of its own: XOR EAX, EAX.
        a.db(&[0x0f, 0x31, 0xc0])?;
        a.mov(dword_ptr(NOBODY), eax)?;
        a.ud2()
    });
    let recording = Micro::new(guest).guarded().check();
    assert_eq!(recording.word(DATA), 1);
    assert_eq!(recording.word(DATA + 0x108) & CR4_TSD, CR4_TSD);
    assert_eq!(recording.end.counters.program_tsc, 0);
}

/// Who steps through a program gets the step over RDTSC.
#[test]
fn a_step_over_rdtsc_is_a_step() {
    if no_guard() {
        return;
    }
    let guest = program(0, |a| {
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.rdtsc()?;
        a.nop()?;
        a.pushfq()?;
        a.and(dword_ptr(rsp), !0x100)?;
        a.popfq()?;
        a.mov(dword_ptr(NOBODY), eax)?;
        a.ud2()
    })
    .handler(1, |a| {
        a.inc(qword_ptr(DATA + 0x200))?;
        a.iretq()
    });
    let recording = Micro::new(guest).guarded().check();
    // After RDTSC, NOP, PUSHF, AND and POPF.
    assert_eq!(recording.word(DATA + 0x200), 5);
}

/// Interrupts enter where a program does nothing but read the clock.
#[test]
fn a_program_that_only_reads_the_clock_gets_its_interrupts() {
    if no_guard() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        pic(a, 0xfffe)?;
        timer(a, 2000)?;
        trap(a, Trapped::ReadCr4 { reg: 0 }, 3)?;
        trap(a, Trapped::WriteCr4 { reg: 0 }, 3)?;
        a.push(0x2b)?;
        a.push(0x1_e000)?;
        a.push(0x202)?;
        a.push(0x33)?;
        a.push(USER as i32)?;
        a.iretq()
    })
    .code(USER, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.rdtsc()?;
        a.cmp(qword_ptr(DATA), 3)?;
        a.jb(again)?;
        a.ud2()
    })
    .handler(13, |a| {
        a.db(&[0x0f, 0x1f, 0x00])?;
        a.ud2()
    })
    .handler(0x20, |a| {
        a.inc(qword_ptr(DATA))?;
        end_of_interrupt(a)
    });
    let recording = Micro::new(guest)
        .script(|_, _, stop, turn| {
            if stop.kind == StopKind::Trap(Trapped::GpHandler) {
                turn.clock = Some(200_000);
            }
        })
        .guarded()
        .check();
    assert_eq!(recording.forced(), 0);
    assert!(recording.interrupts().len() >= 3);
}
