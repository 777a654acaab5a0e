//! popcnt and cmpxchg16b, and where operands are.

use iced_x86::Register;

use super::super::operand::full_register;
use super::*;

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
