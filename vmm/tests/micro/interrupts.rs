//! Where interrupts enter: at completed stops with IF=1 and no shadow, and nowhere else.

use iced_x86::code_asm::*;
use kvm_bindings::kvm_vcpu_events;
use lockstep_proto::quantity::StopNumber;
use lockstep_vmm::machine::StopKind;
use zerocopy::FromBytes;

use super::guest::*;
use super::harness::*;

const TICK: u64 = 2_000_000;

/// The timer's time comes at mark 1.
fn due_at_mark_1(guest: MicroGuest) -> Micro {
    let guest = guest.handler(0x20, |a| {
        a.inc(qword_ptr(DATA))?;
        end_of_interrupt(a)
    });
    Micro::new(guest).script(|_, _, stop, turn| {
        if stop.kind
            == (StopKind::Port {
                port: 0x81,
                write: true,
            })
        {
            turn.clock = Some(TICK);
        }
    })
}

fn only_interrupt(recording: &Recording) -> &Step {
    let interrupts = recording.interrupts();
    assert_eq!(
        interrupts.len(),
        1,
        "{:?}",
        interrupts.iter().map(|step| step.stop).collect::<Vec<_>>()
    );
    interrupts[0]
}

#[test]
fn an_interrupt_waits_for_if() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        pic(a, 0xfffe)?;
        timer(a, 2000)?;
        for number in 1..5 {
            mark(a, number)?;
        }
        a.sti()?;
        a.nop()?;
        mark(a, 5)?;
        mark(a, 6)?;
        finish(a)
    });
    let recording = due_at_mark_1(guest).check();
    let step = only_interrupt(&recording);
    assert_eq!((step.mark(), step.interrupt), (Some(5), Some(0x20)));
    assert_eq!(recording.word(DATA), 1);
}

/// The stop's own instruction is the one that STI shadows; completed, it has ended the shadow.
#[test]
fn an_interrupt_enters_after_the_instruction_that_sti_shadows() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        pic(a, 0xfffe)?;
        timer(a, 2000)?;
        mark(a, 1)?;
        a.sti()?;
        mark(a, 2)?;
        mark(a, 3)?;
        finish(a)
    });
    let recording = due_at_mark_1(guest).check();
    assert_eq!(only_interrupt(&recording).mark(), Some(2));
}

/// A load of SS from a device is a stop that ends in a shadow, with IF=1.
#[test]
fn an_interrupt_does_not_enter_in_the_shadow_of_mov_ss() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        pic(a, 0xfffe)?;
        timer(a, 2000)?;
        mark(a, 1)?;
        a.sti()?;
        a.nop()?;
        // Beyond a device's configuration there are zeroes: the null selector, which ring 0 may load.
        a.mov(ss, word_ptr(SLOTS + 0x800))?;
        mark(a, 2)?;
        mark(a, 3)?;
        finish(a)
    });
    let recording = due_at_mark_1(guest).check();
    let load = recording
        .steps
        .iter()
        .find(|step| matches!(step.stop.kind, StopKind::Mmio { .. }))
        .expect("the load");
    assert_eq!(load.regs.rflags & FLAG_IF, FLAG_IF);
    assert_eq!(only_interrupt(&recording).mark(), Some(2));
}

/// While the guest computes with interrupts off, nothing enters; it is stopped by force once they are on.
#[test]
fn an_interrupt_that_waits_enters_by_force_when_no_stop_comes() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        pic(a, 0xfffe)?;
        timer(a, 2000)?;
        mark(a, 1)?;
        a.mov(ecx, 20_000)?;
        let mut off = a.create_label();
        a.set_label(&mut off)?;
        a.dec(ecx)?;
        a.jnz(off)?;
        a.mov(ebx, 1)?;
        a.sti()?;
        let mut on = a.create_label();
        a.set_label(&mut on)?;
        a.cmp(qword_ptr(DATA), 0)?;
        a.je(on)?;
        mark(a, 2)?;
        finish(a)
    });
    let recording = due_at_mark_1(guest).forced(|machine| machine.interrupt_waits()).check();
    let step = only_interrupt(&recording);
    assert!(step.is_forced());
    assert_eq!((step.regs.rbx, step.regs.rflags & FLAG_IF), (1, FLAG_IF));
    assert_eq!(recording.forced(), 1);
}

/// Also from the second controller, several at once, by priority.
#[test]
fn several_interrupts_enter_by_priority() {
    if no_kvm() {
        return;
    }
    let seen = |vector: u8| {
        move |a: &mut CodeAssembler| {
            a.mov(dword_ptr(rdi), u32::from(vector))?;
            a.add(edi, 4)?;
            a.push(rax)?;
            a.mov(al, 0x20)?;
            a.out(0x20, al)?;
            a.out(0xa0, al)?;
            a.pop(rax)?;
            a.iretq()
        }
    };
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(edi, DATA as u32)?;
        pic(a, 0xfeea)?;
        timer(a, 2000)?;
        // The console interrupts when it receives; the clock of the board twice a second or more often.
        outb(a, 0x3f9, 1)?;
        outb(a, 0x70, 0x0a)?;
        outb(a, 0x71, 0x26)?;
        outb(a, 0x70, 0x0b)?;
        outb(a, 0x71, 0x42)?;
        mark(a, 1)?;
        a.sti()?;
        for number in 2..12 {
            mark(a, number)?;
        }
        finish(a)
    })
    .handler(0x20, seen(0x20))
    .handler(0x24, seen(0x24))
    .handler(0x28, seen(0x28));
    let recording = Micro::new(guest)
        .script(|_, _, stop, turn| {
            if stop.kind
                == (StopKind::Port {
                    port: 0x81,
                    write: true,
                })
            {
                turn.clock = Some(TICK);
                turn.console = b"x".as_slice().into();
            }
        })
        .check();
    let vectors: Vec<_> = recording.steps.iter().filter_map(|step| step.interrupt).collect();
    assert_eq!(vectors, [0x20, 0x28, 0x24]);
    assert_eq!(recording.words(DATA, 2), [0x28_0000_0020, 0x24]);
}

/// Interrupts go on and off all the time; a stop is forced only where one can go in, before and after its completion.
#[test]
fn a_stop_is_forced_only_where_an_interrupt_can_enter() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        pic(a, 0xfffe)?;
        timer(a, 2000)?;
        mark(a, 1)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.cli()?;
        a.inc(rbx)?;
        a.sti()?;
        a.inc(rcx)?;
        a.inc(rcx)?;
        a.cmp(qword_ptr(DATA), 40)?;
        a.jb(again)?;
        finish(a)
    });
    let recording = due_at_mark_1(guest)
        .forced(|machine| machine.stop() > StopNumber::new(10))
        .check();
    let forced: Vec<_> = recording.steps.iter().filter(|step| step.is_forced()).collect();
    assert!(forced.len() >= 38, "{}", forced.len());
    for step in forced {
        let delta = step.delta.as_ref().expect("its delta");
        let events = kvm_vcpu_events::read_from_bytes(&delta.vcpu.events).expect("pending events");
        assert_eq!(step.regs.rflags & FLAG_IF, FLAG_IF);
        assert_eq!(
            (
                events.interrupt.shadow,
                events.interrupt.injected,
                events.exception.injected
            ),
            (0, 0, 0)
        );
    }
}
