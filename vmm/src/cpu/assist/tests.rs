use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const RIP: u64 = 0xffff_ffff_8100_1000;
const DATA: u64 = 0xffff_8880_0000_1000;
const PAGE: u64 = 4096;

/// A vCPU and its memory, as a table of pages: linear address to (writable, bytes).
#[derive(Clone)]
struct Model {
    regs: kvm_regs,
    sregs: kvm_sregs,
    fpu: kvm_fpu,
    xcr0: u64,
    code: Vec<u8>,
    pages: BTreeMap<u64, (bool, Vec<u8>)>,
    retired: usize,
    raised: Option<Exception>,
}

impl Model {
    fn new(code: &[u8]) -> Self {
        let regs = kvm_regs {
            rip: RIP,
            rflags: 2,
            ..kvm_regs::default()
        };
        let mut sregs = kvm_sregs {
            cr0: 0x8005_0033,
            cr4: 0x20,
            efer: 0x500,
            ..kvm_sregs::default()
        };
        sregs.cs.l = 1;
        let fpu = kvm_fpu {
            fcw: 0x37f,
            mxcsr: 0x1f80,
            ..kvm_fpu::default()
        };
        let mut code = code.to_vec();
        code.extend_from_slice(&[0x90; 15]);
        let pages = BTreeMap::from([(DATA, (true, vec![0; PAGE as usize]))]);
        Self {
            regs,
            sregs,
            fpu,
            xcr0: 7,
            code,
            pages,
            retired: 0,
            raised: None,
        }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.write(at, bytes).expect("a page of the model");
    }

    fn get<const N: usize>(&mut self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(at, &mut bytes, Access::Read).expect("a page of the model");
        bytes
    }

    fn byte(&mut self, address: u64, access: Access) -> Result<&mut u8, Fault> {
        let fault = |error_code| Fault::Page { address, error_code };
        let write = if access == Access::Write { 2 } else { 0 };
        match self.pages.get_mut(&(address & !(PAGE - 1))) {
            Some((writable, _)) if access == Access::Write && !*writable => Err(fault(3)),
            Some((_, bytes)) => Ok(&mut bytes[(address % PAGE) as usize]),
            None => Err(fault(write)),
        }
    }

    /// Runs it, and expects it to be done and RIP to be `length` further on.
    fn done(&mut self, length: u64) -> &mut Self {
        let before = self.regs.rip;
        let outcome = assist(self).expect("assisted");
        assert!(matches!(outcome, Assisted::Done { .. }), "{outcome:?}");
        assert_eq!((self.retired, self.raised), (1, None));
        assert_eq!(self.regs.rip, before + length);
        self
    }

    /// Runs it, and expects an exception and nothing else to happen.
    fn faults(&mut self, vector: u8, error_code: Option<u32>) -> Exception {
        let before = self.clone();
        let outcome = assist(self).expect("assisted");
        let Assisted::Raised { exception, .. } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!((exception.vector, exception.error_code), (vector, error_code));
        assert_eq!((self.raised, self.retired), (Some(exception), 0));
        self.unchanged(&before);
        exception
    }

    /// Runs it, and expects it to be refused and nothing to happen.
    fn refused(&mut self) -> String {
        let before = self.clone();
        let error = assist(self).expect_err("refused");
        assert_eq!((self.raised, self.retired), (None, 0));
        self.unchanged(&before);
        error.to_string()
    }

    fn unchanged(&self, before: &Self) {
        assert_eq!(self.regs, before.regs);
        assert_eq!(self.fpu, before.fpu);
        assert!(self.pages == before.pages);
    }
}

impl AssistCpu for Model {
    fn regs(&mut self) -> Result<kvm_regs, Fault> {
        Ok(self.regs)
    }

    fn sregs(&mut self) -> Result<kvm_sregs, Fault> {
        Ok(self.sregs)
    }

    fn fpu(&mut self) -> Result<kvm_fpu, Fault> {
        Ok(self.fpu)
    }

    fn set_fpu(&mut self, fpu: &kvm_fpu) -> Result<(), Fault> {
        self.fpu = *fpu;
        Ok(())
    }

    fn xcr0(&mut self) -> Result<u64, Fault> {
        Ok(self.xcr0)
    }

    fn code(&mut self, address: u64, out: &mut [u8]) -> usize {
        assert_eq!(address, self.regs.rip);
        let count = out.len().min(self.code.len());
        out[..count].copy_from_slice(&self.code[..count]);
        count
    }

    fn read(&mut self, address: u64, out: &mut [u8], access: Access) -> Result<(), Fault> {
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = *self.byte(address.wrapping_add(i as u64), access)?;
        }
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        for i in 0..data.len() {
            self.byte(address.wrapping_add(i as u64), Access::Write)?;
        }
        for (i, byte) in data.iter().enumerate() {
            *self.byte(address.wrapping_add(i as u64), Access::Write)? = *byte;
        }
        Ok(())
    }

    fn retire(&mut self, regs: &kvm_regs) -> Result<(), Fault> {
        self.regs = *regs;
        self.retired += 1;
        Ok(())
    }

    fn raise(&mut self, regs: &kvm_regs, exception: Exception) -> Result<(), Fault> {
        assert_eq!(self.raised, None);
        self.regs = *regs;
        self.raised = Some(exception);
        Ok(())
    }
}

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

#[test]
fn wait_asks_for_pending_exceptions() {
    Model::new(&[0x9b]).done(1);
    // fclex is fwait and fnclex.
    Model::new(&[0x9b, 0xdb, 0xe2]).done(1);
    for (bits, vector) in [(CR0_TS, Some(7)), (0, None)] {
        let mut cpu = Model::new(&[0x9b]);
        cpu.sregs.cr0 |= bits;
        match vector {
            Some(vector) => drop(cpu.faults(vector, None)),
            None => drop(cpu.done(1)),
        }
    }
    // TS without MP does not count for fwait.
    let mut cpu = Model::new(&[0x9b]);
    cpu.sregs.cr0 = cpu.sregs.cr0 & !CR0_MP | CR0_TS;
    cpu.done(1);
    for exception in 0..6 {
        let mut cpu = Model::new(&[0x9b]);
        cpu.fpu.fsw = 1 << exception;
        cpu.done(1);
        let mut cpu = Model::new(&[0x9b]);
        cpu.fpu.fsw = 1 << exception;
        cpu.fpu.fcw &= !(1 << exception);
        cpu.faults(16, None);
        cpu.raised = None;
        cpu.sregs.cr0 &= !CR0_NE;
        assert!(cpu.refused().contains("CR0.NE"));
    }
}

#[test]
fn fnclex_clears_exceptions_even_pending_ones() {
    let mut cpu = Model::new(&[0xdb, 0xe2]);
    cpu.fpu.fsw = 0xffff;
    cpu.fpu.fcw = 0x340;
    let mut expected = cpu.fpu;
    expected.fsw = 0x7f00;
    assert_eq!(cpu.done(2).fpu, expected);
    for bit in [CR0_EM, CR0_TS] {
        let mut cpu = Model::new(&[0xdb, 0xe2]);
        cpu.sregs.cr0 |= bit;
        cpu.faults(7, None);
    }
}

#[test]
fn emms_empties_the_stack() {
    let mut cpu = Model::new(&[0x0f, 0x77]);
    cpu.fpu.ftwx = 0xff;
    cpu.fpu.fsw = 0x3000;
    for i in 0..8 {
        // Stack order: physical register 6 is the top.
        cpu.fpu.fpr[i] = [(6 + i as u8) & 7; 16];
    }
    cpu.done(2);
    assert_eq!((cpu.fpu.ftwx, cpu.fpu.fsw), (0, 0));
    for i in 0..8 {
        assert_eq!(cpu.fpu.fpr[i], [i as u8; 16]);
    }
    for (vector, bits, fsw, fcw) in [(6, CR0_EM, 0, 0x37f), (7, CR0_TS, 0, 0x37f), (16, 0, 4, 0x37b)] {
        let mut cpu = Model::new(&[0x0f, 0x77]);
        cpu.sregs.cr0 |= bits;
        (cpu.fpu.fsw, cpu.fpu.fcw) = (fsw, fcw);
        cpu.faults(vector, None);
    }
}

#[test]
fn fild_pushes() {
    let mut cpu = Model::new(&[0xdb, 0x07]);
    cpu.regs.rdi = DATA + 4;
    cpu.put(DATA + 4, &5i32.to_le_bytes());
    cpu.fpu.fpr[0] = [9; 16];
    cpu.fpu.fsw = C1_FOR_TEST;
    cpu.done(2);
    // As a real processor has it after `emms; fild`.
    assert_eq!((cpu.fpu.fsw, cpu.fpu.ftwx, cpu.fpu.last_ip), (0x3800, 0x80, RIP));
    assert_eq!(cpu.fpu.fpr[0][..10], [0, 0, 0, 0, 0, 0, 0, 0xa0, 0x01, 0x40]);
    assert_eq!(cpu.fpu.fpr[1], [9; 16]);

    let full = |fcw| {
        let mut cpu = Model::new(&[0xdb, 0x07]);
        cpu.regs.rdi = DATA;
        cpu.fpu.ftwx = 0xff;
        cpu.fpu.fcw = fcw;
        cpu
    };
    let mut masked = full(0x37f);
    masked.done(2);
    assert_eq!((masked.fpu.fsw, masked.fpu.ftwx), (0x3800 | 0x241, 0xff));
    assert_eq!(masked.fpu.fpr[0][..10], [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff]);
    let mut unmasked = full(0x37e);
    unmasked.done(2);
    assert_eq!((unmasked.fpu.fsw, unmasked.fpu.ftwx), (0x82c1, 0xff));
    assert_eq!(unmasked.fpu.fpr, [[0; 16]; 8]);

    let mut lost = Model::new(&[0xdb, 0x07]);
    lost.regs.rdi = DATA - 2;
    assert_eq!(lost.faults(14, Some(0)).cr2, Some(DATA - 2));
    // Other integer loads are not known.
    Model::new(&[0xdf, 0x07]).refused();
}

#[test]
fn mxcsr_is_loaded_and_stored() {
    // ldmxcsr [rsp+4], as kernel_fpu_begin has it
    let load = |value: u32| {
        let mut cpu = Model::new(&[0x0f, 0xae, 0x54, 0x24, 0x04]);
        cpu.sregs.cr4 |= CR4_OSFXSR;
        cpu.regs.rsp = DATA;
        cpu.put(DATA + 4, &value.to_le_bytes());
        cpu
    };
    assert_eq!(load(0xffc0).done(5).fpu.mxcsr, 0xffc0);
    load(0x1_0000).faults(13, Some(0));
    let mut cpu = load(0x1f80);
    cpu.sregs.cr4 &= !CR4_OSFXSR;
    cpu.faults(6, None);
    let mut cpu = load(0x1f80);
    cpu.sregs.cr0 |= CR0_TS;
    cpu.faults(7, None);

    let mut cpu = Model::new(&[0x0f, 0xae, 0x5e, 0x08]);
    cpu.sregs.cr4 |= CR4_OSFXSR;
    cpu.fpu.mxcsr = 0x1fa0;
    cpu.regs.rsi = DATA;
    cpu.done(4);
    assert_eq!(cpu.get::<4>(DATA + 8), 0x1fa0u32.to_le_bytes());
    let mut cpu = Model::new(&[0x0f, 0xae, 0x5e, 0x08]);
    cpu.sregs.cr4 |= CR4_OSFXSR;
    assert_eq!(cpu.faults(14, Some(2)).cr2, Some(8));
}

const C1_FOR_TEST: u16 = 1 << 9;

/// popcnt's encodings: prefix and REX, operand size.
const POPCNT: [(&[u8], usize); 3] = [(&[0x66, 0xf3], 2), (&[0xf3], 4), (&[0xf3, 0x48], 8)];

const ALL_FLAGS: u64 = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF;

fn popcnt_result(source: u64, target: u64, size: usize) -> (u64, u64) {
    let mut ones = 0;
    for bit in 0..size * 8 {
        ones += source >> bit & 1;
    }
    let value = match size {
        2 => target & 0xffff_ffff_ffff_0000 | ones,
        _ => ones,
    };
    (value, if ones == 0 { FLAG_ZF } else { 0 })
}

proptest! {
    #[test]
    fn popcnt_of_a_register(source: u64, shift in 0u32..64, target: u64, flags: bool) {
        let source = source.checked_shl(shift).unwrap_or(0);
        for (prefix, size) in POPCNT {
            // popcnt rdx, rsi
            let code = [prefix, &[0x0f, 0xb8, 0xd6]].concat();
            let mut cpu = Model::new(&code);
            (cpu.regs.rsi, cpu.regs.rdx) = (source, target);
            cpu.regs.rflags = 2 | 0x200 | if flags { ALL_FLAGS } else { 0 };
            cpu.done(code.len() as u64);
            let (value, zero) = popcnt_result(source, target, size);
            prop_assert_eq!((cpu.regs.rdx, cpu.regs.rflags), (value, 0x202 | zero));
            prop_assert_eq!(cpu.regs.rsi, source);
        }
    }

    #[test]
    fn popcnt_of_memory(source: u64, target: u64, base in 0u64..64, index in 0u64..64) {
        for (prefix, size) in POPCNT {
            // popcnt rax, [rcx + rbx*4 + 0x10]
            let code = [prefix, &[0x0f, 0xb8, 0x44, 0x99, 0x10]].concat();
            let mut cpu = Model::new(&code);
            (cpu.regs.rcx, cpu.regs.rbx, cpu.regs.rax) = (DATA + base + index * 4, index.wrapping_neg(), target);
            cpu.put(DATA + base + 0x10, &source.to_le_bytes());
            cpu.done(code.len() as u64);
            let (value, zero) = popcnt_result(source, target, size);
            prop_assert_eq!((cpu.regs.rax, cpu.regs.rflags), (value, 2 | zero));
        }
    }

    #[test]
    fn cmpxchg16b_compares_and_exchanges(present: u128, expected: u128, next: u128, equal: bool, lock: bool, flags: bool) {
        let present = if equal { expected } else { present };
        let code: &[u8] = if lock { &[0xf0, 0x48, 0x0f, 0xc7, 0x4e, 0x20] } else { &[0x48, 0x0f, 0xc7, 0x4e, 0x20] };
        let mut cpu = Model::new(code);
        cpu.regs.rsi = DATA + 0x10;
        (cpu.regs.rax, cpu.regs.rdx) = (expected as u64, (expected >> 64) as u64);
        (cpu.regs.rbx, cpu.regs.rcx) = (next as u64, (next >> 64) as u64);
        let others = if flags { ALL_FLAGS & !FLAG_ZF } else { 0 } | 2;
        cpu.regs.rflags = others | if flags { FLAG_ZF } else { 0 };
        cpu.put(DATA + 0x30, &present.to_le_bytes());
        cpu.done(code.len() as u64);
        let memory = u128::from_le_bytes(cpu.get(DATA + 0x30));
        let registers = u128::from(cpu.regs.rdx) << 64 | u128::from(cpu.regs.rax);
        if present == expected {
            prop_assert_eq!((memory, registers, cpu.regs.rflags), (next, expected, others | FLAG_ZF));
        } else {
            prop_assert_eq!((memory, registers, cpu.regs.rflags), (present, present, others));
        }
        prop_assert_eq!((cpu.regs.rbx, cpu.regs.rcx), (next as u64, (next >> 64) as u64));
    }

    #[test]
    fn any_bytes_are_answered_without_a_panic(code in prop::collection::vec(any::<u8>(), 0..15), regs: [u64; 4], fsw: u16, fcw: u16) {
        let mut cpu = Model::new(&code);
        (cpu.regs.rax, cpu.regs.rsi, cpu.regs.rdi, cpu.regs.rcx) = (regs[0], regs[1], regs[2], regs[3]);
        (cpu.fpu.fsw, cpu.fpu.fcw) = (fsw, fcw);
        let _ = assist(&mut cpu);
        prop_assert!(cpu.retired + usize::from(cpu.raised.is_some()) <= 1);
    }
}

#[test]
fn popcnt_writes_each_register() {
    for reg in 0..16u8 {
        // popcnt r64, [rip + disp]; the base register is not involved.
        let code = [
            0xf3,
            0x48 | (reg >> 3) << 2,
            0x0f,
            0xb8,
            (reg & 7) << 3 | 5,
            0x10,
            0,
            0,
            0,
        ];
        let mut cpu = Model::new(&code);
        cpu.pages.insert(RIP, (false, vec![0xff; PAGE as usize]));
        cpu.done(9);
        let mut regs = cpu.regs;
        let all = [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9, regs.r10,
            regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ];
        for (number, value) in all.into_iter().enumerate() {
            assert_eq!(value, if number == usize::from(reg) { 64 } else { 0 });
        }
        assert_eq!(full_register(&mut regs, Register::AL), None);
    }
}

#[test]
fn operands_are_where_rip_and_the_segments_say() {
    // popcnt rax, [rip + 0x20]: behind the instruction, whose length is 9.
    let mut cpu = Model::new(&[0xf3, 0x48, 0x0f, 0xb8, 0x05, 0x20, 0, 0, 0]);
    cpu.pages.insert(RIP, (false, vec![0; PAGE as usize]));
    cpu.pages.get_mut(&RIP).unwrap().1[9 + 0x20] = 0x0f;
    assert_eq!(cpu.done(9).regs.rax, 4);

    // popcnt rax, gs:[0x18] and fs:[0x18] (as Linux reads its per-CPU data)
    for segment in [0x65u8, 0x64] {
        let mut cpu = Model::new(&[segment, 0xf3, 0x48, 0x0f, 0xb8, 0x04, 0x25, 0x18, 0, 0, 0]);
        *(if segment == 0x65 {
            &mut cpu.sregs.gs.base
        } else {
            &mut cpu.sregs.fs.base
        }) = DATA;
        // Of the other segments the base does not count.
        cpu.sregs.ds.base = 0x1234;
        cpu.put(DATA + 0x18, &[7]);
        assert_eq!(cpu.done(11).regs.rax, 3);
    }

    // cmpxchg16b gs:[rsi], as SLUB has it
    let mut cpu = Model::new(&[0x65, 0x48, 0x0f, 0xc7, 0x0e]);
    (cpu.sregs.gs.base, cpu.regs.rsi, cpu.regs.rbx) = (DATA, 0x40, 77);
    cpu.done(5);
    assert_eq!(cpu.get::<16>(DATA + 0x40), 77u128.to_le_bytes());

    // A 32-bit address (67): popcnt eax, [ecx]
    let mut cpu = Model::new(&[0x67, 0xf3, 0x0f, 0xb8, 0x01]);
    cpu.pages.insert(0x5000, (false, vec![1; PAGE as usize]));
    cpu.regs.rcx = 0xffff_ffff_0000_5000;
    assert_eq!(cpu.done(5).regs.rax, 4);
}

#[test]
fn cmpxchg16b_faults_as_it_should() {
    let at = |rsi| {
        let mut cpu = Model::new(&[0x48, 0x0f, 0xc7, 0x0e]);
        cpu.regs.rsi = rsi;
        cpu
    };
    at(DATA + 8).faults(13, Some(0));
    at(0x0000_8000_0000_0000).faults(13, Some(0));
    at(0x0000_7fff_ffff_fff8).faults(13, Some(0));
    assert_eq!(at(DATA + PAGE).faults(14, Some(2)).cr2, Some(DATA + PAGE));
    // It writes even where the comparison fails.
    let mut read_only = at(DATA);
    read_only.regs.rax = 1;
    read_only.pages.get_mut(&DATA).unwrap().0 = false;
    assert_eq!(read_only.faults(14, Some(3)).cr2, Some(DATA));
    // By way of the stack segment: #SS.
    let mut stack = Model::new(&[0x48, 0x0f, 0xc7, 0x0c, 0x24]);
    stack.regs.rsp = 0x8000_0000_0000_0000;
    stack.faults(12, Some(0));
}

#[test]
fn five_level_paging_has_wider_addresses() {
    let code = [0xf3, 0x48, 0x0f, 0xb8, 0x01];
    let address = 0x00ff_0000_0000_0000;
    let mut cpu = Model::new(&code);
    cpu.regs.rcx = address;
    cpu.faults(13, Some(0));
    cpu.raised = None;
    cpu.sregs.cr4 |= CR4_LA57;
    assert_eq!(cpu.faults(14, Some(0)).cr2, Some(address));
}

#[test]
fn what_is_out_of_reach_is_a_failure_with_its_reason() {
    struct Broken(Model);
    impl AssistCpu for Broken {
        fn regs(&mut self) -> Result<kvm_regs, Fault> {
            self.0.regs()
        }
        fn sregs(&mut self) -> Result<kvm_sregs, Fault> {
            self.0.sregs()
        }
        fn fpu(&mut self) -> Result<kvm_fpu, Fault> {
            Err(Fault::Failed("KVM_GET_FPU: EFAULT".into()))
        }
        fn set_fpu(&mut self, _: &kvm_fpu) -> Result<(), Fault> {
            unreachable!("nothing to set")
        }
        fn xcr0(&mut self) -> Result<u64, Fault> {
            self.0.xcr0()
        }
        fn code(&mut self, address: u64, out: &mut [u8]) -> usize {
            self.0.code(address, out)
        }
        fn read(&mut self, address: u64, _: &mut [u8], _: Access) -> Result<(), Fault> {
            Err(Fault::Failed(format!("{address:#x} is a device's")))
        }
        fn write(&mut self, _: u64, _: &[u8]) -> Result<(), Fault> {
            unreachable!("nothing to write")
        }
        fn retire(&mut self, _: &kvm_regs) -> Result<(), Fault> {
            unreachable!("not done")
        }
        fn raise(&mut self, _: &kvm_regs, _: Exception) -> Result<(), Fault> {
            unreachable!("no exception")
        }
    }
    let mut cpu = Broken(Model::new(&[0x9b]));
    assert!(assist(&mut cpu).unwrap_err().to_string().contains("EFAULT"));
    let mut cpu = Broken(Model::new(&[0xf3, 0x0f, 0xb8, 0x01]));
    let message = assist(&mut cpu).unwrap_err().to_string();
    assert!(
        message.contains("is a device's") && message.contains("popcnt"),
        "{message}"
    );
}
