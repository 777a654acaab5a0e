//! The CPU: its CPUID, and instructions that KVM's emulator declines and we execute.

use iced_x86::code_asm::*;
use kvm_bindings::CpuId;
use lockstep_proto::quantity::StopNumber;
use lockstep_vmm::cpu::profile::Profile;
use lockstep_vmm::probe;

use super::guest::*;
use super::harness::*;

/// Stores CPUID of each leaf at [`DATA`], 16 bytes each.
fn cpuid(ring: Ring, leaves: &[u32]) -> Vec<[u32; 4]> {
    let guest = MicroGuest::new(ring, |a| {
        for (index, &leaf) in leaves.iter().enumerate() {
            let at = DATA + index as u64 * 16;
            a.mov(eax, leaf)?;
            a.xor(ecx, ecx)?;
            a.cpuid()?;
            for (offset, register) in [(0, eax), (4, ebx), (8, ecx), (12, edx)] {
                a.mov(dword_ptr(at + offset), register)?;
            }
        }
        a.ud2()
    });
    let words = Micro::new(guest).check().words(DATA, leaves.len() * 2);
    words
        .chunks(2)
        .map(|pair| {
            [
                pair[0] as u32,
                (pair[0] >> 32) as u32,
                pair[1] as u32,
                (pair[1] >> 32) as u32,
            ]
        })
        .collect()
}

/// Whether ring 3 sees the host's highest leaf where the profile has another.
fn shows_the_host(profile: &CpuId) -> bool {
    let host = std::arch::x86_64::__cpuid(0).eax;
    let ours = profile.as_slice().iter().find(|entry| entry.function == 0);
    ours.is_some_and(|entry| entry.eax != host) && cpuid(Ring::User, &[0])[0][0] == host
}

/// Whether KVM_SET_CPUID2 binds is the host's matter (docs/determinism.md). What is required is that a leaf shows either
/// the profile or, on hosts that mix their own features in, only leaves 1 (ECX, EDX), 7 and 0xd differently. Where ring 3
/// executes CPUID natively, the probe must have found out.
#[test]
fn cpuid_shows_the_profile() {
    if no_kvm() {
        return;
    }
    let profile = Profile::for_this_host().expect("a profile").cpuid();
    let leaves: Vec<u32> = profile.as_slice().iter().map(|entry| entry.function).collect();
    for ring in [Ring::Kernel, Ring::User] {
        if ring == Ring::User && shows_the_host(&profile) {
            let class = probe::at_start().expect("a probe").class;
            assert!(class.contains("cpuid3=host"), "{class}");
            println!("ring 3 executes CPUID natively here");
            continue;
        }
        for (entry, seen) in profile.as_slice().iter().zip(cpuid(ring, &leaves)) {
            let (leaf, expected) = (entry.function, [entry.eax, entry.ebx, entry.ecx, entry.edx]);
            if seen != expected {
                let host = std::arch::x86_64::__cpuid_count(leaf, 0);
                println!(
                    "{ring:?}: leaf {leaf:#x} shows {seen:08x?}, the profile has {expected:08x?}, the host {host:08x?}"
                );
                assert!(
                    matches!(leaf, 1 | 7 | 0xd),
                    "{ring:?}: leaf {leaf:#x} shows {seen:08x?}"
                );
                assert!(leaf != 1 || seen[..2] == expected[..2], "signature, APIC id");
            }
        }
    }
}

#[test]
fn declined_instructions_have_their_results() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(rax, 0xf0f0_0000_0000_0001u64)?;
        a.popcnt(rbx, rax)?;
        // CMPXCHG16B that fails and loads, then one that succeeds and stores.
        a.mov(ecx, 0x33)?;
        a.mov(r8, rbx)?;
        a.mov(ebx, 0x44)?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.lock().cmpxchg16b(xmmword_ptr(DATA + 0x100))?;
        a.setz(r9b)?;
        a.lock().cmpxchg16b(xmmword_ptr(DATA + 0x100))?;
        a.setz(r10b)?;
        // INT3 goes to its handler and comes back.
        a.int3()?;
        a.fninit()?;
        a.wait()?;
        a.fnclex()?;
        a.emms()?;
        a.mov(dword_ptr(DATA + 0x200), 0x1fa0)?;
        a.ldmxcsr(dword_ptr(DATA + 0x200))?;
        a.stmxcsr(dword_ptr(DATA + 0x204))?;
        a.lfence()?;
        a.mfence()?;
        a.sfence()?;
        mark(a, 1)?;
        finish(a)
    })
    .data(DATA + 0x100, &[0x11; 16])
    .handler(3, |a| {
        a.inc(qword_ptr(DATA))?;
        a.iretq()
    });
    let recording = Micro::new(guest).check();
    let regs = recording.at(1).regs;
    assert_eq!((regs.r8, regs.r9, regs.r10), (9, 0, 1));
    assert_eq!((regs.rax, regs.rdx), (0x1111_1111_1111_1111, 0x1111_1111_1111_1111));
    assert_eq!(recording.words(DATA + 0x100, 2), [0x44, 0x33]);
    assert_eq!(recording.words(DATA + 0x200, 1), [0x1fa0_0000_1fa0]);
    assert_eq!(recording.word(DATA), 1, "breakpoints");
    assert_eq!(
        recording.at(1).stop.number,
        StopNumber::new(1),
        "assists are not numbered"
    );
    println!("{} instructions were assisted", recording.end.counters.assists);
}
