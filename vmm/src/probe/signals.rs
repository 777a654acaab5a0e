//! What a micro-guest on a bench says: that it is finished, that it was here, that an exception or interrupt came.
//!
//! It speaks with stores to [`NOBODY`], which every ring can do on every KVM (ports are not open to ring 3 everywhere):
//! [`done`] and [`mark`]. Exceptions and interrupts are reported from ring 0 by a write to [`FRAME_PORT`]; EAX is then
//! the address of the [`Frame`] in memory.

use iced_x86::code_asm::{CodeAssembler, dword_ptr, eax, rax, rsp};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestRam;
use crate::micro::{Body, CodeError, Handler, NOBODY, Ring, finish};

/// Offset in [`NOBODY`]: a store to it says that the guest is finished.
pub const DONE: u64 = 0xf0;
/// Offset in [`NOBODY`]: a store to it says that the guest was here.
pub const MARK: u64 = 0xf8;
/// OUT to this port: an exception or interrupt came.
pub const FRAME_PORT: u16 = 0xf5;

/// Says that the guest is finished, again and again should it be run on. Any ring; changes no register.
pub fn done(a: &mut CodeAssembler) -> Body {
    let mut stay = a.create_label();
    a.set_label(&mut stay)?;
    a.mov(dword_ptr(NOBODY + DONE), eax)?;
    a.jmp(stay)
}

/// Says that the guest was here. Any ring; changes no register.
pub fn mark(a: &mut CodeAssembler) -> Body {
    a.mov(dword_ptr(NOBODY + MARK), eax)
}

/// Handlers for all vectors that report a [`Frame`] and stay in HLT.
pub fn reports() -> Result<Vec<Handler>, CodeError> {
    (0..=255)
        .map(|vector| Handler::new(vector, |a| report(a, vector)))
        .collect()
}

fn report(a: &mut CodeAssembler, vector: u8) -> Body {
    let has_error_code = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
    if !has_error_code {
        a.push(0)?;
    }
    a.push(i32::from(vector))?;
    a.mov(rax, rsp)?;
    a.out(u32::from(FRAME_PORT), eax)?;
    finish(a)
}

/// What an exception or interrupt left on the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its number.
    pub vector: u8,
    /// Error code; 0 where the CPU has none.
    pub error: u32,
    /// The interrupted instruction, or the next one.
    pub rip: u64,
    /// Code segment of what was interrupted; its two low bits are the ring.
    pub cs: u16,
    /// RFLAGS of what was interrupted.
    pub rflags: u64,
    /// Stack pointer of what was interrupted.
    pub rsp: u64,
}

impl Frame {
    /// Bytes of a frame.
    const BYTES: usize = 7 * 8;

    /// Reads the frame that EAX pointed to at the write to [`FRAME_PORT`]. `None`: it does not lie in memory.
    pub fn read(ram: &GuestRam, address: u64) -> Option<Self> {
        let mut bytes = [0; Self::BYTES];
        ram.read_slice(&mut bytes, GuestAddress(address)).ok()?;
        let (words, _) = bytes.as_chunks::<8>();
        let word = |index: usize| u64::from_le_bytes(words[index]);
        Some(Self {
            vector: word(0) as u8,
            error: word(1) as u32,
            rip: word(2),
            cs: word(3) as u16,
            rflags: word(4),
            rsp: word(5),
        })
    }

    /// The ring that was interrupted.
    pub fn ring(&self) -> Ring {
        if self.cs & 3 == 0 { Ring::Kernel } else { Ring::User }
    }
}
