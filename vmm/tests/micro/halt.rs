//! Where the guest stops for good or for a while: HLT and the triple fault.

use iced_x86::code_asm::*;
use lockstep_proto::end::Reason;
use lockstep_proto::quantity::StopNumber;
use lockstep_vmm::machine::StopKind;

use super::guest::*;
use super::harness::*;

pub fn ticking(halts: u32) -> MicroGuest {
    MicroGuest::new(Ring::Kernel, |a| {
        pic(a, 0xfffe)?;
        timer(a, 1193)?;
        a.sti()?;
        for number in 0..halts {
            a.hlt()?;
            mark(a, number)?;
        }
        finish(a)
    })
    .handler(0x20, |a| {
        a.inc(qword_ptr(DATA))?;
        end_of_interrupt(a)
    })
}

#[test]
fn hlt_with_interrupts_on_ends_with_an_interrupt() {
    if no_kvm() {
        return;
    }
    let recording = Micro::new(ticking(4)).check();
    let interrupts = recording.interrupts();
    assert_eq!(interrupts.len(), 4);
    assert!(
        interrupts
            .iter()
            .all(|step| step.stop.kind == StopKind::Halt && step.interrupt == Some(0x20))
    );
    assert_eq!(recording.word(DATA), 4);
}

#[test]
fn a_halted_guest_takes_turn_after_turn() {
    if no_kvm() {
        return;
    }
    let mut halted = 0;
    let recording = Micro::new(ticking(2))
        .script(move |_, _, stop, turn| {
            if stop.halted {
                halted += 1;
                match halted % 5 {
                    1 => turn.clock = None,
                    2 => turn.clock = Some(10),
                    3 => {
                        turn.clock = None;
                        turn.console = b"x".as_slice().into();
                    }
                    _ => {}
                }
            }
        })
        .check();
    let turns = |number| recording.steps.iter().filter(|step| step.stop.number == number).count();
    let first = recording.interrupts()[0].stop.number;
    assert_eq!(turns(first), 4);
    assert_eq!(recording.interrupts().len(), 2);
}

#[test]
fn hlt_with_interrupts_off_is_the_end() {
    if no_kvm() {
        return;
    }
    let recording = Micro::new(MicroGuest::new(Ring::Kernel, finish)).check();
    assert_eq!(recording.steps.len(), 1);
    assert_eq!(recording.steps[0].ended, Some(Reason::Halted));
}

#[test]
fn a_triple_fault_is_a_stop() {
    if no_kvm() {
        return;
    }
    for ring in [Ring::Kernel, Ring::User] {
        let guest = MicroGuest::new(ring, |a| {
            a.mov(dword_ptr(NOBODY), eax)?;
            // Not mapped; no gate for #PF, none for #DF.
            a.mov(eax, dword_ptr(0x4000_0000))
        });
        let recording = Micro::new(guest).check();
        assert_eq!(recording.steps[1].stop.kind, StopKind::Shutdown, "{ring:?}");
        assert_eq!(
            (recording.steps[1].stop.number, recording.steps[1].ended),
            (StopNumber::new(2), Some(Reason::Reset)),
            "{ring:?}"
        );
    }
}

#[test]
fn a_reset_by_port_is_the_end() {
    if no_kvm() {
        return;
    }
    let recording = Micro::new(MicroGuest::new(Ring::Kernel, |a| outb(a, 0x64, 0xfe))).check();
    assert_eq!(recording.steps[0].ended, Some(Reason::Reset));
}
