//! The guest's kernel modules: each is looked through when the kernel finishes it, before any of its code runs.
//!
//! The loader has put a trap in place of a PUSH where `module_finalize` begins ([`crate::loader::finalize`]). It is a port write as any
//! other to whoever sees the stop: nothing of it is in the log. What is done there is a function of the guest's registers and
//! memory, so every replica does the same, and what it changes is in memory alone.
//!
//! Invariants:
//! - Only the trap itself counts: at its own address, with its own bytes, in ring 0. Elsewhere the access does what it ever did.
//! - Nothing that the guest says of a module is an error or bounds memory of ours. What cannot be followed is left as it is, and counted.
//! - The PUSH is done, or the machine stops: a kernel that goes on without it has lost its stack.

use vm_memory::{Bytes, GuestAddress};

use super::{Machine, MachineError};
use crate::cpu::assist::{Access, AssistCpu, Fault, numbered_register};
use crate::cpu::walk::is_canonical;
use crate::loader::finalize;
use crate::loader::module::{self, Code, HEADER};
use crate::loader::sweep;
use crate::sys::vcpu::Exit;

/// Bytes of a module's code that are looked at together.
const PIECE: usize = 64 << 10;
/// An instruction that begins in a piece ends within so many bytes behind it.
const LONGEST: usize = 16;

/// The register whose PUSH this exit may stand for.
pub(super) fn pushed(exit: &Exit) -> Option<u8> {
    match exit {
        Exit::Out { port, size: 4, data } if data.len() == 4 => finalize::register_of(*port),
        _ => None,
    }
}

impl Machine {
    /// The access of a trap's kind is completed. If it was the trap: looks the module through, and pushes the register.
    pub(super) fn finish_module(&mut self, reg: u8) -> Result<(), MachineError> {
        if !self.is_module_trap(reg)? {
            return Ok(());
        }
        let mut regs = self.regs;
        if self.look_through(regs.rdi, regs.rsi).is_none() {
            self.counters.modules_left += 1;
        }
        let value = numbered_register(&mut regs, reg.into()).map_or(0, |register| *register);
        let stack = regs.rsp.wrapping_sub(8);
        let bytes = value.to_le_bytes();
        let written = if is_canonical(stack, bytes.len()) {
            self.write(stack, &bytes)
        } else {
            Err(Fault::Failed("no canonical address".into()))
        };
        written.map_err(|fault| MachineError::ModuleStack {
            stop: self.stop,
            rip: regs.rip,
            stack,
            why: match fault {
                Fault::Failed(why) => why,
                Fault::Page { error_code, .. } => format!("#PF with error code {error_code:#x}"),
            },
        })?;
        regs.rsp = stack;
        self.go_on_with(regs)
    }

    /// Whether the OUT that has just been completed is the trap that was put into the kernel.
    fn is_module_trap(&mut self, reg: u8) -> Result<bool, MachineError> {
        let trap = finalize::trap(reg);
        let Some(place) = self.config.module_trap() else {
            return Ok(false);
        };
        if self.regs.rip != place.wrapping_add(trap.len() as u64) {
            return Ok(false);
        }
        let sregs = self.vm.vcpu.fd().get_sregs().map_err(|cause| MachineError::Io {
            what: "KVM_GET_SREGS",
            cause: cause.into(),
        })?;
        let mut bytes = [0; 2];
        Ok(sregs.ss.dpl == 0 && sregs.cs.l == 1 && self.code(place, &mut bytes) == bytes.len() && bytes == trap)
    }

    /// Looks through the module with its ELF header at `header` and its section headers at `table`. `None`: they cannot be followed.
    fn look_through(&mut self, header: u64, table: u64) -> Option<()> {
        let mut bytes = [0; HEADER];
        self.fetch(header, &mut bytes).ok()?;
        let mut sections = vec![0; module::table_bytes(&bytes).ok()?];
        self.fetch(table, &mut sections).ok()?;
        for code in module::code(&sections).ok()? {
            if self.look_through_code(code).is_none() {
                self.counters.modules_left += 1;
            }
        }
        self.counters.modules += 1;
        Some(())
    }

    /// Reads all of it, or nothing.
    fn fetch(&mut self, address: u64, out: &mut [u8]) -> Result<(), Fault> {
        if is_canonical(address, out.len()) {
            self.read(address, out, Access::Read)
        } else {
            Err(Fault::Failed("no canonical address".into()))
        }
    }

    /// Rewrites what a trap has to replace, piece by piece. `None`: not all of it is in memory, and what follows stays as it is.
    fn look_through_code(&mut self, code: Code) -> Option<()> {
        let mut done = 0;
        while done < code.size {
            let address = code.address.wrapping_add(done);
            let length = (code.size - done).min((PIECE + LONGEST) as u64) as usize;
            let mut bytes = vec![0; length];
            self.fetch(address, &mut bytes).ok()?;
            let looked = sweep::look_through(&bytes, address, PIECE);
            let before = bytes.clone();
            for (at, replacement) in &looked.replacements {
                bytes[*at..at + replacement.len()].copy_from_slice(replacement);
            }
            self.replace(address, &before, &bytes)?;
            self.counters.module_instructions += looked.replacements.len() as u64;
            self.counters.modules_left += looked.left;
            done += looked.end as u64;
        }
        Some(())
    }

    /// Writes code where it has changed, page by page; whether or not the guest's tables let the guest write it.
    fn replace(&mut self, address: u64, before: &[u8], after: &[u8]) -> Option<()> {
        if before == after {
            return Some(());
        }
        let mut done = 0;
        for (physical, length) in self.pieces(address, after.len(), false).ok()? {
            let piece = done..done + length;
            if before[piece.clone()] != after[piece.clone()] {
                let ram = self.memory.ram();
                ram.write_slice(&after[piece], GuestAddress(physical)).ok()?;
            }
            done += length;
        }
        Some(())
    }
}
