//! The x87 and SSE control.

use super::*;

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
