//! The machine as the assist sees it: instructions that KVM's emulator declines are executed here. Not numbered and not
//! logged: their result is a function of the machine's state, and whether KVM declines them is a matter of the host.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_sregs, kvm_xsave};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::{Machine, MachineError};
use crate::cpu::assist::{Access, AssistCpu, Assisted, Exception, Fault, assist};
use crate::cpu::walk::{NoTranslation, Wanted, translate};
use crate::loader::trap::Trapped;

const PAGE: u64 = 4096;
/// XSTATE_BV in the XSAVE header, and its bits for x87 and SSE.
const XSTATE_BV: usize = 512;
const X87_AND_SSE: u8 = 3;

impl Machine {
    /// Executes the instruction at RIP. `Some`: it asks for what comes from outside, so a numbered stop must answer it.
    pub(super) fn assist(&mut self) -> Result<Option<(Trapped, u8)>, MachineError> {
        self.counters.assists += 1;
        match assist(self)? {
            Assisted::NeedsAnswer { trapped, length } => Ok(Some((trapped, length))),
            Assisted::Done { .. } | Assisted::Raised { .. } => Ok(None),
        }
    }

    /// The pieces of `len` bytes at a linear address, each within a page, as guest physical addresses.
    pub(super) fn pieces(&mut self, address: u64, len: usize, write: bool) -> Result<Vec<(u64, usize)>, Fault> {
        let sregs = self.sregs()?;
        let wanted = Wanted {
            write,
            user: sregs.ss.dpl == 3,
        };
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < len {
            let at = address.wrapping_add(done as u64);
            let piece = (len - done).min((PAGE - at % PAGE) as usize);
            match translate(self.memory.ram(), &sregs, at, wanted) {
                Ok(physical) => pieces.push((physical, piece)),
                Err(NoTranslation::Fault(error_code)) => {
                    return Err(Fault::Page {
                        address: at,
                        error_code,
                    });
                }
                Err(NoTranslation::Unsupported) => return Err(Fault::Failed(format!("cannot translate {at:#x}"))),
            }
            done += piece;
        }
        Ok(pieces)
    }
}

fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Fault {
    move |error| Fault::Failed(format!("{what}: {error}"))
}

impl AssistCpu for Machine {
    fn regs(&mut self) -> Result<kvm_regs, Fault> {
        self.vm.vcpu.fd().get_regs().map_err(failed("KVM_GET_REGS"))
    }

    fn sregs(&mut self) -> Result<kvm_sregs, Fault> {
        self.vm.vcpu.fd().get_sregs().map_err(failed("KVM_GET_SREGS"))
    }

    fn fpu(&mut self) -> Result<kvm_fpu, Fault> {
        let area = self.vm.vcpu.fd().get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
        Ok(crate::cpu::fxsave::unpack(area.region.as_bytes()))
    }

    fn set_fpu(&mut self, fpu: &kvm_fpu) -> Result<(), Fault> {
        let mut area: kvm_xsave = self.vm.vcpu.fd().get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
        let bytes = area.region.as_mut_bytes();
        crate::cpu::fxsave::pack(fpu, bytes);
        bytes[XSTATE_BV] |= X87_AND_SSE;
        self.vm
            .vcpu
            .set_xsave(&area)
            .map_err(|error| Fault::Failed(format!("KVM_SET_XSAVE: {error}")))
    }

    fn xcr0(&mut self) -> Result<u64, Fault> {
        let xcrs = self.vm.vcpu.fd().get_xcrs().map_err(failed("KVM_GET_XCRS"))?;
        let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
        let found = xcrs.xcrs[..count].iter().find(|entry| entry.xcr == 0);
        found
            .map(|entry| entry.value)
            .ok_or_else(|| Fault::Failed("KVM has no XCR0".into()))
    }

    fn code(&mut self, address: u64, out: &mut [u8]) -> usize {
        let mut done = 0;
        while done < out.len() {
            let at = address.wrapping_add(done as u64);
            let piece = (out.len() - done).min((PAGE - at % PAGE) as usize);
            if !self.read_virtual(at, &mut out[done..done + piece]) {
                break;
            }
            done += piece;
        }
        done
    }

    fn read(&mut self, address: u64, out: &mut [u8], access: Access) -> Result<(), Fault> {
        let mut done = 0;
        for (physical, len) in self.pieces(address, out.len(), access == Access::Write)? {
            let piece = &mut out[done..done + len];
            self.memory
                .ram()
                .read_slice(piece, GuestAddress(physical))
                .map_err(|_| Fault::Failed(format!("{physical:#x} is not memory")))?;
            done += len;
        }
        Ok(())
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        let pieces = self.pieces(address, data.len(), true)?;
        let ram = self.memory.ram();
        let in_memory = |&(physical, len): &(u64, usize)| {
            let mut probe = vec![0; len];
            ram.read_slice(&mut probe, GuestAddress(physical)).is_ok()
        };
        if !pieces.iter().all(in_memory) {
            return Err(Fault::Failed(format!("{address:#x} is not memory")));
        }
        let mut done = 0;
        for (physical, len) in pieces {
            ram.write_slice(&data[done..done + len], GuestAddress(physical))
                .map_err(|_| Fault::Failed(format!("{physical:#x} is not memory")))?;
            done += len;
        }
        Ok(())
    }

    fn retire(&mut self, regs: &kvm_regs) -> Result<(), Fault> {
        let fd = self.vm.vcpu.fd();
        fd.set_regs(regs).map_err(failed("KVM_SET_REGS"))?;
        let mut events = fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
        if events.interrupt.shadow != 0 {
            events.interrupt.shadow = 0;
            fd.set_vcpu_events(&events).map_err(failed("KVM_SET_VCPU_EVENTS"))?;
        }
        Ok(())
    }

    fn raise(&mut self, regs: &kvm_regs, exception: Exception) -> Result<(), Fault> {
        let fd = self.vm.vcpu.fd();
        fd.set_regs(regs).map_err(failed("KVM_SET_REGS"))?;
        if let Some(cr2) = exception.cr2 {
            let mut sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
            sregs.cr2 = cr2;
            fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
        }
        let mut events = fd.get_vcpu_events().map_err(failed("KVM_GET_VCPU_EVENTS"))?;
        events.exception.injected = 1;
        events.exception.nr = exception.vector;
        events.exception.has_error_code = u8::from(exception.error_code.is_some());
        events.exception.error_code = exception.error_code.unwrap_or(0);
        events.interrupt.shadow = 0;
        fd.set_vcpu_events(&events).map_err(failed("KVM_SET_VCPU_EVENTS"))
    }
}
