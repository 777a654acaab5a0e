//! The vCPU's state where a guest begins: 64-bit mode with flat segments, as the 64-bit boot protocol asks
//! (Documentation/arch/x86/boot.rst).

use kvm_bindings::{kvm_regs, kvm_segment};

use super::{Machine, MachineError};
use crate::loader::Loaded;

/// PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 0x8005_0033;
/// PAE.
const CR4: u64 = 0x20;
/// LME, LMA.
const EFER: u64 = 0x500;

impl Machine {
    /// Sets the vCPU to the kernel's entry.
    pub fn set_boot_state(&mut self, loaded: &Loaded) -> Result<(), MachineError> {
        let regs = kvm_regs {
            rip: loaded.entry,
            rsi: loaded.boot_params,
            rsp: loaded.rsp,
            rflags: 2,
            ..Default::default()
        };
        self.set_flat_state(&regs, loaded)
    }

    fn set_flat_state(&mut self, regs: &kvm_regs, loaded: &Loaded) -> Result<(), MachineError> {
        let fd = self.vm.vcpu.fd();
        let error = |what: &'static str| {
            move |cause: kvm_ioctls::Error| MachineError::Io {
                what,
                cause: cause.into(),
            }
        };
        let mut sregs = fd.get_sregs().map_err(error("KVM_GET_SREGS"))?;
        sregs.cr0 = CR0;
        sregs.cr3 = loaded.page_table;
        sregs.cr4 = CR4;
        sregs.efer = EFER;
        sregs.gdt.base = loaded.gdt_base;
        sregs.gdt.limit = loaded.gdt_limit;
        sregs.idt.base = 0;
        sregs.idt.limit = 0;
        // Code: execute, read, accessed, 64-bit. Data: read, write, accessed.
        let flat = kvm_segment {
            limit: 0xffff_ffff,
            present: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        sregs.cs = kvm_segment {
            selector: loaded.code_selector,
            type_: 0xb,
            l: 1,
            ..flat
        };
        let data = kvm_segment {
            selector: loaded.data_selector,
            type_: 0x3,
            db: 1,
            ..flat
        };
        for segment in [
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.fs,
            &mut sregs.gs,
            &mut sregs.ss,
        ] {
            *segment = data;
        }
        fd.set_sregs(&sregs).map_err(error("KVM_SET_SREGS"))?;
        fd.set_regs(regs).map_err(error("KVM_SET_REGS"))?;
        self.regs = *regs;
        Ok(())
    }
}
