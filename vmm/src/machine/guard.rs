//! RDTSC in the guest's programs, where CR4.TSD works: it faults, the fault is a trap of ours, and the machine answers.
//!
//! Invariants:
//! - TSD is set only while the handler of #GP that the guest's IDT names begins with our trap: a program's RDTSC never
//!   reaches the guest's handler, unless the guest itself has set TSD.
//! - The guest's kernel sees and sets a TSD of its own: its accesses to CR4 are traps too.
//! - Any other #GP goes on in the guest's handler with all registers as they were: the trap stands where a NOP stood, and
//!   an OUT changes nothing.
//! - What is done here happens at natural stops and is a function of the machine's state: every replica does the same.
//!
//! The handler is looked for at each write to CR4, of which Linux makes some when it has set its IDT up and before it runs
//! a program (it flushes the TLB by CR4.PGE when it write-protects itself), and at every [`LOOK`]th stop.

use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::{Machine, MachineError};
use crate::cpu::assist::{AssistCpu, Exception, Fault, numbered_register};
use crate::loader::trap::Trapped;

/// CR4.TSD: RDTSC and RDTSCP outside ring 0 are a #GP (Intel SDM volume 3A, 2.5).
const CR4_TSD: u64 = 1 << 2;
/// RFLAGS.TF and RFLAGS.RF.
const TRAP_FLAG: u64 = 1 << 8;
const RESUME_FLAG: u64 = 1 << 16;
/// DR6.BS: a single step.
const DR6_SINGLE_STEP: u64 = 1 << 14;
const DEBUG_EXCEPTION: u8 = 1;
const GP_VECTOR: u64 = 13;
/// Natural stops after which the handler is looked for again.
const LOOK: u64 = 256;
/// Longest instruction, and the most of a handler's beginning that a trap may take.
const LONGEST: usize = 15;

impl Machine {
    /// Answers RDTSC in the guest's programs with guest time. Only where the probe has seen that CR4.TSD works, and for a
    /// kernel that was loaded so; at the same stop on every replica.
    pub fn guard_programs(&mut self, guarded: bool) {
        self.guarded = guarded;
    }

    /// Whether RDTSC in the guest's programs is answered by the machine now.
    pub fn is_guarding(&self) -> Result<bool, MachineError> {
        Ok(self.guarded && self.special()?.cr4 & CR4_TSD != 0 && !self.guest_tsd)
    }

    fn special(&self) -> Result<kvm_sregs, MachineError> {
        let sregs = self.vm.vcpu.fd().get_sregs();
        sregs.map_err(|cause| MachineError::Io {
            what: "KVM_GET_SREGS",
            cause: cause.into(),
        })
    }

    fn set_special(&self, sregs: &kvm_sregs) -> Result<(), MachineError> {
        self.vm.vcpu.fd().set_sregs(sregs).map_err(|cause| MachineError::Io {
            what: "KVM_SET_SREGS",
            cause: cause.into(),
        })
    }

    /// MOV to CR4: what the guest wants, and TSD. KVM flushes the TLB where a CPU would.
    pub(super) fn write_cr4(&mut self, reg: u8, regs: kvm_regs) -> Result<(), MachineError> {
        let mut sregs = self.special()?;
        let mut from = regs;
        let value = numbered_register(&mut from, reg.into()).map_or(0, |register| *register);
        self.guest_tsd = value & CR4_TSD != 0;
        sregs.cr4 = value | if self.hook(&sregs) { CR4_TSD } else { 0 };
        self.vm.vcpu.fd().set_sregs(&sregs).map_err(|cause| MachineError::Cr4 {
            value,
            stop: self.stop,
            rip: regs.rip,
            cause: cause.into(),
        })?;
        self.go_on_with(regs)
    }

    /// MOV from CR4: as the guest has written it.
    pub(super) fn read_cr4(&mut self, reg: u8, mut regs: kvm_regs) -> Result<(), MachineError> {
        let value = self.special()?.cr4 & !CR4_TSD | if self.guest_tsd { CR4_TSD } else { 0 };
        if let Some(register) = numbered_register(&mut regs, reg.into()) {
            *register = value;
        }
        self.go_on_with(regs)
    }

    /// Looks whether the handler is still ours, now and then: a guest that changes its IDT need not write CR4.
    pub(super) fn look_after_programs(&mut self) -> Result<(), MachineError> {
        if !self.guarded || !self.stop.get().is_multiple_of(LOOK) {
            return Ok(());
        }
        let mut sregs = self.special()?;
        let wanted = self.hook(&sregs) || self.guest_tsd;
        if wanted != (sregs.cr4 & CR4_TSD != 0) {
            sregs.cr4 ^= CR4_TSD;
            self.set_special(&sregs)?;
        }
        Ok(())
    }

    /// Puts the trap into the handler of #GP, if the guest has one that begins with what can be replaced.
    fn hook(&self, sregs: &kvm_sregs) -> bool {
        let mut gate = [0; 16];
        if !self.guarded
            || u64::from(sregs.idt.limit) < GP_VECTOR * 16 + 15
            || !self.read_virtual(sregs.idt.base.wrapping_add(GP_VECTOR * 16), &mut gate)
        {
            return false;
        }
        let Some(handler) = handler_of(&gate) else {
            return false;
        };
        let mut code = [0; LONGEST];
        // All of it in one page: it is written by its physical address.
        if handler & 0xfff > 0xfff - LONGEST as u64 || !self.read_virtual(handler, &mut code) {
            return false;
        }
        if Trapped::decode(code[1].into(), code[0]) == Some(Trapped::GpHandler) {
            return true;
        }
        let trap = Trapped::GpHandler.encode(idle_bytes(&code));
        let Some((trap, physical)) = trap.zip(self.translate(handler)) else {
            return false;
        };
        self.memory.ram().write_slice(&trap, GuestAddress(physical)).is_ok()
    }

    /// The guest's handler of #GP begins. A program's RDTSC is answered; everything else goes on there.
    pub(super) fn protection_fault(&mut self, regs: kvm_regs) -> Result<(), MachineError> {
        match self.programs_rdtsc(&regs)? {
            Some(frame) => self.back_to_program(regs, &frame),
            None => self.go_on_with(regs),
        }
    }

    /// What the CPU has pushed, where the fault is a program's RDTSC or RDTSCP that only faults for us.
    fn programs_rdtsc(&self, regs: &kvm_regs) -> Result<Option<Frame>, MachineError> {
        let mut pushed = [0; 48];
        if !self.guarded || self.guest_tsd || !self.read_virtual(regs.rsp, &mut pushed) {
            return Ok(None);
        }
        let word = |index: usize| u64::from_le_bytes(std::array::from_fn(|byte| pushed[index * 8 + byte]));
        let (error_code, cs, ss) = (word(0), word(2) as u16, word(5) as u16);
        if error_code != 0 || cs & 3 != 3 {
            return Ok(None);
        }
        let sregs = self.special()?;
        let (Some(cs), Some(ss)) = (self.descriptor(&sregs, cs), self.descriptor(&sregs, ss)) else {
            return Ok(None);
        };
        let mut frame = Frame {
            rip: word(1),
            rflags: word(3),
            rsp: word(4),
            cs,
            ss,
            instruction: Code::INVALID,
            length: 0,
        };
        let (start, bits) = match (cs.l, cs.db) {
            (1, _) => (frame.rip, 64),
            (_, 1) => (cs.base.wrapping_add(frame.rip) & 0xffff_ffff, 32),
            _ => (cs.base.wrapping_add(frame.rip) & 0xffff_ffff, 16),
        };
        let mut code = [0; LONGEST];
        let there = (1..=LONGEST)
            .rev()
            .find(|&len| self.read_virtual(start, &mut code[..len]));
        let mut decoder = Decoder::new(bits, &code[..there.unwrap_or(0)], DecoderOptions::NONE);
        let instruction = decoder.decode();
        if !matches!(instruction.mnemonic(), Mnemonic::Rdtsc | Mnemonic::Rdtscp) {
            return Ok(None);
        }
        frame.instruction = instruction.code();
        frame.length = instruction.len() as u64;
        Ok(Some(frame))
    }

    /// Answers, skips the instruction and goes back to ring 3, as IRET does from a handler's first instruction: nothing
    /// but what the CPU has pushed has changed since the program.
    fn back_to_program(&mut self, mut regs: kvm_regs, frame: &Frame) -> Result<(), MachineError> {
        self.answer_rdtsc(&mut regs);
        if frame.instruction == Code::Rdtscp {
            regs.rcx = 0;
        }
        let next = frame.rip.wrapping_add(frame.length);
        regs.rip = if frame.cs.l == 1 { next } else { next & 0xffff_ffff };
        regs.rsp = frame.rsp;
        // A fault pushes RF = 1; an instruction that is through clears it (Intel SDM volume 3B, 18.3.1.1).
        regs.rflags = frame.rflags & !RESUME_FLAG;
        let mut sregs = self.special()?;
        sregs.cs = frame.cs;
        sregs.ss = frame.ss;
        self.set_special(&sregs)?;
        self.counters.program_tsc += 1;
        self.go_on_with(regs)?;
        // With the state of the program KVM may be ready for an interrupt: one that waits enters here, as at any stop.
        self.complete_quietly()?;
        if regs.rflags & TRAP_FLAG != 0 {
            // Who steps through the program gets the step over this instruction.
            self.single_stepped(&regs)?;
        }
        Ok(())
    }

    /// The #DB of a single step.
    fn single_stepped(&mut self, regs: &kvm_regs) -> Result<(), MachineError> {
        let fd = self.vm.vcpu.fd();
        let error = |what: &'static str| {
            move |cause: kvm_ioctls::Error| MachineError::Io {
                what,
                cause: cause.into(),
            }
        };
        let mut debug = fd.get_debug_regs().map_err(error("KVM_GET_DEBUGREGS"))?;
        debug.dr6 |= DR6_SINGLE_STEP;
        fd.set_debug_regs(&debug).map_err(error("KVM_SET_DEBUGREGS"))?;
        let exception = Exception {
            vector: DEBUG_EXCEPTION,
            error_code: None,
            cr2: None,
        };
        self.raise(regs, exception).map_err(|fault| MachineError::Io {
            what: "raise a program's #DB",
            cause: std::io::Error::other(match fault {
                Fault::Failed(why) => why,
                Fault::Page { address, .. } => format!("#PF at {address:#x}"),
            }),
        })?;
        // An exception waits: no interrupt goes before it.
        self.complete_quietly()
    }

    /// The segment that `selector` names in the guest's GDT or LDT (Intel SDM volume 3A, 3.4.5).
    fn descriptor(&self, sregs: &kvm_sregs, selector: u16) -> Option<kvm_segment> {
        let (base, limit) = if selector & 4 == 0 {
            (sregs.gdt.base, u32::from(sregs.gdt.limit))
        } else {
            (sregs.ldt.base, sregs.ldt.limit)
        };
        let offset = selector & !7;
        let mut bytes = [0; 8];
        let fits = offset != 0 && u32::from(offset) + 7 <= limit;
        (fits && self.read_virtual(base.wrapping_add(offset.into()), &mut bytes))
            .then(|| segment(selector, u64::from_le_bytes(bytes)))
    }
}

/// Where a fault came from, as the CPU has pushed it.
struct Frame {
    rip: u64,
    rflags: u64,
    rsp: u64,
    cs: kvm_segment,
    ss: kvm_segment,
    instruction: Code,
    length: u64,
}

/// The address in a 64-bit interrupt or trap gate, if it is one that is there (Intel SDM volume 3A, figure 6-8).
fn handler_of(gate: &[u8; 16]) -> Option<u64> {
    let is_gate = gate[5] & 0x80 != 0 && matches!(gate[5] & 0x1f, 0xe | 0xf);
    let address = [gate[0], gate[1], gate[6], gate[7], gate[8], gate[9], gate[10], gate[11]];
    is_gate.then(|| u64::from_le_bytes(address))
}

/// How many bytes the instructions have that code begins with and that do nothing.
fn idle_bytes(code: &[u8]) -> usize {
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let mut idle = 0;
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if !matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Endbr64) {
            break;
        }
        idle += instruction.len();
    }
    idle
}

/// A descriptor as KVM has it.
fn segment(selector: u16, descriptor: u64) -> kvm_segment {
    let bits = |from: u32, count: u32| descriptor >> from & ((1 << count) - 1);
    let limit = (bits(0, 16) | bits(48, 4) << 16) as u32;
    let g = bits(55, 1) as u8;
    kvm_segment {
        base: bits(16, 24) | bits(56, 8) << 24,
        limit: if g == 1 { limit << 12 | 0xfff } else { limit },
        selector,
        type_: bits(40, 4) as u8,
        s: bits(44, 1) as u8,
        dpl: bits(45, 2) as u8,
        present: bits(47, 1) as u8,
        avl: bits(52, 1) as u8,
        l: bits(53, 1) as u8,
        db: bits(54, 1) as u8,
        g,
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_own_descriptors() {
        // The 64-bit and the 32-bit code segment of programs, and their data segment.
        let code = segment(0x33, 0x00af_fb00_0000_ffff);
        assert_eq!(
            (code.base, code.limit, code.type_, code.s, code.dpl),
            (0, 0xffff_ffff, 0xb, 1, 3)
        );
        assert_eq!((code.present, code.l, code.db, code.g), (1, 1, 0, 1));
        let code = segment(0x23, 0x00cf_fb00_0000_ffff);
        assert_eq!((code.l, code.db), (0, 1));
        let data = segment(0x2b, 0x00cf_f300_0000_ffff);
        assert_eq!((data.type_, data.dpl, data.db), (3, 3, 1));
        assert_eq!(segment(7, 0x1200_f334_5678_0fff).base, 0x1234_5678);
    }

    #[test]
    fn what_handlers_begin_with() {
        // As Linux has it where there is no SMAP: NOP, CLD; and with ENDBR64 before it.
        assert_eq!(idle_bytes(&[0x0f, 0x1f, 0x00, 0xfc, 0x50]), 3);
        assert_eq!(idle_bytes(&[0x90, 0x90, 0x90, 0xfc]), 3);
        assert_eq!(idle_bytes(&[0xf3, 0x0f, 0x1e, 0xfa, 0x0f, 0x01, 0xca]), 4);
        assert_eq!(idle_bytes(&[0x6a, 0x0d, 0xe9]), 0);
    }

    #[test]
    fn gates() {
        let mut gate = [0; 16];
        gate[..12].copy_from_slice(&[0x70, 0x0a, 0x10, 0, 0, 0x8e, 0x80, 0x81, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(handler_of(&gate), Some(0xffff_ffff_8180_0a70));
        gate[5] = 0x0e;
        assert_eq!(handler_of(&gate), None, "not there");
        gate[5] = 0x85;
        assert_eq!(handler_of(&gate), None, "a task gate");
    }
}
