//! RDTSC, RDTSCP, RDRAND and RDSEED: as the loader rewrites them, and raw.

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
        Err(Fault::Machine(MachineError::Turn { stop: FIRST_STOP, .. }))
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
        println!("SKIPPED: this host executes RDTSCP in ring 0");
        return;
    }
    assert_eq!(recording.steps[0].stop.kind, StopKind::Trap(Trapped::Rdtscp));
    assert_eq!(Some(recording.at(1).regs.rax), recording.steps[0].turn.clock);
    recording
        .replay(400)
        .unwrap_or_else(|fault| panic!("{}", recording.explain(&fault)));
}

/// An instruction that shows the host.
struct Raw {
    name: &'static str,
    is_here: fn() -> bool,
    /// Leaves a value in RAX; may change RCX and RDX.
    body: fn(&mut CodeAssembler) -> Body,
}

const RAW: [Raw; 4] = [
    Raw {
        name: "RDTSC",
        is_here: || true,
        body: CodeAssembler::rdtsc,
    },
    Raw {
        name: "RDTSCP",
        is_here: host_has_rdtscp,
        body: CodeAssembler::rdtscp,
    },
    Raw {
        name: "RDRAND",
        is_here: || std::is_x86_feature_detected!("rdrand"),
        body: |a| until_carry(a, |a| a.rdrand(rax)),
    },
    Raw {
        name: "RDSEED",
        is_here: || std::is_x86_feature_detected!("rdseed"),
        body: |a| until_carry(a, |a| a.rdseed(rax)),
    },
];

fn host_has_rdtscp() -> bool {
    const EXTENDED: u32 = 0x8000_0000;
    let leaf = std::arch::x86_64::__cpuid;
    leaf(EXTENDED).eax > EXTENDED && leaf(EXTENDED + 1).edx >> 27 & 1 == 1
}

/// Random numbers may take several attempts; without any, after a million, the guest goes astray.
fn until_carry(a: &mut CodeAssembler, attempt: impl FnOnce(&mut CodeAssembler) -> Body) -> Body {
    let (mut again, mut done) = (a.create_label(), a.create_label());
    a.mov(ecx, 1_000_000)?;
    a.set_label(&mut again)?;
    attempt(a)?;
    a.jc(done)?;
    a.dec(ecx)?;
    a.jnz(again)?;
    a.mov(eax, dword_ptr(0x4000_0000))?;
    a.set_label(&mut done)?;
    a.nop()
}

/// Mixes some values into one, so that two clocks can hardly agree by accident. It is stored at [`DATA`] and stays in RBX
/// if `kept`; no other register shows it.
fn shows(ring: Ring, raw: &Raw, kept: bool) -> MicroGuest {
    MicroGuest::new(ring, |a| {
        for _ in 0..4 {
            (raw.body)(a)?;
            a.imul_3(rbx, rbx, 31)?;
            a.add(rbx, rax)?;
        }
        a.mov(qword_ptr(DATA), rbx)?;
        if !kept {
            a.xor(ebx, ebx)?;
        }
        for register in [eax, ecx, edx] {
            a.xor(register, register)?;
        }
        a.mov(dword_ptr(NOBODY), eax)?;
        a.ud2()
    })
}

/// What the loader does not see and the host executes natively is not controlled; it is detected: in a register by the
/// chain, in memory by the epoch.
#[test]
fn raw_clocks_and_random_numbers_are_detected() {
    if no_kvm() {
        return;
    }
    let mut missed = Vec::new();
    for raw in &RAW {
        let name = raw.name;
        if !(raw.is_here)() {
            println!("{name}: skipped, this host does not have it");
            continue;
        }
        for (ring, kept) in Ring::ALL.into_iter().flat_map(|ring| [(ring, true), (ring, false)]) {
            let recording = Micro::new(shows(ring, raw, kept))
                .record()
                .expect("it is executed or faults");
            let first = recording.steps[0].stop.kind;
            let (fate, expected) = match first {
                StopKind::Mmio { write: true, .. } if kept => ("executes", Some("chain")),
                StopKind::Mmio { write: true, .. } => ("executes", Some("epoch")),
                StopKind::Trap(_) => ("is declined and comes from the log", None),
                // #UD, whose handler ends the guest.
                StopKind::Halt => ("is hidden and faults", None),
                other => panic!("{name} in {ring}: {other:?}"),
            };
            let found = recording.replay(5000).err();
            println!("{name} {fate} in {ring}; replayed: {found:?}");
            let is_right = match (&found, expected) {
                (None, None) => true,
                (Some(Fault::Diverged(0, what)), Some(expected)) => *what == expected,
                _ => false,
            };
            if !is_right {
                missed.push(format!("{name} in {ring}: {found:?} instead of {expected:?}"));
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
