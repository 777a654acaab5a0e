//! What is told of an instruction that is not carried out: its bytes, its text and the registers.

use std::fmt;

use iced_x86::{Formatter, GasFormatter, Instruction};
use kvm_bindings::kvm_regs;
use thiserror::Error;

/// Why an instruction was not carried out. Nothing was changed. The machine stops.
#[derive(Debug, Error)]
pub enum AssistError {
    /// It is not known here.
    #[error("KVM cannot emulate an instruction, and neither can this program: `{disassembly}` at {rip:#x}, bytes {}: {why}. Keep the guest from using it (a kernel built without it, or clearcpuid=) or report it. {}", Bytes(.bytes), Registers(.regs))]
    Unknown {
        /// Where it is.
        rip: u64,
        /// The bytes at RIP, up to 15.
        bytes: Vec<u8>,
        /// What they mean.
        disassembly: String,
        /// What is in the way.
        why: &'static str,
        /// The registers.
        regs: Box<kvm_regs>,
    },
    /// Guest memory or vCPU state was out of reach.
    #[error("an instruction that KVM cannot emulate could not be emulated here either: `{disassembly}` at {rip:#x}, bytes {}: {why}. {}", Bytes(.bytes), Registers(.regs))]
    Failed {
        /// Where it is.
        rip: u64,
        /// The bytes at RIP, up to 15.
        bytes: Vec<u8>,
        /// What they mean.
        disassembly: String,
        /// What failed.
        why: String,
        /// The registers.
        regs: Box<kvm_regs>,
    },
    /// The vCPU's registers could not be read.
    #[error("an instruction that KVM cannot emulate: the vCPU's registers could not be read: {0}")]
    State(String),
}

struct Bytes<'a>(&'a [u8]);

impl fmt::Display for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if index == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

struct Registers<'a>(&'a kvm_regs);

impl fmt::Display for Registers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self.0;
        write!(
            f,
            "Registers: rax {:#x} rbx {:#x} rcx {:#x} rdx {:#x} rsi {:#x} rdi {:#x} rsp {:#x} rbp {:#x} r8 {:#x} r9 {:#x} \
             r10 {:#x} r11 {:#x} r12 {:#x} r13 {:#x} r14 {:#x} r15 {:#x} rflags {:#x}",
            r.rax,
            r.rbx,
            r.rcx,
            r.rdx,
            r.rsi,
            r.rdi,
            r.rsp,
            r.rbp,
            r.r8,
            r.r9,
            r.r10,
            r.r11,
            r.r12,
            r.r13,
            r.r14,
            r.r15,
            r.rflags
        )
    }
}

/// An instruction as text.
pub(super) fn disassemble(instruction: &Instruction) -> String {
    if instruction.is_invalid() {
        return "(no instruction)".into();
    }
    let mut text = String::new();
    GasFormatter::new().format(instruction, &mut text);
    text
}
