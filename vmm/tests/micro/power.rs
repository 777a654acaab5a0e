//! The power button: a press is an input, its interrupt enters like any other, and the guest powers the machine off.

use iced_x86::code_asm::*;
use lockstep_proto::end::Reason;

use super::guest::*;
use super::harness::*;

const STATUS: u16 = 0x600;
const ENABLE: u16 = 0x602;
const CONTROL: u16 = 0x604;

/// Waits halted for the button, whose handler clears its status and counts, and powers the machine off.
fn guest() -> MicroGuest {
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        // Line 14 and the cascade; a level, as Linux has it.
        pic(a, !(1 << 14 | 1 << 2))?;
        outb(a, 0x4d1, 1 << 6)?;
        outb(a, ENABLE + 1, 1)?;
        mark(a, 1)?;
        let (mut again, mut done) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.cli()?;
        a.cmp(qword_ptr(DATA), 1)?;
        a.jae(done)?;
        a.sti()?;
        a.hlt()?;
        a.jmp(again)?;
        a.set_label(&mut done)?;
        // SLP_TYP of S5, then the same with SLP_EN.
        outb(a, CONTROL + 1, 5 << 2)?;
        outb(a, CONTROL + 1, 5 << 2 | 1 << 5)?;
        mark(a, 2)?;
        finish(a)
    });
    guest.handler(0x2e, |a| {
        a.push(rdx)?;
        a.push(rax)?;
        a.mov(edx, u32::from(STATUS + 1))?;
        a.in_(al, dx)?;
        a.mov(byte_ptr(DATA + 8), al)?;
        a.mov(al, 1)?;
        a.out(dx, al)?;
        outb(a, 0xa0, 0x20)?;
        a.pop(rax)?;
        a.pop(rdx)?;
        a.inc(qword_ptr(DATA))?;
        end_of_interrupt(a)
    })
}

/// Pressed once, where the guest waits for it.
pub fn pressed() -> Micro {
    Micro::new(guest()).script(|_, machine, stop, turn| {
        turn.power_button = stop.halted && machine.devices().hears_power_button();
    })
}

#[test]
fn a_press_interrupts_and_the_guest_powers_off() {
    if no_kvm() {
        return;
    }
    let recording = pressed().check();
    let interrupts: Vec<_> = recording.interrupts().iter().map(|step| step.interrupt).collect();
    assert_eq!(interrupts, [Some(0x2e)]);
    let last = recording.steps.last().expect("steps");
    assert_eq!(last.ended, Some(Reason::PoweredOff));
    assert!(recording.steps.iter().any(|step| step.turn.power_button));
}
