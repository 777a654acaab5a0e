//! Memory-mapped I/O: loads, stores, both in one instruction, and more than KVM moves in one exit.

use iced_x86::code_asm::*;
use lockstep_proto::DiskConfig;
use lockstep_proto::quantity::StopNumber;
use lockstep_vmm::machine::StopKind;

use super::guest::*;
use super::harness::*;

fn stops(recording: &Recording) -> Vec<(u64, bool)> {
    let kinds = recording.steps.iter().map(|step| step.stop.kind);
    kinds
        .filter_map(|kind| match kind {
            StopKind::Mmio {
                addr: addr @ NOBODY_PHYSICAL..,
                write,
            } => Some((addr - NOBODY_PHYSICAL, write)),
            _ => None,
        })
        .collect()
}

#[test]
fn loads_and_stores_of_every_width_are_stops() {
    if no_kvm() {
        return;
    }
    for ring in [Ring::Kernel, Ring::User] {
        let guest = MicroGuest::new(ring, |a| {
            a.mov(byte_ptr(NOBODY), al)?;
            a.mov(word_ptr(NOBODY + 2), ax)?;
            a.mov(dword_ptr(NOBODY + 4), eax)?;
            a.mov(qword_ptr(NOBODY + 8), rax)?;
            a.mov(bl, byte_ptr(NOBODY + 16))?;
            a.movzx(ecx, word_ptr(NOBODY + 18))?;
            a.mov(edx, dword_ptr(NOBODY + 20))?;
            a.mov(rsi, qword_ptr(NOBODY + 24))?;
            a.ud2()
        });
        let recording = Micro::new(guest).check();
        let expected: Vec<_> = [0, 2, 4, 8]
            .into_iter()
            .map(|at| (at, true))
            .chain([16, 18, 20, 24].map(|at| (at, false)))
            .collect();
        assert_eq!(stops(&recording), expected, "{ring:?}");
        let end = &recording.steps[7].regs;
        assert_eq!(
            (end.rbx, end.rcx, end.rdx, end.rsi),
            (0xff, 0xffff, 0xffff_ffff, u64::MAX),
            "{ring:?}"
        );
    }
}

#[test]
fn a_load_and_store_in_one_instruction_is_one_stop() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        // The slot's magic number is read, a nonsense magic is written.
        a.mov(eax, dword_ptr(SLOTS))?;
        a.add(dword_ptr(SLOTS), 1)?;
        a.xchg(dword_ptr(NOBODY), ebx)?;
        a.mov(ecx, dword_ptr(SLOTS))?;
        mark(a, 1)?;
        finish(a)
    });
    let recording = Micro::new(guest).check();
    let end = recording.at(1);
    assert_eq!(end.stop.number, StopNumber::new(5), "one stop for each instruction");
    assert_eq!(
        (end.regs.rax, end.regs.rcx, end.regs.rbx),
        (0x7472_6976, 0x7472_6976, 0xffff_ffff)
    );
}

#[test]
fn sixteen_bytes_are_one_stop() {
    if no_kvm() {
        return;
    }
    // Capacity, largest segment, number of segments: all sixteen bytes of the disk's configuration say something.
    let at = SLOTS + 0x100;
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.movdqu(xmm0, xmmword_ptr(DATA))?;
        a.movdqu(xmmword_ptr(NOBODY), xmm0)?;
        a.movdqu(xmm1, xmmword_ptr(at))?;
        a.movdqu(xmmword_ptr(DATA + 16), xmm1)?;
        a.mov(rax, qword_ptr(at))?;
        a.mov(rbx, qword_ptr(at + 8))?;
        mark(a, 1)?;
        finish(a)
    })
    .data(DATA, &[0x11; 16]);
    let mut micro = Micro::new(guest);
    micro.config.disks = vec![DiskConfig {
        bytes: 1 << 20,
        ..DiskConfig::default()
    }];
    let recording = micro.check();
    assert_eq!(stops(&recording), [(0, true)]);
    assert_eq!(recording.at(1).stop.number, StopNumber::new(5));
    let regs = recording.at(1).regs;
    assert!(regs.rax != 0 && regs.rbx != 0 && regs.rax != regs.rbx);
    assert_eq!(recording.words(DATA + 16, 2), [regs.rax, regs.rbx]);
}

/// KVM's emulator goes on with the next element while it completes an exit, up to 1,024 of them.
#[test]
fn string_instructions_on_devices() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(edi, NOBODY as u32)?;
        a.mov(ecx, 100)?;
        a.rep().stosd()?;
        mark(a, 1)?;
        // Within one slot: 1,000 dwords of its configuration, then 3,000 bytes back.
        a.mov(esi, SLOTS as u32)?;
        a.mov(edi, DATA as u32)?;
        a.mov(ecx, 1000)?;
        a.rep().movsd()?;
        mark(a, 2)?;
        a.mov(esi, SLOTS as u32)?;
        a.mov(edi, NOBODY as u32)?;
        a.mov(ecx, 3000)?;
        a.rep().movsb()?;
        mark(a, 3)?;
        finish(a)
    });
    let recording = Micro::new(guest).check();
    println!("stops: {:?}", [1, 2, 3].map(|mark| recording.at(mark).stop.number));
    assert_eq!(recording.at(2).regs.rsi, SLOTS + 4000);
    assert_eq!((recording.at(3).regs.rdi, recording.at(3).regs.rcx), (NOBODY + 3000, 0));
    assert_eq!(recording.word(DATA), 0x2_7472_6976, "magic, version");
}
