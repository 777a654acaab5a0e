//! The vCPU at a micro-guest's start.

use bytes::Bytes as Blob;
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use lockstep_proto::VcpuState;
use zerocopy::IntoBytes;

use super::tables::{
    GDT, GDT_LIMIT, IDT, IDT_LIMIT, KERNEL_CS, KERNEL_DS, PML4, TSS, TSS_LIMIT, TSS_SELECTOR, USER_CS, USER_DS,
};
use super::{CODE, KERNEL_STACK, Ring, USER_STACK};
use crate::cpu::{StateError, msr, state};

/// PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 0x8005_0033;
/// PAE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 0x620;
/// CR4.TSD: RDTSC only in ring 0.
pub const CR4_TSD: u64 = 4;
/// LME, LMA.
const EFER: u64 = 0x500;
/// EFER.SCE: SYSCALL is on.
const EFER_SCE: u64 = 1;

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;

/// RFLAGS: the bit that is always one.
const FLAGS: u64 = 2;
/// RFLAGS.IF.
pub const FLAG_IF: u64 = 0x200;

/// What a guest can choose of its first state.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub ring: Ring,
    /// Further bits of RFLAGS.
    pub flags: u64,
    /// Further bits of CR4.
    pub cr4: u64,
    /// Where SYSCALL goes, if it is on.
    pub syscall: Option<u64>,
}

impl Start {
    /// From the whole state of a vCPU that has not run. General registers that are not named are zero.
    pub fn state(&self, base: &VcpuState) -> Result<VcpuState, StateError> {
        let sregs = self.sregs(&state::sregs(base)?);
        let regs = kvm_regs {
            rip: CODE,
            rsp: match self.ring {
                Ring::Kernel => KERNEL_STACK,
                Ring::User => USER_STACK,
            },
            rflags: FLAGS | self.flags,
            ..Default::default()
        };
        let mut whole = base.clone();
        for entry in &mut whole.msrs {
            match (entry.index, self.syscall) {
                (msr::EFER, _) => entry.value = sregs.efer,
                (STAR, Some(_)) => {
                    // SYSRET's base: ring 3's code segment stands 16 beyond it.
                    entry.value = u64::from(KERNEL_CS) << 32 | u64::from(USER_CS - 16) << 48;
                }
                (LSTAR, Some(target)) => entry.value = target,
                _ => {}
            }
        }
        whole.regs = Blob::copy_from_slice(regs.as_bytes());
        whole.sregs = Blob::copy_from_slice(sregs.as_bytes());
        Ok(whole)
    }

    fn sregs(&self, base: &kvm_sregs) -> kvm_sregs {
        let (dpl, cs, ss) = match self.ring {
            Ring::Kernel => (0, KERNEL_CS, KERNEL_DS),
            Ring::User => (3, USER_CS, USER_DS),
        };
        // Types: 0xb is execute, read, accessed (and a busy TSS), 3 is read, write, accessed.
        let flat = kvm_segment {
            limit: 0xffff_ffff,
            present: 1,
            s: 1,
            g: 1,
            dpl,
            ..Default::default()
        };
        let data = kvm_segment {
            selector: USER_DS,
            type_: 3,
            db: 1,
            dpl: 3,
            ..flat
        };
        kvm_sregs {
            cs: kvm_segment {
                selector: cs,
                type_: 0xb,
                l: 1,
                ..flat
            },
            ss: kvm_segment {
                selector: ss,
                type_: 3,
                db: 1,
                ..flat
            },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            tr: kvm_segment {
                base: TSS,
                limit: TSS_LIMIT,
                selector: TSS_SELECTOR,
                type_: 0xb,
                present: 1,
                ..Default::default()
            },
            ldt: kvm_segment {
                unusable: 1,
                type_: 2,
                ..Default::default()
            },
            gdt: kvm_dtable {
                base: GDT,
                limit: GDT_LIMIT,
                ..Default::default()
            },
            idt: kvm_dtable {
                base: IDT,
                limit: IDT_LIMIT,
                ..Default::default()
            },
            cr0: CR0,
            cr2: 0,
            cr3: PML4,
            cr4: CR4 | self.cr4,
            cr8: 0,
            efer: EFER | if self.syscall.is_some() { EFER_SCE } else { 0 },
            interrupt_bitmap: [0; 4],
            ..*base
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_has_the_ring_and_syscall_that_were_asked_for() {
        let base = VcpuState {
            sregs: Blob::copy_from_slice(kvm_sregs::default().as_bytes()),
            msrs: msr::SAVED
                .iter()
                .map(|&index| lockstep_proto::Msr { index, value: 0 })
                .collect(),
            ..Default::default()
        };
        let value = |state: &VcpuState, index| state.msrs.iter().find(|entry| entry.index == index).unwrap().value;
        let mut start = Start {
            ring: Ring::User,
            flags: 0,
            cr4: 0,
            syscall: None,
        };
        let plain = start.state(&base).unwrap();
        assert_eq!(value(&plain, msr::EFER), EFER);
        let cs = state::sregs(&plain).unwrap().cs;
        assert_eq!((cs.dpl, cs.selector & 3), (3, 3));
        start.syscall = Some(0x10_0000);
        let with = start.state(&base).unwrap();
        assert_eq!(value(&with, msr::EFER), EFER | EFER_SCE);
        assert_eq!(value(&with, LSTAR), 0x10_0000);
        assert_eq!(value(&with, STAR), 0x0023_0010_0000_0000);
    }
}
