//! The floating-point unit: the x87 instructions with which Linux asks for pending exceptions and empties the register
//! stack before it loads another task's state, and SSE's control word, which it sets before it uses SSE itself.

use kvm_bindings::kvm_fpu;

use super::{
    Access, CR0_EM, CR0_MP, CR0_NE, CR0_TS, CR4_OSFXSR, End, GP, MF, NM, UD, Work, exception, exception_with_zero,
};

/// Invalid operation.
const IE: u16 = 1 << 0;
/// Stack fault.
const SF: u16 = 1 << 6;
/// Exception summary.
const ES: u16 = 1 << 7;
/// Top of stack.
const TOP: u16 = 7 << TOP_SHIFT;
const TOP_SHIFT: u16 = 11;
const C1: u16 = 1 << 9;
/// Busy: the same as ES.
const BUSY: u16 = 1 << 15;
const EXCEPTIONS: u16 = 0x3f;
/// The bits that MXCSR has on every 64-bit processor.
const MXCSR_MASK: u32 = 0xffff;
/// What a masked invalid operation leaves: the QNaN real indefinite.
const INDEFINITE: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff, 0, 0, 0, 0, 0, 0];

impl Work<'_> {
    pub(super) fn wait(&mut self) -> End {
        if self.sregs.cr0 & (CR0_MP | CR0_TS) == CR0_MP | CR0_TS {
            return exception(NM);
        }
        match self.no_pending() {
            Ok(_) => End::Done,
            Err(end) => end,
        }
    }

    pub(super) fn fnclex(&mut self) -> End {
        if self.sregs.cr0 & (CR0_EM | CR0_TS) != 0 {
            return exception(NM);
        }
        let mut fpu = match self.cpu.fpu() {
            Ok(fpu) => fpu,
            Err(fault) => return fault.into(),
        };
        fpu.fsw &= !(EXCEPTIONS | SF | ES | BUSY);
        self.put(&fpu)
    }

    pub(super) fn emms(&mut self) -> End {
        if self.sregs.cr0 & CR0_EM != 0 {
            return exception(UD);
        }
        if self.sregs.cr0 & CR0_TS != 0 {
            return exception(NM);
        }
        let mut fpu = match self.no_pending() {
            Ok(fpu) => fpu,
            Err(end) => return end,
        };
        // An MMX instruction also moves the top of the stack to 0 (SDM, "x87 FPU tag word and MMX"; measured).
        rotate(&mut fpu, 0);
        fpu.ftwx = 0;
        self.put(&fpu)
    }

    /// `fild dword`: Linux's way to make the x87's last-instruction pointers harmless on some AMD processors.
    pub(super) fn fild32(&mut self) -> End {
        if self.sregs.cr0 & (CR0_EM | CR0_TS) != 0 {
            return exception(NM);
        }
        let mut fpu = match self.no_pending() {
            Ok(fpu) => fpu,
            Err(end) => return end,
        };
        let mut bytes = [0; 4];
        match self
            .operand(0, 4)
            .and_then(|at| Ok(self.cpu.read(at, &mut bytes, Access::Read)?))
        {
            Ok(()) => (),
            Err(end) => return end,
        }
        let top = ((fpu.fsw & TOP) >> TOP_SHIFT).wrapping_sub(1) & 7;
        let overflow = fpu.ftwx & (1 << top) != 0;
        fpu.fsw &= !C1;
        // Processors differ in what they do with the operand pointer and the opcode where no exception is pending;
        // they stay. The instruction pointer is set by all.
        fpu.last_ip = self.instruction.ip();
        if overflow {
            fpu.fsw |= IE | SF | C1;
            if fpu.fcw & IE == 0 {
                // Unmasked: the stack stays, and the exception is raised by the next waiting instruction.
                fpu.fsw |= ES | BUSY;
                return self.put(&fpu);
            }
        }
        rotate(&mut fpu, top);
        fpu.ftwx |= 1 << top;
        fpu.fpr[0] = if overflow {
            INDEFINITE
        } else {
            extended(i32::from_le_bytes(bytes))
        };
        self.put(&fpu)
    }

    pub(super) fn ldmxcsr(&mut self) -> End {
        let mut bytes = [0; 4];
        match self
            .sse_control_allowed()
            .and_then(|()| self.operand(0, 4))
            .and_then(|at| Ok(self.cpu.read(at, &mut bytes, Access::Read)?))
        {
            Ok(()) => (),
            Err(end) => return end,
        }
        let mxcsr = u32::from_le_bytes(bytes);
        if mxcsr & !MXCSR_MASK != 0 {
            return exception_with_zero(GP);
        }
        match self.cpu.fpu() {
            Ok(fpu) => self.put(&kvm_fpu { mxcsr, ..fpu }),
            Err(fault) => fault.into(),
        }
    }

    pub(super) fn stmxcsr(&mut self) -> End {
        let stored = self
            .sse_control_allowed()
            .and_then(|()| self.operand(0, 4))
            .and_then(|at| {
                let mxcsr = self.cpu.fpu()?.mxcsr;
                Ok(self.cpu.write(at, &mxcsr.to_le_bytes())?)
            });
        match stored {
            Ok(()) => End::Done,
            Err(end) => end,
        }
    }

    fn sse_control_allowed(&self) -> Result<(), End> {
        if self.sregs.cr0 & CR0_EM != 0 || self.sregs.cr4 & CR4_OSFXSR == 0 {
            Err(exception(UD))
        } else if self.sregs.cr0 & CR0_TS != 0 {
            Err(exception(NM))
        } else {
            Ok(())
        }
    }

    /// The x87's state, or #MF where an unmasked exception is pending.
    fn no_pending(&mut self) -> Result<kvm_fpu, End> {
        let fpu = self.cpu.fpu()?;
        if fpu.fsw & !fpu.fcw & EXCEPTIONS == 0 {
            Ok(fpu)
        } else if self.sregs.cr0 & CR0_NE != 0 {
            Err(exception(MF))
        } else {
            Err(End::Unknown(
                "an x87 exception is pending with CR0.NE = 0, which would be an external interrupt",
            ))
        }
    }

    fn put(&mut self, fpu: &kvm_fpu) -> End {
        match self.cpu.set_fpu(fpu) {
            Ok(()) => End::Done,
            Err(fault) => fault.into(),
        }
    }
}

/// Makes physical register `top` the top of the stack. `fpr` is in stack order, the tags are in physical order.
fn rotate(fpu: &mut kvm_fpu, top: u16) {
    let old = (fpu.fsw & TOP) >> TOP_SHIFT;
    fpu.fpr.rotate_left(usize::from(top.wrapping_sub(old) & 7));
    fpu.fsw = fpu.fsw & !TOP | top << TOP_SHIFT;
}

/// A 32-bit integer as an 80-bit real, exactly.
fn extended(value: i32) -> [u8; 16] {
    let mut bytes = [0; 16];
    if value != 0 {
        let magnitude = u64::from(value.unsigned_abs());
        let shift = magnitude.leading_zeros();
        bytes[..8].copy_from_slice(&(magnitude << shift).to_le_bytes());
        let sign = if value < 0 { 0x8000 } else { 0 };
        let exponent = 16383 + 63 - shift as u16;
        bytes[8..10].copy_from_slice(&(sign | exponent).to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of an 80-bit real, where a double can hold it.
    fn value(bytes: [u8; 16]) -> f64 {
        let mantissa = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let head = u16::from_le_bytes(bytes[8..10].try_into().unwrap());
        let exponent = i32::from(head & 0x7fff) - 16383 - 63;
        let sign = if head & 0x8000 == 0 { 1.0 } else { -1.0 };
        sign * mantissa as f64 * 2f64.powi(exponent)
    }

    #[test]
    fn integers_become_extended_reals() {
        for i in [0, 1, -1, 2, 5, -5, 1000, i32::MAX, i32::MIN, i32::MIN + 1, 0x5555_5555] {
            assert!((value(extended(i)) - f64::from(i)).abs() == 0.0, "{i}");
        }
        assert_eq!(extended(5)[..10], [0, 0, 0, 0, 0, 0, 0, 0xa0, 0x01, 0x40]);
    }
}
