//! The complete state of a vCPU, as a message, and its digest.
//!
//! Order matters (KVM API): restoring sets the MP state, general and special registers, XCRs, the FPU, debug registers
//! and MSRs before the pending events. A short GET_MSRS or SET_MSRS is an error, never ignored.

use bytes::Bytes;
use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use lockstep_proto::{Msr, VcpuState};
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{msr, uniform};
use crate::sys::vcpu::{RawVcpu, Registers};

/// Bytes of the XSAVE area that KVM_GET_XSAVE and KVM_SET_XSAVE move.
const XSAVE_BYTES: usize = 4096;

/// What can be wrong with a vCPU's state.
#[derive(Debug, Error)]
pub enum StateError {
    /// KVM refused.
    #[error("KVM: {what} failed: {cause}")]
    Kvm {
        /// The call.
        what: &'static str,
        /// Its error.
        cause: std::io::Error,
    },
    /// Fewer MSRs than asked for were moved.
    #[error("KVM moved only {done} of {wanted} MSRs in {what}: MSR {index:#x} is not supported by this KVM")]
    Msrs {
        /// The call.
        what: &'static str,
        /// MSRs moved.
        done: usize,
        /// MSRs asked for.
        wanted: usize,
        /// The first that was not.
        index: u32,
    },
    /// A part of a state that came from outside has the wrong size or value.
    #[error("vCPU state is damaged: {0}")]
    Damaged(&'static str),
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |cause| StateError::Kvm {
        what,
        cause: cause.into(),
    }
}

/// Reads the whole state, in the one form of [`uniform`]. Only at a completed stop.
pub fn save(vcpu: &RawVcpu) -> Result<VcpuState, StateError> {
    settled(read(vcpu)?)
}

/// [`save`] with fewer calls where KVM shares registers in `kvm_run`: deltas need it many times a second.
pub fn save_often(vcpu: &mut RawVcpu) -> Result<VcpuState, StateError> {
    settled(read_often(vcpu)?)
}

/// Brings a state that was read into the one form.
pub fn settled(state: VcpuState) -> Result<VcpuState, StateError> {
    let (mut sregs, mut events) = (sregs(&state)?, events(&state)?);
    uniform::settle(&mut sregs, &mut events);
    Ok(VcpuState {
        sregs: Bytes::copy_from_slice(sregs.as_bytes()),
        events: Bytes::copy_from_slice(events.as_bytes()),
        ..state
    })
}

/// Reads the whole state as KVM gives it.
pub fn read(vcpu: &RawVcpu) -> Result<VcpuState, StateError> {
    vcpu.settle().map_err(|cause| StateError::Kvm {
        what: "KVM_SET_REGS",
        cause,
    })?;
    let fd = vcpu.fd();
    let registers = Registers {
        regs: fd.get_regs().map_err(kvm("KVM_GET_REGS"))?,
        sregs: fd.get_sregs().map_err(kvm("KVM_GET_SREGS"))?,
        events: fd.get_vcpu_events().map_err(kvm("KVM_GET_VCPU_EVENTS"))?,
    };
    with_registers(vcpu, &registers)
}

/// [`read`] with fewer calls where KVM shares registers in `kvm_run`.
pub fn read_often(vcpu: &mut RawVcpu) -> Result<VcpuState, StateError> {
    let shared = vcpu
        .shared_registers()
        .map_err(|cause| StateError::Kvm { what: "KVM_RUN", cause })?;
    match shared {
        Some(registers) => with_registers(vcpu, &registers),
        None => read(vcpu),
    }
}

fn with_registers(vcpu: &RawVcpu, registers: &Registers) -> Result<VcpuState, StateError> {
    let Registers { regs, sregs, events } = registers;
    let fd = vcpu.fd();
    let mp = fd.get_mp_state().map_err(kvm("KVM_GET_MP_STATE"))?;
    let xsave = fd.get_xsave().map_err(kvm("KVM_GET_XSAVE"))?;
    let xcrs = fd.get_xcrs().map_err(kvm("KVM_GET_XCRS"))?;
    let debugregs = fd.get_debug_regs().map_err(kvm("KVM_GET_DEBUGREGS"))?;
    let msrs = get_msrs(vcpu)?;
    let area = xsave.region.as_bytes();
    let used = area.len() - area.iter().rev().take_while(|&&byte| byte == 0).count();
    Ok(VcpuState {
        mp_state: mp.mp_state,
        regs: Bytes::copy_from_slice(regs.as_bytes()),
        sregs: Bytes::copy_from_slice(sregs.as_bytes()),
        xsave: Bytes::copy_from_slice(&area[..used]),
        xcrs: Bytes::copy_from_slice(xcrs.as_bytes()),
        debugregs: Bytes::copy_from_slice(debugregs.as_bytes()),
        msrs,
        events: Bytes::copy_from_slice(events.as_bytes()),
        guest_tsd: false,
    })
}

fn get_msrs(vcpu: &RawVcpu) -> Result<Vec<Msr>, StateError> {
    let entries = msr::SAVED.map(|index| kvm_msr_entry {
        index,
        ..Default::default()
    });
    let mut msrs = Msrs::from_entries(&entries).map_err(|_| StateError::Damaged("too many MSRs"))?;
    let done = vcpu.fd().get_msrs(&mut msrs).map_err(kvm("KVM_GET_MSRS"))?;
    if done != entries.len() {
        return Err(StateError::Msrs {
            what: "KVM_GET_MSRS",
            done,
            wanted: entries.len(),
            index: entries[done].index,
        });
    }
    Ok(msrs
        .as_slice()
        .iter()
        .map(|entry| Msr {
            index: entry.index,
            value: entry.data,
        })
        .collect())
}

/// The general registers of a saved state.
pub fn regs(state: &VcpuState) -> Result<kvm_regs, StateError> {
    kvm_regs::read_from_bytes(&state.regs).map_err(|_| StateError::Damaged("general registers have the wrong size"))
}

/// The special registers of a saved state.
pub fn sregs(state: &VcpuState) -> Result<kvm_sregs, StateError> {
    kvm_sregs::read_from_bytes(&state.sregs).map_err(|_| StateError::Damaged("special registers have the wrong size"))
}

/// The pending events of a saved state.
pub fn events(state: &VcpuState) -> Result<kvm_vcpu_events, StateError> {
    kvm_vcpu_events::read_from_bytes(&state.events)
        .map_err(|_| StateError::Damaged("pending events have the wrong size"))
}

/// Sets the whole state. Only at a completed stop or before the first entry.
pub fn restore(vcpu: &RawVcpu, state: &VcpuState) -> Result<(), StateError> {
    let regs = regs(state)?;
    let sregs = sregs(state)?;
    if state.xsave.len() > XSAVE_BYTES {
        return Err(StateError::Damaged("the XSAVE area is too large"));
    }
    let mut xsave = kvm_xsave::default();
    xsave.region.as_mut_bytes()[..state.xsave.len()].copy_from_slice(&state.xsave);
    let xcrs = kvm_xcrs::read_from_bytes(&state.xcrs).map_err(|_| StateError::Damaged("XCRs have the wrong size"))?;
    let debugregs = kvm_debugregs::read_from_bytes(&state.debugregs)
        .map_err(|_| StateError::Damaged("debug registers have the wrong size"))?;
    let events = events(state)?;
    let indices = state.msrs.iter().map(|entry| entry.index);
    if !indices.eq(msr::SAVED) {
        return Err(StateError::Damaged("the MSR list is not this program's"));
    }
    if state
        .msrs
        .iter()
        .any(|entry| entry.index == msr::EFER && entry.value != sregs.efer)
    {
        return Err(StateError::Damaged("EFER differs between special registers and MSRs"));
    }
    vcpu.forget();
    let fd = vcpu.fd();
    fd.set_mp_state(kvm_mp_state {
        mp_state: state.mp_state,
    })
    .map_err(kvm("KVM_SET_MP_STATE"))?;
    fd.set_regs(&regs).map_err(kvm("KVM_SET_REGS"))?;
    fd.set_sregs(&sregs).map_err(kvm("KVM_SET_SREGS"))?;
    fd.set_xcrs(&xcrs).map_err(kvm("KVM_SET_XCRS"))?;
    vcpu.set_xsave(&xsave).map_err(|cause| StateError::Kvm {
        what: "KVM_SET_XSAVE",
        cause,
    })?;
    fd.set_debug_regs(&debugregs).map_err(kvm("KVM_SET_DEBUGREGS"))?;
    set_msrs(vcpu, &state.msrs)?;
    fd.set_vcpu_events(&events).map_err(kvm("KVM_SET_VCPU_EVENTS"))
}

/// Sets MSRs.
pub fn set_msrs(vcpu: &RawVcpu, msrs: &[Msr]) -> Result<(), StateError> {
    let entries: Vec<_> = msrs
        .iter()
        .map(|entry| kvm_msr_entry {
            index: entry.index,
            data: entry.value,
            ..Default::default()
        })
        .collect();
    let msrs = Msrs::from_entries(&entries).map_err(|_| StateError::Damaged("too many MSRs"))?;
    let done = vcpu.fd().set_msrs(&msrs).map_err(kvm("KVM_SET_MSRS"))?;
    if done != entries.len() {
        return Err(StateError::Msrs {
            what: "KVM_SET_MSRS",
            done,
            wanted: entries.len(),
            index: entries[done].index,
        });
    }
    Ok(())
}

/// Takes into `hasher` what an epoch compares of a vCPU beyond the general registers: control and segment registers,
/// MSRs, pending events, debug registers and the FPU.
///
/// Of the FPU only what FXSAVE defines on every CPU counts: FOP, FIP and FDP (bytes 6 to 23) are saved by AMD only
/// while an exception is pending (AMD APM volume 2, 11.4.4), MXCSR_MASK (28 to 31) is a constant of the host, and bytes
/// 464 and up are left to software.
pub fn digest_into(hasher: &mut Xxh3, state: &VcpuState) {
    let fpu = compared_fpu(state);
    hasher.update(&state.mp_state.to_le_bytes());
    for part in [&state.regs, &state.sregs, &state.xcrs, &state.debugregs, &state.events] {
        hasher.update(part);
    }
    hasher.update(&fpu);
    for entry in &state.msrs {
        hasher.update(&entry.index.to_le_bytes());
        hasher.update(&entry.value.to_le_bytes());
    }
}

/// The same piece by piece, each with its name: what a report says of states that differ. MSRs are named by their number.
pub fn pieces(state: &VcpuState, each: &mut impl FnMut(&'static str, Option<u32>, &[u8])) -> Result<(), StateError> {
    each("general registers", None, &state.regs);
    let s = sregs(state)?;
    let named = [
        ("CS", s.cs.as_bytes()),
        ("DS", s.ds.as_bytes()),
        ("ES", s.es.as_bytes()),
        ("FS", s.fs.as_bytes()),
        ("GS", s.gs.as_bytes()),
        ("SS", s.ss.as_bytes()),
        ("TR", s.tr.as_bytes()),
        ("LDTR", s.ldt.as_bytes()),
        ("GDTR", s.gdt.as_bytes()),
        ("IDTR", s.idt.as_bytes()),
        ("CR0", s.cr0.as_bytes()),
        ("CR2", s.cr2.as_bytes()),
        ("CR3", s.cr3.as_bytes()),
        ("CR4", s.cr4.as_bytes()),
        ("CR8", s.cr8.as_bytes()),
        ("EFER", s.efer.as_bytes()),
        ("APIC base", s.apic_base.as_bytes()),
        ("interrupt bitmap", s.interrupt_bitmap.as_bytes()),
    ];
    for (name, bytes) in named {
        each(name, None, bytes);
    }
    each("XCRs", None, &state.xcrs);
    each("FPU", None, &compared_fpu(state));
    each("debug registers", None, &state.debugregs);
    each("pending events", None, &state.events);
    each("MP state", None, &state.mp_state.to_le_bytes());
    for entry in &state.msrs {
        each("MSR", Some(entry.index), &entry.value.to_le_bytes());
    }
    Ok(())
}

/// The bytes of the XSAVE area that count.
fn compared_fpu(state: &VcpuState) -> [u8; 464] {
    let mut fpu = [0; 464];
    let len = state.xsave.len().min(fpu.len());
    fpu[..len].copy_from_slice(&state.xsave[..len]);
    fpu[6..24].zero();
    fpu[28..32].zero();
    fpu
}
