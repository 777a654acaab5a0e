//! Traps, flags, control registers, and what is refused.

use super::*;

#[test]
fn int3_is_a_trap_and_ud2_a_fault() {
    let mut cpu = Model::new(&[0xcc]);
    cpu.regs.rflags |= FLAG_TF | FLAG_RF;
    let outcome = assist(&mut cpu).unwrap();
    assert!(matches!(outcome, Assisted::Raised { mnemonic: "int3", .. }));
    assert_eq!(
        cpu.raised,
        Some(Exception {
            vector: 3,
            error_code: None,
            cr2: None
        })
    );
    assert_eq!((cpu.regs.rip, cpu.regs.rflags), (RIP + 1, 2 | FLAG_TF));

    Model::new(&[0x0f, 0x0b]).faults(6, None);
    let mut user = Model::new(&[0xcc]);
    user.sregs.ss.dpl = 3;
    assert!(user.refused().contains("user code"));
}

#[test]
fn clac_and_stac_change_ac_alone() {
    for flags in [2, 2 | FLAG_AC, 0x246 | FLAG_AC, 0x897] {
        let mut cpu = Model::new(&[0x0f, 0x01, 0xca]);
        cpu.regs.rflags = flags;
        assert_eq!(cpu.done(3).regs.rflags, flags & !FLAG_AC);
        let mut cpu = Model::new(&[0x0f, 0x01, 0xcb]);
        cpu.regs.rflags = flags;
        assert_eq!(cpu.done(3).regs.rflags, flags | FLAG_AC);
    }
    let mut user = Model::new(&[0x0f, 0x01, 0xcb]);
    user.sregs.ss.dpl = 3;
    user.faults(6, None);
}

#[test]
fn the_resume_flag_is_cleared() {
    let mut cpu = Model::new(&[0x0f, 0x01, 0xca]);
    cpu.regs.rflags |= FLAG_RF;
    assert_eq!(cpu.done(3).regs.rflags, 2);
}

#[test]
fn fences_do_nothing() {
    for code in [[0x0f, 0xae, 0xe8], [0x0f, 0xae, 0xf0], [0x0f, 0xae, 0xf8]] {
        let mut cpu = Model::new(&code);
        let mut expected = cpu.regs;
        expected.rip += 3;
        assert_eq!(cpu.done(3).regs, expected);
    }
}

#[test]
fn xgetbv_gives_xcr0() {
    let mut cpu = Model::new(&[0x0f, 0x01, 0xd0]);
    cpu.faults(6, None);
    cpu.raised = None;
    cpu.sregs.cr4 |= CR4_OSXSAVE;
    cpu.regs.rcx = 1;
    cpu.faults(13, Some(0));
    cpu.raised = None;
    // Only ECX counts.
    cpu.regs.rcx = 0xffff_ffff_0000_0000;
    cpu.xcr0 = 0x8000_0001_0000_0007;
    cpu.regs.rax = u64::MAX;
    cpu.done(3);
    assert_eq!((cpu.regs.rax, cpu.regs.rdx), (7, 0x8000_0001));
}

#[test]
fn what_needs_an_answer_says_so_and_changes_nothing() {
    let cases: [(&[u8], Trapped); 6] = [
        (&[0x0f, 0x31], Trapped::Rdtsc),
        (&[0x0f, 0x01, 0xf9], Trapped::Rdtscp),
        (&[0x0f, 0xc7, 0xf1], Trapped::Rdrand { reg: 1, wide: false }),
        (&[0x49, 0x0f, 0xc7, 0xf7], Trapped::Rdrand { reg: 15, wide: true }),
        (&[0x48, 0x0f, 0xc7, 0xfa], Trapped::Rdseed { reg: 2, wide: true }),
        (&[0x41, 0x0f, 0xc7, 0xf8], Trapped::Rdseed { reg: 8, wide: false }),
    ];
    for (code, trapped) in cases {
        let mut cpu = Model::new(code);
        let before = cpu.clone();
        assert_eq!(
            assist(&mut cpu).unwrap(),
            Assisted::NeedsAnswer {
                trapped,
                length: code.len() as u8
            }
        );
        assert_eq!((cpu.retired, cpu.raised), (0, None));
        cpu.unchanged(&before);
    }
    Model::new(&[0x66, 0x0f, 0xc7, 0xf1]).refused();
    let mut user = Model::new(&[0x0f, 0x31]);
    user.sregs.ss.dpl = 3;
    user.sregs.cr4 |= CR4_TSD;
    user.faults(13, Some(0));
}

#[test]
fn what_is_unknown_is_named() {
    // vmovaps ymm0, ymm1; xsave [rdi]; no instruction at all
    for (code, text) in [
        (&[0xc5, 0xfc, 0x28, 0xc1][..], "vmovaps"),
        (&[0x0f, 0xae, 0x27], "xsave"),
        (&[0x06], "(no instruction)"),
    ] {
        let mut cpu = Model::new(code);
        cpu.regs.rbx = 0xfeed_beef;
        let message = cpu.refused();
        let first = format!("bytes {:02x} ", code[0]);
        for part in [text, "0xffffffff81001000", &first, "rbx 0xfeedbeef", "rflags 0x2"] {
            assert!(message.contains(part), "no `{part}` in: {message}");
        }
    }
}

#[test]
fn what_is_not_64_bit_or_not_readable_or_single_stepped_is_refused() {
    let clac = [0x0f, 0x01, 0xca];
    let mut cpu = Model::new(&clac);
    cpu.sregs.cs.l = 0;
    assert!(cpu.refused().contains("64-bit"));
    let mut cpu = Model::new(&clac);
    cpu.code.clear();
    assert!(cpu.refused().contains("cannot be read"));
    let mut cpu = Model::new(&clac);
    cpu.code.truncate(2);
    cpu.refused();
    // cmpxchg16b [rsi] writes memory: not before the refusal.
    let mut cpu = Model::new(&[0x48, 0x0f, 0xc7, 0x0e]);
    cpu.regs.rsi = DATA;
    cpu.regs.rbx = 1;
    cpu.regs.rflags |= FLAG_TF;
    assert!(cpu.refused().contains("TF"));
    // LOCK is not allowed there.
    Model::new(&[0xf0, 0x0f, 0x01, 0xca]).refused();
}
