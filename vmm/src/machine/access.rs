//! The access that caused a stop: devices, MSRs and rewritten instructions, and the completion of the exit.
//!
//! Invariant: an exit is completed before registers are read or set. The value of a rewritten instruction is set after
//! the completion, because completing the IN writes RAX.

use kvm_bindings::kvm_regs;
use lockstep_proto::{Msr, Turn};
use vm_memory::{Bytes, GuestAddress};

use super::{Machine, MachineError, Stop, StopKind, modules};
use crate::cpu::assist::numbered_register;
use crate::cpu::msr::{self, MsrAnswer};
use crate::cpu::state;
use crate::devices::Effect;
use crate::loader::trap::{IN_AL_IMM8, IN_EAX_IMM8, OUT_IMM8_EAX, Trapped};
use crate::sys::vcpu::{Exit, MAX_IO_BYTES};

/// CF, PF, AF, ZF, SF and OF: RDRAND and RDSEED clear all but CF (Intel SDM volume 2B).
const ARITHMETIC_FLAGS: u64 = 0x8d5;
const CARRY: u64 = 1;
/// Accesses that one stop can chain: KVM's emulator goes on with a string instruction while it completes an exit, for up
/// to 1,024 elements, each with a load and a store that may lie across two pages.
const MAX_PIECES: usize = 4096;

impl Machine {
    /// Does what the exit asks for, completes it and reads the registers.
    pub(super) fn access(
        &mut self,
        stop: &Stop,
        exit: Exit,
        turn: &Turn,
        effects: &mut Vec<Effect>,
    ) -> Result<(), MachineError> {
        if let StopKind::Trap(trapped) = stop.kind {
            return self.trapped(trapped, turn);
        }
        let mut exit = exit;
        let module = modules::pushed(&exit);
        for _ in 0..MAX_PIECES {
            match exit {
                Exit::In { port, size, count } => {
                    let mut data = vec![0; (size as usize * count as usize).min(MAX_IO_BYTES)];
                    for element in data.chunks_mut(usize::from(size).max(1)) {
                        self.devices.pio_read(port, element, self.now.ns());
                    }
                    self.vm.vcpu.answer_in(&data);
                }
                Exit::Out { port, size, ref data } => {
                    for element in data.chunks(usize::from(size).max(1)) {
                        self.devices.pio_write(port, element, self.now.ns(), effects);
                    }
                }
                Exit::MmioRead { addr, len } => {
                    let mut data = [0; 8];
                    self.devices.mmio_read(addr, &mut data[..usize::from(len)]);
                    self.vm.vcpu.answer_mmio(data);
                }
                Exit::MmioWrite { addr, len, data } => {
                    self.devices
                        .mmio_write(addr, &data[..usize::from(len)], self.memory.ram(), effects);
                }
                Exit::ReadMsr { index } => {
                    let answer = self.msr_answer(msr::read(index, self.config.model_revision));
                    self.vm.vcpu.answer_msr(answer);
                }
                Exit::WriteMsr { index, value } => {
                    let answer = match msr::write(index, self.config.model_revision) {
                        MsrAnswer::Give => {
                            self.give_msr(index, value)?;
                            Some(value)
                        }
                        answer => self.msr_answer(answer),
                    };
                    self.vm.vcpu.answer_msr(answer);
                }
                _ => {}
            }
            if let Some(next) = self.complete()? {
                exit = next;
            } else {
                self.regs = self.read_regs()?;
                return module.map_or(Ok(()), |reg| self.finish_module(reg));
            }
        }
        Err(self.bad_turn("one instruction made more accesses than any can"))
    }

    fn msr_answer(&mut self, answer: MsrAnswer) -> Option<u64> {
        match answer {
            MsrAnswer::Value(value) => Some(value),
            MsrAnswer::Time => Some(self.now.ns()),
            MsrAnswer::Give | MsrAnswer::Fault => {
                self.counters.msr_faults += 1;
                None
            }
        }
    }

    /// Gives KVM an MSR's value as a restored state does.
    fn give_msr(&mut self, index: u32, value: u64) -> Result<(), MachineError> {
        let entry = Msr { index, value };
        Ok(state::set_msrs(&self.vm.vcpu, &[entry])?)
    }

    /// Finishes the last exit. `Some`: its completion is another exit of the same instruction.
    fn complete(&mut self) -> Result<Option<Exit>, MachineError> {
        self.vm.vcpu.complete().map_err(|cause| MachineError::Io {
            what: "KVM_RUN (completion)",
            cause,
        })
    }

    /// Lets KVM finish whatever is half done where no further exit can come.
    pub(super) fn complete_quietly(&mut self) -> Result<(), MachineError> {
        match self.complete()? {
            None | Some(Exit::Window) => Ok(()),
            Some(_) => Err(self.bad_turn("a completion brought an exit where none can be")),
        }
    }

    pub(super) fn read_regs(&mut self) -> Result<kvm_regs, MachineError> {
        self.vm.vcpu.regs_at_exit().map_err(|cause| MachineError::Io {
            what: "KVM_GET_REGS",
            cause,
        })
    }

    /// A rewritten RDTSC, RDTSCP, RDRAND or RDSEED.
    fn trapped(&mut self, trapped: Trapped, turn: &Turn) -> Result<(), MachineError> {
        let before = self.read_regs()?;
        if self.complete()?.is_some() {
            return Err(self.bad_turn("a trap's completion brought another exit"));
        }
        let mut regs = self.read_regs()?;
        self.confirm_trap(trapped, regs.rip)?;
        regs.rax = before.rax;
        match trapped {
            Trapped::WriteCr4 { reg } => self.write_cr4(reg, regs),
            Trapped::ReadCr4 { reg } => self.read_cr4(reg, regs),
            Trapped::GpHandler => self.protection_fault(regs),
            _ => self.answer_trap(trapped, turn, regs),
        }
    }

    /// The same instructions where nobody rewrote them and KVM declined them.
    pub(super) fn declined(&mut self, trapped: Trapped, length: u8, turn: &Turn) -> Result<(), MachineError> {
        let mut regs = self.read_regs()?;
        regs.rip = regs.rip.wrapping_add(length.into());
        self.answer_trap(trapped, turn, regs)
    }

    fn answer_trap(&mut self, trapped: Trapped, turn: &Turn, mut regs: kvm_regs) -> Result<(), MachineError> {
        match trapped {
            Trapped::Rdtsc => self.answer_rdtsc(&mut regs),
            Trapped::Rdtscp => {
                self.answer_rdtsc(&mut regs);
                // IA32_TSC_AUX: processor 0 of node 0.
                regs.rcx = 0;
            }
            Trapped::WriteCr4 { .. } | Trapped::ReadCr4 { .. } | Trapped::GpHandler => {}
            Trapped::Rdrand { reg, wide } | Trapped::Rdseed { reg, wide } => {
                let value = turn
                    .random
                    .ok_or_else(|| self.bad_turn("a random value is wanted and it has none"))?;
                // A 32-bit destination clears the upper half.
                if let Some(register) = numbered_register(&mut regs, reg.into()) {
                    *register = if wide { value } else { value & 0xffff_ffff };
                }
                regs.rflags = regs.rflags & !ARITHMETIC_FLAGS | CARRY;
            }
        }
        self.go_on_with(regs)
    }

    /// These are the registers now.
    pub(super) fn go_on_with(&mut self, regs: kvm_regs) -> Result<(), MachineError> {
        self.vm.vcpu.set_regs(&regs).map_err(|cause| MachineError::Io {
            what: "KVM_SET_REGS",
            cause,
        })?;
        self.regs = regs;
        Ok(())
    }

    /// EDX:EAX is the time stamp counter, which is guest time.
    pub(super) fn answer_rdtsc(&self, regs: &mut kvm_regs) {
        regs.rax = self.now.ns() & 0xffff_ffff;
        regs.rdx = self.now.ns() >> 32;
    }

    /// The two bytes before RIP must be the access that the rewriting put there.
    fn confirm_trap(&mut self, trapped: Trapped, rip_after: u64) -> Result<(), MachineError> {
        let start = rip_after.wrapping_sub(2);
        let mut bytes = [0; 2];
        // Where the page was last time: asking KVM costs as much as entering the guest. Where the bytes are not there
        // any more, it is asked again. Old bytes that still are there name the same instruction as the port does.
        let (page, offset) = (start >> 12, start & 0xfff);
        let slot = page as usize % self.trap_pages.len();
        let (known, physical) = self.trap_pages[slot];
        if known == page
            && offset < 0xfff
            && self
                .memory
                .ram()
                .read_slice(&mut bytes, GuestAddress(physical + offset))
                .is_ok()
            && Trapped::decode(bytes[1].into(), bytes[0]) == Some(trapped)
        {
            return Ok(());
        }
        let found = self.read_virtual(start, &mut bytes) && Trapped::decode(bytes[1].into(), bytes[0]) == Some(trapped);
        if found {
            if let Some(physical) = self.translate(start) {
                self.trap_pages[slot] = (page, physical & !0xfff);
            }
            Ok(())
        } else {
            Err(MachineError::TrapPort {
                port: bytes[1].into(),
                stop: self.stop,
                rip: start,
                bytes,
            })
        }
    }

    /// Reads guest virtual memory; false when something is not mapped.
    pub(super) fn read_virtual(&self, address: u64, out: &mut [u8]) -> bool {
        let mut done = 0;
        while done < out.len() {
            let at = address.wrapping_add(done as u64);
            let piece = (out.len() - done).min(4096 - (at & 0xfff) as usize);
            let Some(physical) = self.translate(at) else {
                return false;
            };
            if self
                .memory
                .ram()
                .read_slice(&mut out[done..done + piece], GuestAddress(physical))
                .is_err()
            {
                return false;
            }
            done += piece;
        }
        true
    }

    pub(super) fn translate(&self, address: u64) -> Option<u64> {
        let translation = self.vm.vcpu.fd().translate_gva(address).ok()?;
        (translation.valid != 0).then_some(translation.physical_address)
    }
}

/// What kind of natural stop an exit is.
pub(super) fn classify(exit: &Exit) -> StopKind {
    match *exit {
        Exit::In { port, size, count: 1 } => match trap_at(port, size) {
            Some(trapped) => StopKind::Trap(trapped),
            None => StopKind::Port { port, write: false },
        },
        Exit::In { port, .. } => StopKind::Port { port, write: false },
        Exit::Out {
            port,
            size: 4,
            ref data,
        } if data.len() == 4 => match Trapped::decode(port, OUT_IMM8_EAX) {
            Some(trapped) => StopKind::Trap(trapped),
            None => StopKind::Port { port, write: true },
        },
        Exit::Out { port, .. } => StopKind::Port { port, write: true },
        Exit::MmioRead { addr, .. } => StopKind::Mmio { addr, write: false },
        Exit::MmioWrite { addr, .. } => StopKind::Mmio { addr, write: true },
        Exit::ReadMsr { index } => StopKind::Msr { index, write: false },
        Exit::WriteMsr { index, .. } => StopKind::Msr { index, write: true },
        Exit::Halt => StopKind::Halt,
        _ => StopKind::Shutdown,
    }
}

/// The rewritten instruction that reads `port` with this width, if one does.
fn trap_at(port: u16, size: u8) -> Option<Trapped> {
    let opcode = match size {
        1 => IN_AL_IMM8,
        4 => IN_EAX_IMM8,
        _ => return None,
    };
    Trapped::decode(port, opcode)
}
