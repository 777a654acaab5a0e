//! RDTSC, RDTSCP, RDRAND and RDSEED as the loader rewrites them.

use iced_x86::code_asm::*;
use lockstep_vmm::loader::trap::Trapped;
use lockstep_vmm::machine::{MachineError, StopKind};

use super::guest::*;
use super::harness::*;

#[test]
fn rewritten_clocks_read_guest_time() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(rax, u64::MAX)?;
        a.mov(rdx, rax)?;
        a.mov(rcx, rax)?;
        trap(a, Trapped::Rdtsc, 2)?;
        mark(a, 1)?;
        trap(a, Trapped::Rdtscp, 3)?;
        mark(a, 2)?;
        finish(a)
    });
    let wide = 0x1_2345_6789;
    let recording = Micro::new(guest)
        .script(move |_, _, stop, turn| {
            if stop.kind == StopKind::Trap(Trapped::Rdtsc) {
                turn.clock = Some(wide);
            }
        })
        .check();
    let first = recording.at(1).regs;
    assert_eq!((first.rax, first.rdx, first.rcx), (wide & 0xffff_ffff, 1, u64::MAX));
    let second = recording.at(2).regs;
    let sample = recording.steps[2].turn.clock.expect("RDTSCP samples the clock");
    assert_eq!((second.rdx << 32 | second.rax, second.rcx), (wide + sample, 0));
}

#[test]
fn rewritten_random_numbers_come_from_the_log() {
    if no_kvm() {
        return;
    }
    let values: Vec<u64> = (1..=4).map(|n: u64| n.wrapping_mul(0x8765_4321_0fed_cba9)).collect();
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(rax, 0x1111_2222_3333_4444u64)?;
        for register in [rbx, r15, rsi, rdi] {
            a.mov(register, -1i64)?;
        }
        // Sets OF, SF and AF, leaves CF clear.
        a.mov(ecx, 0x7fff_ffff)?;
        a.inc(ecx)?;
        trap(a, Trapped::Rdrand { reg: 3, wide: true }, 4)?;
        mark(a, 1)?;
        trap(a, Trapped::Rdrand { reg: 15, wide: false }, 4)?;
        trap(a, Trapped::Rdseed { reg: 6, wide: true }, 4)?;
        trap(a, Trapped::Rdseed { reg: 7, wide: false }, 3)?;
        mark(a, 2)?;
        // RAX itself.
        trap(a, Trapped::Rdrand { reg: 0, wide: true }, 4)?;
        mark(a, 3)?;
        finish(a)
    });
    let mut next = 0;
    let given = values.clone();
    let recording = Micro::new(guest)
        .script(move |_, _, stop, turn| {
            if stop.wants_random {
                turn.random = Some(given[next % 4]);
                next += 1;
            }
        })
        .check();
    let first = recording.at(1).regs;
    assert_eq!(
        (first.rbx, first.rax),
        (values[0], 0x1111_2222_3333_4444),
        "only the destination changes"
    );
    assert_eq!(first.rflags & 0x8d5, 1, "CF only");
    let second = recording.at(2).regs;
    let low = |value: u64| value & 0xffff_ffff;
    assert_eq!(
        (second.r15, second.rsi, second.rdi),
        (low(values[1]), values[2], low(values[3]))
    );
    assert_eq!(recording.at(3).regs.rax, values[0]);
}

/// As Linux's alternatives do.
#[test]
fn a_copy_of_a_trap_at_another_address_works() {
    if no_kvm() {
        return;
    }
    let bytes = Trapped::Rdrand { reg: 2, wide: true }.encode(4).expect("it fits");
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(eax, u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))?;
        // Over the end of a page: the first byte on one, the second on the next.
        a.mov(dword_ptr(DATA + 0xfff), eax)?;
        a.mov(byte_ptr(DATA + 0x1003), 0xc3)?;
        a.mov(ecx, DATA as u32 + 0xfff)?;
        a.call(rcx)?;
        mark(a, 1)?;
        finish(a)
    });
    let recording = Micro::new(guest).check();
    assert_eq!(
        recording.steps[0].stop.kind,
        StopKind::Trap(Trapped::Rdrand { reg: 2, wide: true })
    );
    assert_eq!(Some(recording.at(1).regs.rdx), recording.steps[0].turn.random);
}

#[test]
fn a_trap_without_its_answer_is_refused() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| trap(a, Trapped::Rdseed { reg: 1, wide: true }, 4));
    let result = Micro::new(guest).script(|_, _, _, turn| turn.random = None).record();
    assert!(matches!(
        result,
        Err(Fault::Machine(MachineError::Turn { stop: 1, .. }))
    ));
}

/// Nobody rewrote it (a kernel module, generated code), but KVM's emulator declines it: it is a numbered stop all the same.
#[test]
fn a_declined_rdtscp_is_answered_from_the_log() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.rdtscp()?;
        mark(a, 1)?;
        finish(a)
    });
    let recording = Micro::new(guest).record().expect("RDTSCP is executed by somebody");
    if recording.end.counters.assists == 0 {
        println!("skipped: this host executes RDTSCP in ring 0");
        return;
    }
    assert_eq!(recording.steps[0].stop.kind, StopKind::Trap(Trapped::Rdtscp));
    assert_eq!(Some(recording.at(1).regs.rax), recording.steps[0].turn.clock);
    recording
        .replay(400)
        .unwrap_or_else(|fault| panic!("{}", recording.explain(&fault)));
}

/// What the loader does not see and the host executes natively is not controlled; it is detected.
#[test]
fn a_raw_rdtsc_is_detected_by_the_chain() {
    if no_kvm() {
        return;
    }
    for ring in [Ring::Kernel, Ring::User] {
        let guest = MicroGuest::new(ring, |a| {
            a.rdtsc()?;
            a.mov(dword_ptr(NOBODY), eax)?;
            a.ud2()
        });
        let recording = Micro::new(guest).record().expect("RDTSC is executed by somebody");
        if matches!(recording.steps[0].stop.kind, StopKind::Trap(_)) {
            println!("{ring:?}: this host declines RDTSC, so it is in the log");
            continue;
        }
        assert_eq!(
            recording.replay(5000).expect_err("two clocks").differs(),
            Some("chain"),
            "{ring:?}"
        );
    }
}
