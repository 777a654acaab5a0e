//! The registers as gdb sees them: the core set, SSE, segment bases and control registers.

use gdbstub::arch::{Arch, Registers};
use kvm_bindings::{kvm_regs, kvm_sregs};
use lockstep_proto::VcpuState;

/// MSR_KERNEL_GS_BASE.
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// A 64-bit PC with control registers.
pub enum Pc {}

impl Arch for Pc {
    type Usize = u64;
    type Registers = PcRegisters;
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("target.xml"))
    }
}

/// What `target.xml` describes, in its order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PcRegisters {
    /// rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, r8 to r15, rip.
    pub general: [u64; 17],
    /// eflags, cs, ss, ds, es, fs, gs.
    pub flags: [u32; 7],
    /// st0 to st7.
    pub stack: [[u8; 10]; 8],
    /// fctrl, fstat, ftag, fiseg, fioff, foseg, fooff, fop.
    pub fpu: [u32; 8],
    /// xmm0 to xmm15.
    pub xmm: [[u8; 16]; 16],
    pub mxcsr: u32,
    /// fs_base, gs_base, k_gs_base, cr0, cr2, cr3, cr4, cr8, efer.
    pub control: [u64; 9],
}

impl PcRegisters {
    /// From what KVM tells.
    pub fn new(regs: &kvm_regs, sregs: &kvm_sregs, state: &VcpuState) -> Self {
        let mut area = [0; 512];
        let length = state.xsave.len().min(area.len());
        area[..length].copy_from_slice(&state.xsave[..length]);
        let word = |at: usize| u32::from(u16::from_le_bytes([area[at], area[at + 1]]));
        let double = |at: usize| u32::from_le_bytes([area[at], area[at + 1], area[at + 2], area[at + 3]]);
        let mut stack = [[0; 10]; 8];
        for (index, register) in stack.iter_mut().enumerate() {
            register.copy_from_slice(&area[32 + 16 * index..][..10]);
        }
        let mut xmm = [[0; 16]; 16];
        for (index, register) in xmm.iter_mut().enumerate() {
            register.copy_from_slice(&area[160 + 16 * index..][..16]);
        }
        let kernel_gs = state.msrs.iter().find(|msr| msr.index == KERNEL_GS_BASE);
        Self {
            general: [
                regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.rsp, regs.r8, regs.r9,
                regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15, regs.rip,
            ],
            flags: [
                regs.rflags as u32,
                sregs.cs.selector.into(),
                sregs.ss.selector.into(),
                sregs.ds.selector.into(),
                sregs.es.selector.into(),
                sregs.fs.selector.into(),
                sregs.gs.selector.into(),
            ],
            stack,
            fpu: [
                word(0),
                word(2),
                full_tag(area[4], word(2), &stack),
                0,
                double(8),
                0,
                double(16),
                word(6),
            ],
            xmm,
            mxcsr: double(24),
            control: [
                sregs.fs.base,
                sregs.gs.base,
                kernel_gs.map_or(0, |msr| msr.value),
                sregs.cr0,
                sregs.cr2,
                sregs.cr3,
                sregs.cr4,
                sregs.cr8,
                sregs.efer,
            ],
        }
    }
}

/// The x87 tag word of two bits a register, from FXSAVE's one bit (Intel SDM volume 1, 10.5.1.1).
fn full_tag(present: u8, status: u32, stack: &[[u8; 10]; 8]) -> u32 {
    let top = (status >> 11 & 7) as usize;
    (0..8).fold(0, |tags, physical: usize| {
        let tag = if present >> physical & 1 == 0 {
            3
        } else {
            let register = &stack[(physical + 8 - top) % 8];
            let exponent = u16::from_le_bytes([register[8], register[9]]) & 0x7fff;
            let zero = register[..8].iter().all(|&byte| byte == 0);
            match exponent {
                0 if zero => 1,
                0 | 0x7fff => 2,
                _ if register[7] & 0x80 == 0 => 2,
                _ => 0,
            }
        };
        tags | tag << (2 * physical)
    })
}

impl Registers for PcRegisters {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.general[16]
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        let general = self.general.iter().flat_map(|value| value.to_le_bytes());
        let flags = self.flags.iter().flat_map(|value| value.to_le_bytes());
        let stack = self.stack.iter().flatten().copied();
        let fpu = self.fpu.iter().flat_map(|value| value.to_le_bytes());
        let xmm = self.xmm.iter().flatten().copied();
        let control = self.control.iter().flat_map(|value| value.to_le_bytes());
        general
            .chain(flags)
            .chain(stack)
            .chain(fpu)
            .chain(xmm)
            .chain(self.mxcsr.to_le_bytes())
            .chain(control)
            .for_each(|byte| write_byte(Some(byte)));
    }

    fn gdb_deserialize(&mut self, _: &[u8]) -> Result<(), ()> {
        // Nobody writes registers of the past.
        Err(())
    }
}
