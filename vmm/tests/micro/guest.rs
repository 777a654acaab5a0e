//! Micro-guests on a machine: where its devices are mapped, and pieces of code that many of them need.

use iced_x86::code_asm::{CodeAssembler, al, dx, edx, rax};
use lockstep_vmm::loader::trap::Trapped;
use lockstep_vmm::machine::Machine;
pub use lockstep_vmm::micro::*;

/// Virtual address of the first virtio slot; a page each, eight of them.
pub const SLOTS: u64 = 0x1f_0000;
const SLOTS_PHYSICAL: u64 = 0xd000_0000;

/// Puts the guest into the machine. #UD is how ring 3 says that it is finished.
pub fn load(guest: &MicroGuest, machine: &mut Machine) {
    let mut guest = guest.clone();
    for page in (0..8).map(|slot| slot * 4096) {
        guest = guest.map(SLOTS + page, SLOTS_PHYSICAL + page);
    }
    let end = Handler::new(6, finish).expect("it fits");
    guest.load(machine.memory().ram(), &[end]).expect("the guest is right");
    let base = machine.vcpu_state().expect("a new vCPU has a state");
    let state = guest.state(&base).expect("it is this program's");
    machine.set_vcpu_state(&state).expect("the state is a vCPU's");
}

/// A natural stop that changes nothing and is told from others by its number, 0 to 15.
pub fn mark(a: &mut CodeAssembler, number: u32) -> Body {
    a.out(0x80 + number, al)
}

/// Writes a byte to a port of any number. Uses AL and DX.
pub fn outb(a: &mut CodeAssembler, port: u16, value: u8) -> Body {
    a.mov(edx, u32::from(port))?;
    a.mov(al, u32::from(value))?;
    a.out(dx, al)
}

/// The trap that replaces an instruction of `length` bytes.
pub fn trap(a: &mut CodeAssembler, trapped: Trapped, length: usize) -> Body {
    a.db(&trapped.encode(length).expect("a trap fits"))
}

/// Initializes the interrupt controllers for vectors 0x20 to 0x2f; bits of `masked` are the lines that stay off.
pub fn pic(a: &mut CodeAssembler, masked: u16) -> Body {
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 2),
        (0xa1, 1),
    ] {
        outb(a, port, value)?;
    }
    outb(a, 0x21, masked as u8)?;
    outb(a, 0xa1, (masked >> 8) as u8)
}

/// Programs channel 0 of the timer in mode 2 (periodic) with `count` ticks of 1.193182 MHz.
pub fn timer(a: &mut CodeAssembler, count: u16) -> Body {
    outb(a, 0x43, 0x34)?;
    outb(a, 0x40, count as u8)?;
    outb(a, 0x40, (count >> 8) as u8)
}

/// In a handler: end of interrupt, then return. Keeps all registers.
pub fn end_of_interrupt(a: &mut CodeAssembler) -> Body {
    a.push(rax)?;
    a.mov(al, 0x20u32)?;
    a.out(0x20u32, al)?;
    a.pop(rax)?;
    a.iretq()
}
