//! Machine code: assembled, and what the CPU calls at an exception or interrupt.

use iced_x86::code_asm::CodeAssembler;
use iced_x86::{BlockEncoderOptions, IcedError};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::GuestError;
use super::tables::{IDT, gate};
use crate::memory::GuestRam;

const HANDLERS: u64 = 0x1_0000;
const HANDLER_BYTES: u64 = 128;

/// What a function that writes code gives.
pub type Body = Result<(), IcedError>;

/// What can be wrong with code.
#[derive(Clone, Debug, Error)]
pub enum CodeError {
    /// It cannot be assembled.
    #[error("cannot assemble: {0}")]
    Assemble(#[from] IcedError),
    /// A handler is longer than its place.
    #[error("the handler of vector {vector} has {bytes} bytes, of {HANDLER_BYTES}")]
    Handler {
        /// The vector.
        vector: u8,
        /// The handler's length.
        bytes: usize,
    },
}

/// Assembled code.
#[derive(Clone, Debug)]
pub struct Code {
    /// Where it stands.
    pub at: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Address of each instruction, in the order of the source.
    pub addresses: Vec<u64>,
}

impl Code {
    /// Whether the address lies in it.
    pub fn contains(&self, address: u64) -> bool {
        (self.at..self.end()).contains(&address)
    }

    /// The address behind it.
    pub fn end(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }
}

/// Assembles `body` for the address `at`.
pub fn assemble(at: u64, body: impl FnOnce(&mut CodeAssembler) -> Body) -> Result<Code, CodeError> {
    let mut assembler = CodeAssembler::new(64)?;
    body(&mut assembler)?;
    let result = assembler
        .assemble_options(at, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?
        .inner;
    let addresses = result
        .new_instruction_offsets
        .iter()
        .map(|&offset| at + u64::from(offset))
        .collect();
    Ok(Code {
        at,
        bytes: result.code_buffer,
        addresses,
    })
}

/// Stays in HLT with interrupts off. Ring 0.
pub fn finish(a: &mut CodeAssembler) -> Body {
    let mut stay = a.create_label();
    a.cli()?;
    a.set_label(&mut stay)?;
    a.hlt()?;
    a.jmp(stay)
}

/// What happens at a vector: code, and the gate that leads to it.
#[derive(Clone, Debug)]
pub struct Handler {
    vector: u8,
    code: Code,
}

impl Handler {
    /// Code for `vector`, entered in ring 0 with what the CPU pushes on the stack. Ends with IRETQ or [`finish`].
    pub fn new(vector: u8, body: impl FnOnce(&mut CodeAssembler) -> Body) -> Result<Self, CodeError> {
        let code = assemble(HANDLERS + u64::from(vector) * HANDLER_BYTES, body)?;
        let bytes = code.bytes.len();
        if bytes as u64 > HANDLER_BYTES {
            return Err(CodeError::Handler { vector, bytes });
        }
        Ok(Self { vector, code })
    }

    pub(super) fn load(&self, ram: &GuestRam) -> Result<(), GuestError> {
        let gate = gate(self.code.at);
        ram.write_slice(gate.as_bytes(), GuestAddress(IDT + u64::from(self.vector) * 16))?;
        ram.write_slice(&self.code.bytes, GuestAddress(self.code.at))?;
        Ok(())
    }
}
