//! Instructions that KVM's emulator declines.
//!
//! Where the guest's ring-0 code is interpreted by KVM, an instruction that the interpreter lacks ends KVM_RUN with
//! KVM_EXIT_INTERNAL_ERROR (suberror 1) and RIP on the instruction. [`assist`] carries it out: a pure function of the
//! vCPU's state and the guest's memory, and therefore neither numbered nor logged. What it does not know stops the
//! machine, with bytes and registers in the message, never silently.
//!
//! Only 64-bit code is assisted.

mod error;
mod fpu;
mod operand;

#[cfg(test)]
mod tests;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use kvm_bindings::{kvm_fpu, kvm_regs, kvm_sregs};

use crate::loader::trap::Trapped;

pub use error::AssistError;
use error::disassemble;
pub(crate) use operand::numbered_register;

/// Longest x86 instruction.
pub const MAX_INSTRUCTION: usize = 15;

const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR0_NE: u64 = 1 << 5;
const CR4_TSD: u64 = 1 << 2;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_LA57: u64 = 1 << 12;
const CR4_OSXSAVE: u64 = 1 << 18;
const EFER_LMA: u64 = 1 << 10;

const FLAG_CF: u64 = 1 << 0;
const FLAG_PF: u64 = 1 << 2;
const FLAG_AF: u64 = 1 << 4;
const FLAG_ZF: u64 = 1 << 6;
const FLAG_SF: u64 = 1 << 7;
const FLAG_TF: u64 = 1 << 8;
const FLAG_OF: u64 = 1 << 11;
const FLAG_RF: u64 = 1 << 16;
const FLAG_AC: u64 = 1 << 18;

const BP: u8 = 3;
const UD: u8 = 6;
const NM: u8 = 7;
const SS: u8 = 12;
const GP: u8 = 13;
const PF: u8 = 14;
const MF: u8 = 16;

/// What a memory access is for; it decides the page fault's error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing, or reading what the same instruction writes afterwards: the page must be writable.
    Write,
}

/// Why guest memory could not be accessed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The guest's page tables do not allow it: the guest gets #PF.
    Page {
        /// The linear address that goes into CR2: the first byte that could not be accessed.
        address: u64,
        /// The error code (present, write, user, reserved bits).
        error_code: u32,
    },
    /// The address is not one of memory (a device, a hole), or the access failed on our side: the assist fails.
    Failed(String),
}

/// An exception for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its vector.
    pub vector: u8,
    /// Its error code, for vectors that have one.
    pub error_code: Option<u32>,
    /// What goes into CR2, for #PF.
    pub cr2: Option<u64>,
}

/// What an assist needs of a vCPU. The vCPU is stopped, and every exit completed.
///
/// Reads come first: an assist ends with exactly one call of [`retire`](Self::retire) or [`raise`](Self::raise), or
/// with neither where it fails or has nothing to say. Only `write` and `set_fpu` change anything before that, and only
/// where the instruction will complete.
pub trait AssistCpu {
    /// KVM_GET_REGS.
    fn regs(&mut self) -> Result<kvm_regs, Fault>;
    /// KVM_GET_SREGS.
    fn sregs(&mut self) -> Result<kvm_sregs, Fault>;
    /// The legacy area of KVM_GET_XSAVE. (KVM_GET_FPU leaves MXCSR out.)
    fn fpu(&mut self) -> Result<kvm_fpu, Fault>;
    /// The legacy area of KVM_SET_XSAVE, with the x87 and SSE bits of XSTATE_BV set, without which KVM ignores it.
    /// (KVM_SET_FPU leaves MXCSR out.)
    fn set_fpu(&mut self, fpu: &kvm_fpu) -> Result<(), Fault>;
    /// XCR0 (KVM_GET_XCRS).
    fn xcr0(&mut self) -> Result<u64, Fault>;
    /// Reads code at a linear address: as many bytes as there are, at most `out.len()`. Zero: a failure (the page that
    /// RIP is on was there when KVM stopped).
    fn code(&mut self, address: u64, out: &mut [u8]) -> usize;
    /// Reads guest memory at a linear address, by the guest's page tables and the current privilege. All or nothing.
    fn read(&mut self, address: u64, out: &mut [u8], access: Access) -> Result<(), Fault>;
    /// Writes guest memory at a linear address. All or nothing.
    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault>;
    /// The instruction is done: KVM_SET_REGS (which also drops an exception that KVM may have queued when it gave up),
    /// and an interrupt shadow before the instruction ends (KVM_SET_VCPU_EVENTS, only where there is one).
    fn retire(&mut self, regs: &kvm_regs) -> Result<(), Fault>;
    /// An exception is delivered before the next instruction: KVM_SET_REGS first, then CR2 if given, then
    /// KVM_SET_VCPU_EVENTS with the exception injected.
    fn raise(&mut self, regs: &kvm_regs, exception: Exception) -> Result<(), Fault>;
}

/// What came of an assist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assisted {
    /// The instruction was carried out and RIP is behind it.
    Done {
        /// Which one, for statistics.
        mnemonic: &'static str,
    },
    /// The guest gets an exception. It is the instruction's meaning (`int3`) or its fault.
    Raised {
        /// The exception.
        exception: Exception,
        /// Which instruction, for statistics.
        mnemonic: &'static str,
    },
    /// The result comes from outside the machine: nothing was changed, and the machine must make a numbered stop of it,
    /// answer it and move RIP on by `length`. (Code that the loader did not rewrite.)
    NeedsAnswer {
        /// The instruction.
        trapped: Trapped,
        /// Its length.
        length: u8,
    },
}

/// How carrying out an instruction ended, before it becomes visible.
enum End {
    /// It is done; the registers are as it left them, RIP excepted.
    Done,
    /// A fault: RIP stays.
    Fault(Exception),
    /// A trap: RIP moves on.
    Trap(Exception),
    /// To be answered from outside.
    NeedsAnswer(Trapped),
    /// Not known.
    Unknown(&'static str),
    /// Something was out of reach.
    Failed(String),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Page { address, error_code } => Self::Fault(Exception {
                vector: PF,
                error_code: Some(error_code),
                cr2: Some(address),
            }),
            Fault::Failed(why) => Self::Failed(why),
        }
    }
}

fn exception(vector: u8) -> End {
    End::Fault(Exception {
        vector,
        error_code: None,
        cr2: None,
    })
}

fn exception_with_zero(vector: u8) -> End {
    End::Fault(Exception {
        vector,
        error_code: Some(0),
        cr2: None,
    })
}

/// Carries out the instruction at RIP, which KVM has declined to emulate.
pub fn assist(cpu: &mut dyn AssistCpu) -> Result<Assisted, AssistError> {
    let state = |fault| match fault {
        Fault::Failed(why) => AssistError::State(why),
        Fault::Page { address, .. } => AssistError::State(format!("page fault at {address:#x}")),
    };
    let regs = cpu.regs().map_err(state)?;
    let sregs = cpu.sregs().map_err(state)?;
    let mut bytes = [0; MAX_INSTRUCTION];
    let count = cpu.code(regs.rip, &mut bytes).min(MAX_INSTRUCTION);
    let bytes = &bytes[..count];
    let instruction = Decoder::with_ip(64, bytes, regs.rip, DecoderOptions::NONE).decode();

    let mut work = Work {
        cpu,
        instruction,
        regs,
        sregs,
    };
    let end = work.run(bytes);
    let mut after = work.regs;
    let mnemonic = name(instruction.mnemonic());
    let next = regs.rip.wrapping_add(instruction.len() as u64);
    let outcome = match end {
        End::Done => {
            after.rip = next;
            after.rflags &= !FLAG_RF;
            cpu.retire(&after).map(|()| Assisted::Done { mnemonic })
        }
        End::Fault(exception) => cpu
            .raise(&regs, exception)
            .map(|()| Assisted::Raised { exception, mnemonic }),
        End::Trap(exception) => {
            after.rip = next;
            after.rflags &= !FLAG_RF;
            cpu.raise(&after, exception)
                .map(|()| Assisted::Raised { exception, mnemonic })
        }
        End::NeedsAnswer(trapped) => Ok(Assisted::NeedsAnswer {
            trapped,
            length: instruction.len() as u8,
        }),
        End::Unknown(why) => {
            return Err(AssistError::Unknown {
                rip: regs.rip,
                bytes: bytes.to_vec(),
                disassembly: disassemble(&instruction),
                why,
                regs: Box::new(regs),
            });
        }
        End::Failed(why) => Err(Fault::Failed(why)),
    };
    outcome.map_err(|fault| AssistError::Failed {
        rip: regs.rip,
        bytes: bytes.to_vec(),
        disassembly: disassemble(&instruction),
        why: match fault {
            Fault::Failed(why) => why,
            Fault::Page { address, .. } => format!("page fault at {address:#x}"),
        },
        regs: Box::new(regs),
    })
}

fn name(mnemonic: Mnemonic) -> &'static str {
    match mnemonic {
        Mnemonic::Int3 => "int3",
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => "ud",
        Mnemonic::Wait => "fwait",
        Mnemonic::Fnclex => "fnclex",
        Mnemonic::Emms => "emms",
        Mnemonic::Fild => "fild",
        Mnemonic::Clac => "clac",
        Mnemonic::Stac => "stac",
        Mnemonic::Popcnt => "popcnt",
        Mnemonic::Cmpxchg16b => "cmpxchg16b",
        Mnemonic::Xgetbv => "xgetbv",
        Mnemonic::Ldmxcsr => "ldmxcsr",
        Mnemonic::Stmxcsr => "stmxcsr",
        Mnemonic::Lfence => "lfence",
        Mnemonic::Mfence => "mfence",
        Mnemonic::Sfence => "sfence",
        _ => "other",
    }
}

/// An instruction being carried out.
struct Work<'a> {
    cpu: &'a mut dyn AssistCpu,
    instruction: Instruction,
    /// As the instruction leaves them.
    regs: kvm_regs,
    sregs: kvm_sregs,
}

impl Work<'_> {
    fn cpl(&self) -> u8 {
        self.sregs.ss.dpl
    }

    fn run(&mut self, bytes: &[u8]) -> End {
        if bytes.is_empty() {
            return End::Unknown("its bytes cannot be read");
        }
        if self.sregs.efer & EFER_LMA == 0 || self.sregs.cs.l == 0 {
            return End::Unknown("it is not 64-bit code");
        }
        let mnemonic = self.instruction.mnemonic();
        if self.regs.rflags & FLAG_TF != 0 && !matches!(mnemonic, Mnemonic::Int3 | Mnemonic::Ud2) {
            // When it is done, #DB would follow, which nothing here raises.
            return End::Unknown("the guest single-steps it (RFLAGS.TF)");
        }
        match mnemonic {
            Mnemonic::Int3 => self.int3(),
            Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => exception(UD),
            Mnemonic::Clac => self.set_ac(false),
            Mnemonic::Stac => self.set_ac(true),
            Mnemonic::Popcnt => self.popcnt(),
            Mnemonic::Cmpxchg16b => self.cmpxchg16b(),
            Mnemonic::Xgetbv => self.xgetbv(),
            Mnemonic::Wait => self.wait(),
            Mnemonic::Fnclex => self.fnclex(),
            Mnemonic::Emms => self.emms(),
            Mnemonic::Fild if self.instruction.code() == Code::Fild_m32int => self.fild32(),
            Mnemonic::Ldmxcsr => self.ldmxcsr(),
            Mnemonic::Stmxcsr => self.stmxcsr(),
            // One vCPU, whose memory accesses are all done when it is stopped: nothing to order.
            Mnemonic::Lfence | Mnemonic::Mfence | Mnemonic::Sfence => End::Done,
            Mnemonic::Rdtsc | Mnemonic::Rdtscp if self.cpl() != 0 && self.sregs.cr4 & CR4_TSD != 0 => {
                exception_with_zero(GP)
            }
            Mnemonic::Rdtsc => End::NeedsAnswer(Trapped::Rdtsc),
            Mnemonic::Rdtscp => End::NeedsAnswer(Trapped::Rdtscp),
            Mnemonic::Rdrand => self.random(|reg, wide| Trapped::Rdrand { reg, wide }),
            Mnemonic::Rdseed => self.random(|reg, wide| Trapped::Rdseed { reg, wide }),
            _ => End::Unknown("it is not among those that are assisted"),
        }
    }

    fn int3(&mut self) -> End {
        if self.cpl() != 0 {
            // The gate's privilege would have to be checked.
            return End::Unknown("it is in user code");
        }
        End::Trap(Exception {
            vector: BP,
            error_code: None,
            cr2: None,
        })
    }

    fn set_ac(&mut self, set: bool) -> End {
        if self.cpl() != 0 {
            return exception(UD);
        }
        if set {
            self.regs.rflags |= FLAG_AC;
        } else {
            self.regs.rflags &= !FLAG_AC;
        }
        End::Done
    }

    fn popcnt(&mut self) -> End {
        let size = match self.instruction.code() {
            Code::Popcnt_r16_rm16 => 2,
            Code::Popcnt_r32_rm32 => 4,
            Code::Popcnt_r64_rm64 => 8,
            _ => return End::Unknown("it is not among those that are assisted"),
        };
        let value = if self.instruction.op1_kind() == OpKind::Memory {
            let mut bytes = [0; 8];
            match self
                .operand(1, size)
                .and_then(|at| Ok(self.cpu.read(at, &mut bytes[..size], Access::Read)?))
            {
                Ok(()) => u64::from_le_bytes(bytes),
                Err(end) => return end,
            }
        } else {
            match self.register(self.instruction.op1_register()) {
                Some(value) => value,
                None => return End::Unknown("it has an unknown operand"),
            }
        };
        let Some(target) = self.register_mut(self.instruction.op0_register()) else {
            return End::Unknown("it has an unknown operand");
        };
        let ones = u64::from(value.count_ones());
        *target = if size == 2 { *target & !0xffff | ones } else { ones };
        self.regs.rflags &= !(FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF);
        if value == 0 {
            self.regs.rflags |= FLAG_ZF;
        }
        End::Done
    }

    fn cmpxchg16b(&mut self) -> End {
        let at = match self.operand(0, 16) {
            Ok(at) if at % 16 != 0 => return exception_with_zero(GP),
            Ok(at) => at,
            Err(end) => return end,
        };
        // It always writes, what it read where the comparison fails.
        let mut bytes = [0; 16];
        if let Err(fault) = self.cpu.read(at, &mut bytes, Access::Write) {
            return fault.into();
        }
        let present = u128::from_le_bytes(bytes);
        let expected = u128::from(self.regs.rdx) << 64 | u128::from(self.regs.rax);
        let next = if present == expected {
            self.regs.rflags |= FLAG_ZF;
            u128::from(self.regs.rcx) << 64 | u128::from(self.regs.rbx)
        } else {
            self.regs.rflags &= !FLAG_ZF;
            self.regs.rax = present as u64;
            self.regs.rdx = (present >> 64) as u64;
            present
        };
        match self.cpu.write(at, &next.to_le_bytes()) {
            Ok(()) => End::Done,
            Err(fault) => fault.into(),
        }
    }

    fn xgetbv(&mut self) -> End {
        if self.sregs.cr4 & CR4_OSXSAVE == 0 {
            return exception(UD);
        }
        if self.regs.rcx as u32 != 0 {
            // ECX = 1 (XINUSE) is a matter of the host; the CPU profile does not have it.
            return exception_with_zero(GP);
        }
        match self.cpu.xcr0() {
            Ok(value) => {
                self.regs.rax = value & 0xffff_ffff;
                self.regs.rdx = value >> 32;
                End::Done
            }
            Err(fault) => fault.into(),
        }
    }

    fn random(&self, trapped: impl Fn(u8, bool) -> Trapped) -> End {
        let register = self.instruction.op0_register();
        match u8::try_from(register.number()) {
            Ok(reg) if register.is_gpr64() => End::NeedsAnswer(trapped(reg, true)),
            Ok(reg) if register.is_gpr32() => End::NeedsAnswer(trapped(reg, false)),
            _ => End::Unknown("its 16-bit form is not known here"),
        }
    }
}
