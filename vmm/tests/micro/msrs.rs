//! MSRs: those that KVM keeps, those that we answer, and those that the guest does not have.

use iced_x86::code_asm::*;
use lockstep_proto::quantity::StopNumber;
use lockstep_vmm::machine::StopKind;

use super::forced::{after_the_store, computing, until};
use super::guest::*;
use super::harness::*;

const LSTAR: u32 = 0xc000_0082;
const TSC: u32 = 0x10;
const MISC_ENABLE: u32 = 0x1a0;
/// A perfmon MSR, one of KVM's own, and one that no CPU has.
const UNKNOWN: [u32; 3] = [0xc1, 0x4b56_4d01, 0x1234_5678];

#[test]
fn msrs_are_kept_or_answered_or_fault() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(ecx, LSTAR)?;
        a.mov(eax, 0x1234_5000)?;
        a.mov(edx, 0x7f)?;
        a.wrmsr()?;
        a.xor(eax, eax)?;
        a.rdmsr()?;
        mark(a, 1)?;
        a.mov(ecx, TSC)?;
        a.wrmsr()?;
        a.rdmsr()?;
        mark(a, 2)?;
        a.mov(ecx, MISC_ENABLE)?;
        a.rdmsr()?;
        mark(a, 3)?;
        for index in UNKNOWN {
            a.mov(ecx, index)?;
            a.rdmsr()?;
            a.wrmsr()?;
        }
        mark(a, 4)?;
        finish(a)
    })
    .handler(13, |a| {
        // Counts, drops the error code, skips the two bytes of the instruction.
        a.inc(qword_ptr(DATA))?;
        a.add(rsp, 8)?;
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()
    });
    let recording = Micro::new(guest).check();
    assert_eq!(recording.at(1).stop.number, StopNumber::new(1), "KVM keeps LSTAR");
    assert_eq!(
        (recording.at(1).regs.rax, recording.at(1).regs.rdx),
        (0x1234_5000, 0x7f)
    );
    let msrs: Vec<_> = recording
        .steps
        .iter()
        .filter_map(|step| match step.stop.kind {
            StopKind::Msr { index, write } => Some((index, write)),
            _ => None,
        })
        .collect();
    let mut expected = vec![(TSC, true), (TSC, false), (MISC_ENABLE, false)];
    expected.extend(UNKNOWN.into_iter().flat_map(|index| [(index, false), (index, true)]));
    assert_eq!(msrs, expected);
    let sample = recording.steps.iter().find(|step| {
        step.stop.kind
            == StopKind::Msr {
                index: TSC,
                write: false,
            }
    });
    let sample = sample
        .and_then(|step| step.turn.clock)
        .expect("RDMSR of the TSC samples the clock");
    assert_eq!(
        recording.at(2).regs.rax,
        sample,
        "the TSC is guest time, and cannot be set"
    );
    assert_eq!(recording.at(3).regs.rax, 1);
    assert_eq!(recording.word(DATA), 6, "general protection faults in the guest");
    assert_eq!(recording.end.counters.msr_faults, 6);
}

/// KVM on SVM keeps 64 bits of IA32_SYSENTER_EIP when the guest writes them, and 32 when a replica is given them by a delta.
#[test]
fn a_replica_has_what_the_guest_wrote_for_sysenter() {
    if no_kvm() {
        return;
    }
    for index in [0x175, 0x176] {
        let guest = computing(Ring::Kernel, |a| {
            a.mov(ecx, index)?;
            a.mov(eax, 0x8100_1230_u32)?;
            a.mov(edx, 0xffff_ffff_u32)?;
            a.wrmsr()?;
            a.mov(dword_ptr(NOBODY), eax)?;
            until(a, 2, |a| a.inc(r8))?;
            a.rdmsr()?;
            a.mov(qword_ptr(DATA + 0x100), rdx)?;
            a.mov(dword_ptr(NOBODY + 4), eax)?;
            a.ud2()
        });
        let recording = after_the_store(guest).check();
        assert!(recording.forced() >= 2);
        let high = recording.word(DATA + 0x100);
        assert!(high == 0 || high == 0xffff_ffff, "{high:#x}");
    }
}
