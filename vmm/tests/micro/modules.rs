//! Kernel modules: looked through where the guest's kernel finishes them.

use iced_x86::code_asm::*;
use lockstep_proto::model::MODULES_REVISION;
use lockstep_vmm::loader::finalize;
use lockstep_vmm::loader::trap::Trapped;
use lockstep_vmm::machine::{MachineError, StopKind};

use super::guest::*;
use super::harness::*;
use super::snapshots::at_every_step;

/// The function in whose beginning the trap stands, in place of PUSH R15.
const FUNCTION: u64 = 0x3_0000;
/// The same function once more.
const COPY: u64 = FUNCTION + 0x200;
const R15: u8 = 15;
const PUSHED: u64 = 0x1234_5678_9abc_def0;

const HEADER: u64 = DATA;
const TABLE: u64 = DATA + 0x1000;
/// Where the module's code begins: its last bytes are on another page, which lies elsewhere.
const MODULE: u64 = DATA + 0x4ff6;
const SECOND_PAGE: u64 = DATA + 0x5000;
const SECOND_PHYSICAL: u64 = DATA + 0x9000;
const VALUES: u64 = DATA + 0x6000;
/// A module of many pages.
const LARGE: u64 = 0x4_0000;
const LARGE_BYTES: usize = 0xb_0003;
/// RFLAGS.IOPL: ring 3 may use ports.
const IOPL_3: u64 = 0x3000;

/// RDTSC, RDRAND R9 across the border of the pages, RDTSCP, RDSEED of 16 bits (which has no trap, and is not reached), and the bytes of
/// RDTSC in another instruction.
const CODE_BYTES: [u8; 21] = [
    0x0f, 0x31, // rdtsc
    0x48, 0x89, 0xc3, // mov rbx, rax
    0x90, 0x90, 0x90, // three NOPs
    0x49, 0x0f, 0xc7, 0xf1, // rdrand r9
    0x0f, 0x01, 0xf9, // rdtscp
    0xc3, // ret
    0x66, 0x0f, 0xc7, 0xf8, // rdseed ax
    0xc3, // ret
];

fn header(sections: u16) -> Vec<u8> {
    let mut header = vec![0; 64];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    header[16..20].copy_from_slice(&[1, 0, 62, 0]);
    header[58..60].copy_from_slice(&64u16.to_le_bytes());
    header[60..62].copy_from_slice(&sections.to_le_bytes());
    header
}

fn section(flags: u64, address: u64, size: u64) -> Vec<u8> {
    let mut section = vec![0; 64];
    section[4] = 1;
    section[8..16].copy_from_slice(&flags.to_le_bytes());
    section[16..24].copy_from_slice(&address.to_le_bytes());
    section[32..40].copy_from_slice(&size.to_le_bytes());
    section
}

/// What begins with a trap, or not.
fn function(a: &mut CodeAssembler, beginning: &[u8]) -> Body {
    a.db(beginning)?;
    a.mov(r14, rbp)?;
    a.sub(r14, rsp)?;
    a.mov(r13, qword_ptr(rsp))?;
    a.mov(rsp, rbp)?;
    a.ret()
}

/// Which of the main code's instructions follows the CALL.
const BEHIND_THE_CALL: usize = 8;

/// The kernel calls the function `at` for a module with these sections, then goes on with `after`. R14 is how much the stack has grown in
/// it, R13 what is on top.
fn finishing(at: u64, sections: &[Vec<u8>], after: impl FnOnce(&mut CodeAssembler) -> Body) -> MicroGuest {
    let border = (SECOND_PAGE - MODULE) as usize;
    MicroGuest::new(Ring::Kernel, |a| {
        a.mov(rdi, HEADER)?;
        a.mov(rsi, TABLE)?;
        a.mov(edx, 0xaf)?;
        a.mov(r15, PUSHED)?;
        a.mov(eax, 0x1111)?;
        a.lea(rbp, qword_ptr(rsp - 8))?;
        a.mov(rcx, at)?;
        a.call(rcx)?;
        mark(a, 1)?;
        after(a)?;
        finish(a)
    })
    .code(FUNCTION, |a| function(a, &finalize::trap(R15)))
    .data(HEADER, &header(sections.len() as u16))
    .data(TABLE, &sections.concat())
    .map(SECOND_PAGE, SECOND_PHYSICAL)
    .data(MODULE, &CODE_BYTES[..border])
    .data(SECOND_PHYSICAL, &CODE_BYTES[border..])
}

fn sections() -> Vec<Vec<u8>> {
    vec![
        section(0, 0, 0),
        section(6, MODULE, CODE_BYTES.len() as u64),
        // Data with the same bytes, and code that is not loaded.
        section(3, VALUES, 16),
        section(4, VALUES, 16),
    ]
}

/// A machine whose trap is at the function's beginning.
fn trapping(guest: MicroGuest) -> Micro {
    let mut micro = Micro::new(guest);
    micro.config.module_trap = FUNCTION;
    micro
}

fn whole() -> Micro {
    let guest = finishing(FUNCTION, &sections(), |a| {
        a.mov(rcx, MODULE)?;
        a.call(rcx)?;
        mark(a, 2)
    });
    trapping(guest.data(VALUES, &[0x0f, 0x31, 0x0f, 0x31]))
}

/// R14 and R13 where the function has returned, and whether the module is as it was.
fn outcome(recording: &Recording) -> (u64, u64, bool) {
    let regs = recording.at(1).regs;
    let untouched = recording.word(MODULE & !7) >> 48 == 0x310f;
    (regs.r14, regs.r13, untouched)
}

#[test]
fn a_module_is_rewritten_where_the_kernel_finishes_it() {
    if no_kvm() {
        return;
    }
    let recording = whole().check();
    let kinds: Vec<_> = recording.steps.iter().map(|step| step.stop.kind).collect();
    let port = |port| StopKind::Port { port, write: true };
    assert_eq!(
        kinds,
        [
            port(0xaf),
            port(0x81),
            StopKind::Trap(Trapped::Rdtsc),
            StopKind::Trap(Trapped::Rdrand { reg: 9, wide: true }),
            StopKind::Trap(Trapped::Rdtscp),
            port(0x82),
            StopKind::Halt
        ]
    );
    assert_eq!(outcome(&recording), (8, PUSHED, false));
    let regs = recording.at(1).regs;
    assert_eq!(
        (regs.rax, regs.r15, regs.rdi, regs.rsi),
        (0x1111, PUSHED, HEADER, TABLE)
    );
    let first = recording.steps[2].turn.clock.expect("RDTSC samples the clock");
    let second = recording.at(2).regs;
    assert_eq!((Some(second.r9), second.rbx), (recording.steps[3].turn.random, first));
    assert_eq!(recording.word(VALUES), 0x310f_310f, "data stays");
    let counters = |end: &Final| {
        let counters = end.counters;
        (counters.modules, counters.module_instructions, counters.modules_left)
    };
    assert_eq!(counters(&recording.end), (1, 3, 1));
    assert_eq!(counters(&recording.replay(700).expect("a replay")), (1, 3, 1));
}

#[test]
fn a_machine_with_modules_goes_on_from_every_step() {
    if no_kvm() {
        return;
    }
    at_every_step(whole());
}

/// The access was an ordinary one: nothing was pushed, and the module is as it was.
fn assert_ordinary(micro: Micro) {
    let recording = micro.check();
    assert_eq!(outcome(&recording), (0, recording.guest.address(BEHIND_THE_CALL), true));
    assert_eq!(
        recording.steps[0].stop.kind,
        StopKind::Port {
            port: 0xaf,
            write: true
        }
    );
    let counters = recording.end.counters;
    assert_eq!((counters.modules, counters.modules_left), (0, 0));
}

fn plain(function: u64) -> MicroGuest {
    finishing(function, &sections(), |_| Ok(()))
}

#[test]
fn a_machine_of_an_older_revision_has_no_trap() {
    if no_kvm() {
        return;
    }
    let mut micro = trapping(plain(FUNCTION));
    micro.config.model_revision = MODULES_REVISION - 1;
    assert_ordinary(micro);
    assert_ordinary(Micro::new(plain(FUNCTION)));
}

#[test]
fn the_same_access_elsewhere_is_an_ordinary_one() {
    if no_kvm() {
        return;
    }
    for place in [FUNCTION - 1, FUNCTION + 1, FUNCTION + 2, CODE] {
        let mut micro = trapping(plain(FUNCTION));
        micro.config.module_trap = place;
        assert_ordinary(micro);
    }
    // A copy of the function, while the trap is where it should be.
    assert_ordinary(trapping(plain(COPY).code(COPY, |a| function(a, &finalize::trap(R15)))));
    // Another access that ends where the trap would: NOP, `out dx, eax`.
    assert_ordinary(trapping(plain(FUNCTION).data(FUNCTION, &[0x90, 0xef])));
}

#[test]
fn the_access_of_a_program_is_an_ordinary_one() {
    if no_kvm() {
        return;
    }
    let guest = MicroGuest::new(Ring::User, |a| {
        a.mov(r14, rsp)?;
        a.db(&finalize::trap(R15))?;
        a.sub(r14, rsp)?;
        a.mov(dword_ptr(NOBODY), eax)?;
        a.ud2()
    })
    .with_flags(IOPL_3);
    let place = guest.address(1);
    let mut micro = trapping(guest);
    micro.config.module_trap = place;
    let recording = micro.check();
    if recording.steps[0].stop.kind
        != (StopKind::Port {
            port: 0xaf,
            write: true,
        })
    {
        println!("SKIPPED: this host does not let ring 3 use ports");
        return;
    }
    assert_eq!(recording.steps[1].regs.r14, 0);
}

/// Without the PUSH the kernel would go on with another stack.
#[test]
fn a_stack_that_cannot_be_written_stops_the_machine() {
    if no_kvm() {
        return;
    }
    for (bottom, why) in [
        (0x4000_0000, "#PF"),
        (NOBODY + 0x800, "is not memory"),
        (4, "canonical"),
        (1 << 63, "canonical"),
    ] {
        let guest = MicroGuest::new(Ring::Kernel, |a| {
            a.mov(rsp, bottom)?;
            a.mov(rcx, FUNCTION)?;
            a.jmp(rcx)
        })
        .code(FUNCTION, |a| function(a, &finalize::trap(R15)));
        match trapping(guest).record() {
            Err(Fault::Machine(MachineError::ModuleStack {
                stop: FIRST_STOP,
                why: said,
                ..
            })) if said.contains(why) => {}
            other => panic!("{bottom:#x}: {:?}", other.err()),
        }
    }
}

/// What cannot be followed is left and counted, and the kernel goes on.
#[test]
fn headers_that_cannot_be_are_left() {
    if no_kvm() {
        return;
    }
    let end = MEMORY_BYTES;
    let of = |sections: &[Vec<u8>], header: &[u8]| finishing(FUNCTION, sections, |_| Ok(())).data(HEADER, header);
    let whole = section(6, MODULE, CODE_BYTES.len() as u64);
    let cases = [
        ("no header", of(&sections(), &[0; 64]), (0, 1), true),
        ("no sections", of(&sections(), &header(0)), (0, 1), true),
        ("headers beyond memory", of(&sections(), &header(0xffff)), (0, 1), true),
        ("no code", of(&[section(3, MODULE, 21)], &header(1)), (1, 0), true),
        (
            "too much code",
            of(&[whole.clone(), section(6, 0, 1 << 40)], &header(2)),
            (0, 1),
            true,
        ),
        (
            "around the end",
            of(&[whole.clone(), section(6, u64::MAX, 2)], &header(2)),
            (0, 1),
            true,
        ),
        (
            "code beyond memory",
            of(&[section(6, end - 0x1010, 0x2000), whole.clone()], &header(2)),
            (1, 2),
            false,
        ),
        (
            "code that is not mapped",
            of(&[section(6, 1 << 40, 16), whole.clone()], &header(2)),
            (1, 2),
            false,
        ),
        (
            "code of no canonical address",
            of(&[section(6, 1 << 63, 16), whole], &header(2)),
            (1, 2),
            false,
        ),
    ];
    for (what, guest, counts, untouched) in cases {
        let recording = trapping(guest).check();
        assert_eq!(outcome(&recording), (8, PUSHED, untouched), "{what}");
        let counters = recording.end.counters;
        assert_eq!((counters.modules, counters.modules_left), counts, "{what}");
    }
}

/// A section of many pages, which is looked at in pieces.
#[test]
fn a_large_module_is_looked_through_to_its_end() {
    if no_kvm() {
        return;
    }
    let code: Vec<u8> = (0..LARGE_BYTES).map(|at| [0x90, 0x0f, 0x31][at % 3]).collect();
    let guest = finishing(FUNCTION, &[section(6, LARGE, LARGE_BYTES as u64)], |_| Ok(())).data(LARGE, &code);
    let recording = trapping(guest).check();
    let counters = recording.end.counters;
    assert_eq!(
        (counters.module_instructions, counters.modules_left),
        (LARGE_BYTES as u64 / 3, 0)
    );
    for at in [LARGE, LARGE + 0x1_0000, LARGE + 0xa_fff8] {
        let expected: [u8; 8] = std::array::from_fn(|index| [0x90, 0xe5, 0xa8][((at - LARGE) as usize + index) % 3]);
        assert_eq!(recording.word(at).to_le_bytes(), expected, "{at:#x}");
    }
}
