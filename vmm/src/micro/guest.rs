//! The builder of micro-guests.

use iced_x86::code_asm::CodeAssembler;
use lockstep_proto::VcpuState;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::code::{Body, Code, CodeError, Handler, assemble};
use super::state::Start;
use super::{CODE, NOBODY, NOBODY_PHYSICAL, tables};
use crate::cpu::StateError;
use crate::memory::GuestRam;

/// What can be wrong with a micro-guest: always a mistake of whoever wrote it.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The code is wrong.
    #[error("micro-guest: {0}")]
    Code(#[from] CodeError),
    /// Something does not fit into memory.
    #[error("micro-guest: does not fit into memory: {0}")]
    Memory(#[from] GuestMemoryError),
    /// The state that it starts from is damaged.
    #[error("micro-guest: {0}")]
    State(#[from] StateError),
}

/// Where code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ring {
    /// Ring 0.
    Kernel,
    /// Ring 3.
    User,
}

impl Ring {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Kernel, Self::User];
}

impl std::fmt::Display for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kernel => "ring 0",
            Self::User => "ring 3",
        })
    }
}

/// A micro-guest: memory and first state. A mistake in its code is reported by [`MicroGuest::load`].
#[derive(Clone, Debug)]
pub struct MicroGuest {
    start: Start,
    main: Code,
    handlers: Vec<Handler>,
    pieces: Vec<(u64, Vec<u8>)>,
    mappings: Vec<(u64, u64)>,
    touched: bool,
    mistake: Option<CodeError>,
}

impl MicroGuest {
    /// A guest that starts at the first instruction of `body`, assembled at [`CODE`], in `ring`, with interrupts off.
    pub fn new(ring: Ring, body: impl FnOnce(&mut CodeAssembler) -> Body) -> Self {
        let mut guest = Self {
            start: Start {
                ring,
                flags: 0,
                cr4: 0,
                syscall: None,
            },
            main: Code {
                at: CODE,
                bytes: Vec::new(),
                addresses: Vec::new(),
            },
            handlers: Vec::new(),
            pieces: Vec::new(),
            mappings: vec![(NOBODY, NOBODY_PHYSICAL)],
            touched: true,
            mistake: None,
        };
        if let Some(main) = guest.right(assemble(CODE, body)) {
            guest.main = main;
        }
        guest
    }

    /// Adds code elsewhere, in [`super::DATA`] for instance.
    #[must_use]
    pub fn code(mut self, at: u64, body: impl FnOnce(&mut CodeAssembler) -> Body) -> Self {
        if let Some(code) = self.right(assemble(at, body)) {
            self.pieces.push((at, code.bytes));
        }
        self
    }

    /// Says what happens at `vector`, see [`Handler::new`].
    #[must_use]
    pub fn handler(mut self, vector: u8, body: impl FnOnce(&mut CodeAssembler) -> Body) -> Self {
        let handler = self.right(Handler::new(vector, body));
        self.handlers.extend(handler);
        self
    }

    /// Puts bytes into memory.
    #[must_use]
    pub fn data(mut self, at: u64, bytes: &[u8]) -> Self {
        self.pieces.push((at, bytes.to_vec()));
        self
    }

    /// Maps the page at the virtual address `page` (below [`super::MEMORY_BYTES`]) to the physical one.
    #[must_use]
    pub fn map(mut self, page: u64, physical: u64) -> Self {
        self.mappings.push((page, physical));
        self
    }

    /// Leaves the accessed and dirty bits of all page table entries clear.
    #[must_use]
    pub fn untouched(mut self) -> Self {
        self.touched = false;
        self
    }

    /// Sets more bits of RFLAGS at the start, [`super::FLAG_IF`] for instance.
    #[must_use]
    pub fn with_flags(mut self, flags: u64) -> Self {
        self.start.flags |= flags;
        self
    }

    /// Sets more bits of CR4.
    #[must_use]
    pub fn with_cr4(mut self, bits: u64) -> Self {
        self.start.cr4 |= bits;
        self
    }

    /// Turns SYSCALL on; it goes to `entry`. STAR has the selectors of the GDT, FMASK is 0.
    #[must_use]
    pub fn with_syscall(mut self, entry: u64) -> Self {
        self.start.syscall = Some(entry);
        self
    }

    /// The main code.
    pub fn main(&self) -> &Code {
        &self.main
    }

    /// Address of instruction number `index` of the main code; of its end for a number beyond it.
    pub fn address(&self, index: usize) -> u64 {
        self.main
            .addresses
            .get(index)
            .copied()
            .unwrap_or_else(|| self.main.end())
    }

    /// Writes the whole guest into memory, and `defaults` for vectors of which it says nothing. What stood there before
    /// stays where the guest has nothing.
    pub fn load(&self, ram: &GuestRam, defaults: &[Handler]) -> Result<(), GuestError> {
        if let Some(mistake) = &self.mistake {
            return Err(mistake.clone().into());
        }
        tables::write_segments(ram)?;
        tables::write_pages(ram, &self.mappings, self.touched)?;
        for handler in defaults.iter().chain(&self.handlers) {
            handler.load(ram)?;
        }
        ram.write_slice(&self.main.bytes, GuestAddress(self.main.at))?;
        for (at, bytes) in &self.pieces {
            ram.write_slice(bytes, GuestAddress(*at))?;
        }
        Ok(())
    }

    /// The vCPU's whole state at the start, from that of a vCPU that has not run.
    pub fn state(&self, base: &VcpuState) -> Result<VcpuState, GuestError> {
        Ok(self.start.state(base)?)
    }

    /// Keeps the first mistake.
    fn right<T>(&mut self, result: Result<T, CodeError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.mistake.get_or_insert(error);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DATA, MEMORY_BYTES, page_entry, page_entry_address};
    use super::*;
    use crate::memory::Memory;

    #[test]
    fn the_layout_lies_in_memory_and_maps_itself() {
        let memory = Memory::new(MEMORY_BYTES).unwrap();
        let guest = MicroGuest::new(Ring::User, |a| {
            a.nop()?;
            a.ud2()
        })
        .map(DATA, DATA + 0x1000);
        guest.load(memory.ram(), &[]).unwrap();
        let read = |at: u64| memory.ram().read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!(read(page_entry_address(CODE)), page_entry(CODE));
        assert_eq!(read(page_entry_address(DATA)), page_entry(DATA + 0x1000));
        assert_eq!(read(page_entry_address(NOBODY)) & !0xfff, NOBODY_PHYSICAL);
        assert_eq!(guest.address(0), CODE);
        assert_eq!(guest.address(1), CODE + 1, "NOP is one byte long");
        assert_eq!(guest.address(2), CODE + 3);
        assert_eq!(read(CODE) & 0xff, 0x90);
    }

    #[test]
    fn its_own_handler_replaces_the_default_one() {
        let memory = Memory::new(MEMORY_BYTES).unwrap();
        let guest = MicroGuest::new(Ring::Kernel, CodeAssembler::nop).handler(3, CodeAssembler::iretq);
        let defaults = [3, 6].map(|vector| Handler::new(vector, CodeAssembler::ud2).unwrap());
        guest.load(memory.ram(), &defaults).unwrap();
        let first = |vector: u64| {
            let mut bytes = [0; 2];
            memory
                .ram()
                .read_slice(&mut bytes, GuestAddress(0x1_0000 + vector * 128))
                .unwrap();
            bytes
        };
        assert_eq!((first(3), first(6)), ([0x48, 0xcf], [0x0f, 0x0b]));
    }

    #[test]
    fn mistakes_in_code_are_reported() {
        let memory = Memory::new(MEMORY_BYTES).unwrap();
        let load = |guest: MicroGuest| guest.load(memory.ram(), &[]);
        let nop = || MicroGuest::new(Ring::Kernel, CodeAssembler::nop);
        let long = nop().handler(14, |a| a.db(&[0x90; 129]));
        assert!(matches!(
            load(long),
            Err(GuestError::Code(CodeError::Handler { vector: 14, bytes: 129 }))
        ));
        let twice = nop().code(DATA, |a| {
            let mut label = a.create_label();
            a.set_label(&mut label)?;
            a.nop()?;
            a.set_label(&mut label)
        });
        assert!(matches!(load(twice), Err(GuestError::Code(CodeError::Assemble(_)))));
        let outside = nop().data(MEMORY_BYTES, &[1]);
        assert!(matches!(load(outside), Err(GuestError::Memory(_))));
        assert!(load(nop()).is_ok());
    }
}
