//! Where an instruction's operands are: memory by its linear address, and the general registers.

use iced_x86::Register;
use kvm_bindings::kvm_regs;

use super::{CR4_LA57, End, GP, SS, Work, exception_with_zero};

impl Work<'_> {
    /// The linear address of memory operand `index`, of `size` bytes, or the fault that its address makes.
    pub(super) fn operand(&self, index: u32, size: usize) -> Result<u64, End> {
        let address = self
            .instruction
            .virtual_address(index, 0, |register, _, _| match register {
                // In 64-bit code the other segments' bases count as 0.
                Register::CS | Register::DS | Register::ES | Register::SS => Some(0),
                Register::FS => Some(self.sregs.fs.base),
                Register::GS => Some(self.sregs.gs.base),
                other => self.register(other),
            });
        let address = address.ok_or(End::Unknown("it has an unknown address"))?;
        let bits = if self.sregs.cr4 & CR4_LA57 == 0 { 48 } else { 57 };
        let canonical = |a: u64| ((a << (64 - bits)) as i64 >> (64 - bits)) as u64 == a;
        if canonical(address) && canonical(address.wrapping_add(size as u64 - 1)) {
            Ok(address)
        } else if self.instruction.memory_segment() == Register::SS {
            Err(exception_with_zero(SS))
        } else {
            Err(exception_with_zero(GP))
        }
    }

    /// A general register's value, as wide as it is.
    pub(super) fn register(&self, register: Register) -> Option<u64> {
        let mask = match register.size() {
            2 => 0xffff,
            4 => 0xffff_ffff,
            8 => u64::MAX,
            _ => return None,
        };
        let mut regs = self.regs;
        full_register(&mut regs, register).map(|value| *value & mask)
    }

    /// The 64-bit register that a 16-, 32- or 64-bit general register is part of.
    pub(super) fn register_mut(&mut self, register: Register) -> Option<&mut u64> {
        full_register(&mut self.regs, register)
    }
}

pub(super) fn full_register(regs: &mut kvm_regs, register: Register) -> Option<&mut u64> {
    if !(register.is_gpr16() || register.is_gpr32() || register.is_gpr64()) {
        return None;
    }
    numbered_register(regs, register.number())
}

/// The general register with this number in instruction encodings, 0 (RAX) to 15 (R15).
pub(crate) fn numbered_register(regs: &mut kvm_regs, number: usize) -> Option<&mut u64> {
    Some(match number {
        0 => &mut regs.rax,
        1 => &mut regs.rcx,
        2 => &mut regs.rdx,
        3 => &mut regs.rbx,
        4 => &mut regs.rsp,
        5 => &mut regs.rbp,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        15 => &mut regs.r15,
        _ => return None,
    })
}
