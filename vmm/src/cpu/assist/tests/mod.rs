//! The assist on a model of a vCPU, whose memory is a table of pages.

mod control;
mod fpu;
mod operands;

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
