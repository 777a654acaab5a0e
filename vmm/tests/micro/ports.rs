//! Port I/O: every access is a stop, string instructions too.

use iced_x86::code_asm::*;
use lockstep_proto::end::Reason;
use lockstep_vmm::machine::{MachineError, StopKind};

use super::guest::*;
use super::harness::*;

#[test]
fn ins_and_outs_of_every_width_are_stops() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(eax, 0x1234_5678)?;
        a.out(0x80, al)?;
        a.out(0x81, ax)?;
        a.out(0x82, eax)?;
        a.in_(al, 0x64)?;
        a.mov(edx, 0x3fd)?;
        a.in_(al, dx)?;
        a.mov(ecx, eax)?;
        a.in_(ax, dx)?;
        a.in_(eax, dx)?;
        a.mov(qword_ptr(DATA), rax)?;
        a.mov(qword_ptr(DATA + 8), rcx)?;
        finish(a)
    });
    let recording = Micro::new(guest).check();
    let ports: Vec<_> = recording.steps.iter().map(|step| step.stop.kind).collect();
    let port = |port, write| StopKind::Port { port, write };
    assert_eq!(
        ports,
        [
            port(0x80, true),
            port(0x81, true),
            port(0x82, true),
            port(0x64, false),
            port(0x3fd, false),
            port(0x3fd, false),
            port(0x3fd, false),
            StopKind::Halt
        ]
    );
    assert_eq!(recording.steps.last().and_then(|step| step.ended), Some(Reason::Halted));
    // A natural stop's registers are those after the instruction: the line status was read.
    assert_eq!(recording.steps[4].regs.rax & 0xff, 0x60);
    assert_eq!(recording.word(DATA + 8), 0x1234_5660);
}

#[test]
fn string_io_is_a_stop_for_every_element_or_batch_alike() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(esi, DATA as u32)?;
        a.mov(ecx, 13)?;
        a.mov(edx, 0x3f8)?;
        a.rep().outsb()?;
        mark(a, 1)?;
        // From a port that says the time, over the end of a page.
        a.mov(edi, DATA as u32 + 0x1fd1)?;
        a.mov(ecx, 300)?;
        a.mov(edx, 0x40)?;
        a.rep().insb()?;
        a.mov(ecx, 20)?;
        a.mov(edx, 0x84)?;
        a.rep().insd()?;
        mark(a, 2)?;
        finish(a)
    })
    .data(DATA, b"hello, world\n");
    let recording = Micro::new(guest).check();
    assert_eq!(recording.world.console, b"hello, world\n");
    let out = recording.steps.iter().filter(|step| {
        step.stop.kind
            == StopKind::Port {
                port: 0x3f8,
                write: true,
            }
    });
    println!("{} exits for 13 bytes by rep outsb", out.count());
    assert_eq!(recording.at(1).regs.rsi, DATA + 13);
    let end = recording.at(2);
    assert_eq!((end.regs.rcx, end.regs.rdi), (0, DATA + 0x1fd1 + 300 + 80));
    assert_eq!(recording.word(DATA + 0x1fd1 + 300), u64::MAX);
}

#[test]
fn an_ordinary_in_on_a_trap_port_stops_the_machine() {
    if no_kvm() {
        return;
    }
    for port in [0xa8u32, 0xb3, 0xef] {
        let guest = MicroGuest::new(Ring::Kernel, |a| {
            a.mov(edx, port)?;
            a.in_(eax, dx)?;
            finish(a)
        });
        match Micro::new(guest).record() {
            Err(Fault::Machine(MachineError::TrapPort {
                stop: FIRST_STOP, rip, ..
            })) => assert_eq!(rip, CODE + 4),
            other => panic!("port {port:#x}: {:?}", other.map(|recording| recording.steps)),
        }
    }
}

#[test]
fn a_write_to_a_trap_port_is_nothing_special() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.out(0xa8, eax)?;
        a.in_(ax, 0xb0)?;
        a.in_(al, 0xa8)?;
        mark(a, 1)?;
        finish(a)
    });
    assert_eq!(Micro::new(guest).check().at(1).regs.rax, 0xffff);
}
