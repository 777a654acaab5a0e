//! Micro-guests: a few instructions in a small 64-bit machine of their own.
//!
//! A [`MicroGuest`] lays out memory and computes the vCPU's first state; it does not know how it is run. The probe runs
//! it on a bare VM ([`super::bench`]). A test can run it on a whole `Machine`:
//!
//! ```ignore
//! let guest = MicroGuest::new(Ring::Kernel, |a| { a.rdtsc()?; done(a) })?;
//! guest.load(machine.memory().ram())?;
//! let base = machine.vcpu_state()?;
//! machine.set_vcpu_state(&guest.state(&base)?)?;
//! ```
//!
//! Memory (virtual = physical, 2 MiB in 4 KiB pages, all open to ring 3; accessed and dirty bits are set beforehand so
//! that no page walk writes memory):
//!
//! | address | what |
//! | --- | --- |
//! | `0x1000` | GDT, laid out as Linux does |
//! | `0x2000` | IDT: 256 interrupt gates, each reachable from ring 3 |
//! | `0x3000` | TSS; its RSP0 is [`INTERRUPT_STACK`] |
//! | `0x4000` | the gates' stubs, 16 bytes each |
//! | `0x5000` | what the stubs jump to |
//! | `0x8000`-`0xbfff` | page tables: PML4, PDPT, page directory, page table |
//! | below `0x14000`, `0x18000`, `0x1c000` | stacks of ring 0, of interrupts that leave ring 3, of ring 3 |
//! | [`CODE`] | the code given to [`MicroGuest::new`] |
//! | [`DATA`] | free |
//! | [`DEVICE`] | one page that is mapped to where no memory is: accesses are MMIO |
//!
//! What a guest says, it says with stores to [`DEVICE`], which every ring can do on every KVM (ports are not open to
//! ring 3 everywhere, IOPL notwithstanding): [`done`] and [`mark`]. Exceptions and interrupts are reported from ring 0
//! by a write to [`FRAME_PORT`]; EAX is then the address of the [`Frame`] in memory.

use bytes::Bytes as Blob;
use iced_x86::code_asm::{CodeAssembler, dword_ptr, eax, rax, rsp};
use iced_x86::{BlockEncoderOptions, IcedError};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use lockstep_proto::VcpuState;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use zerocopy::IntoBytes;

use crate::cpu::{StateError, msr, state};
use crate::memory::{GuestRam, PAGE_SIZE};

/// Memory that a micro-guest needs at least, in bytes.
pub const MEMORY_BYTES: u64 = 2 << 20;
/// Where the main code stands.
pub const CODE: u64 = 0x2_0000;
/// Free memory up to [`DEVICE`].
pub const DATA: u64 = 0x10_0000;
/// Virtual address of a page that maps [`DEVICE_PHYSICAL`].
pub const DEVICE: u64 = MEMORY_BYTES - PAGE_SIZE as u64;
/// No memory is there: an access is an MMIO exit. A `Machine` has its virtio devices elsewhere.
pub const DEVICE_PHYSICAL: u64 = 0xdf00_0000;
/// First stack pointer of ring 0.
pub const KERNEL_STACK: u64 = 0x1_4000;
/// First stack pointer of what interrupts ring 3.
pub const INTERRUPT_STACK: u64 = 0x1_8000;
/// First stack pointer of ring 3.
pub const USER_STACK: u64 = 0x1_c000;

/// Offset in [`DEVICE`]: a store to it says that the guest is finished.
pub const DONE: u64 = 0xf0;
/// Offset in [`DEVICE`]: a store to it says that the guest was here.
pub const MARK: u64 = 0xf8;
/// OUT to this port: an exception or interrupt came.
pub const FRAME_PORT: u16 = 0xf5;

/// Selectors, laid out as Linux does: STAR's two bases then fit SYSCALL and SYSRET.
pub const KERNEL_CS: u16 = 0x10;
/// Data segment of ring 0.
pub const KERNEL_DS: u16 = 0x18;
/// Data segment of ring 3.
pub const USER_DS: u16 = 0x2b;
/// Code segment of ring 3.
pub const USER_CS: u16 = 0x33;
const TSS_SELECTOR: u16 = 0x40;

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const TSS_LIMIT: u32 = 0x67;
const STUBS: u64 = 0x4000;
const STUB_BYTES: u64 = 16;
const REPORT: u64 = 0x5000;
const PML4: u64 = 0x8000;
const PDPT: u64 = 0x9000;
const PAGE_DIRECTORY: u64 = 0xa000;
const PAGE_TABLE: u64 = 0xb000;
/// Present, writable, user, accessed, dirty.
const ENTRY_FLAGS: u64 = 0x67;

/// PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 0x8005_0033;
/// PAE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 0x620;
/// LME, LMA.
const EFER: u64 = 0x500;
/// EFER.SCE: SYSCALL is on.
const EFER_SCE: u64 = 1;
/// CR4.TSD: RDTSC only in ring 0.
pub const CR4_TSD: u64 = 4;

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;

/// RFLAGS: the bit that is always one.
const FLAGS: u64 = 2;
/// RFLAGS.IF.
pub const FLAG_IF: u64 = 0x200;
/// RFLAGS.IOPL = 3: ring 3 may use ports, says the architecture.
pub const FLAG_IOPL: u64 = 0x3000;

/// What can be wrong with a micro-guest: always a mistake of whoever wrote it.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The code cannot be assembled.
    #[error("micro-guest: cannot assemble: {0}")]
    Assemble(#[from] IcedError),
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

/// What a vector's stub does after it has reported the [`Frame`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// Halts with interrupts off.
    Stop,
    /// Returns to where the exception or interrupt came from.
    Return,
    /// Does not report: goes to the code at this address, with the frame (vector, error code, RIP ...) on the stack.
    Code(u64),
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
        (self.at..self.at + self.bytes.len() as u64).contains(&address)
    }
}

/// Assembles `body` for the address `at`.
pub fn assemble(at: u64, body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Result<Code, GuestError> {
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

/// Says that the guest is finished, again and again should it be run on. Any ring; changes no register.
pub fn done(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut stay = a.create_label();
    a.set_label(&mut stay)?;
    a.mov(dword_ptr(DEVICE + DONE), eax)?;
    a.jmp(stay)
}

/// Says that the guest was here. Any ring; changes no register.
pub fn mark(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(dword_ptr(DEVICE + MARK), eax)
}

/// A micro-guest: memory and first state.
#[derive(Clone, Debug)]
pub struct MicroGuest {
    ring: Ring,
    entry: u64,
    main: Code,
    pieces: Vec<(u64, Vec<u8>)>,
    handlers: Vec<(u8, Handler)>,
    mappings: Vec<(u64, u64)>,
    flags: u64,
    cr4: u64,
    syscall: Option<u64>,
}

impl MicroGuest {
    /// A guest that starts at the first instruction of `body`, assembled at [`CODE`], in `ring`, with interrupts off.
    /// IOPL is 3 in ring 3.
    pub fn new(ring: Ring, body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Result<Self, GuestError> {
        let main = assemble(CODE, body)?;
        Ok(Self {
            ring,
            entry: CODE,
            pieces: vec![(CODE, main.bytes.clone())],
            main,
            handlers: Vec::new(),
            mappings: vec![(DEVICE, DEVICE_PHYSICAL)],
            flags: FLAGS | if ring == Ring::User { FLAG_IOPL } else { 0 },
            cr4: CR4,
            syscall: None,
        })
    }

    /// Adds code elsewhere, in [`DATA`] for instance.
    pub fn code(
        mut self,
        at: u64,
        body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<Self, GuestError> {
        self.pieces.push((at, assemble(at, body)?.bytes));
        Ok(self)
    }

    /// Puts bytes into memory.
    #[must_use]
    pub fn data(mut self, at: u64, bytes: &[u8]) -> Self {
        self.pieces.push((at, bytes.to_vec()));
        self
    }

    /// Says what happens at `vector`. [`Handler::Stop`] is what happens otherwise.
    #[must_use]
    pub fn handler(mut self, vector: u8, handler: Handler) -> Self {
        self.handlers.push((vector, handler));
        self
    }

    /// Maps the page at the virtual address `page` (below [`MEMORY_BYTES`]) to the physical one.
    #[must_use]
    pub fn map(mut self, page: u64, physical: u64) -> Self {
        self.mappings.push((page, physical));
        self
    }

    /// Sets more bits of RFLAGS at the start, [`FLAG_IF`] for instance.
    #[must_use]
    pub fn with_flags(mut self, flags: u64) -> Self {
        self.flags |= flags;
        self
    }

    /// Sets more bits of CR4.
    #[must_use]
    pub fn with_cr4(mut self, bits: u64) -> Self {
        self.cr4 |= bits;
        self
    }

    /// Turns SYSCALL on; it goes to `entry`. STAR has the selectors of the GDT, FMASK is 0.
    #[must_use]
    pub fn with_syscall(mut self, entry: u64) -> Self {
        self.syscall = Some(entry);
        self
    }

    /// The ring that it starts in.
    pub fn ring(&self) -> Ring {
        self.ring
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
            .unwrap_or(CODE + self.main.bytes.len() as u64)
    }

    /// Where the page table entry for the virtual address `page` stands.
    pub fn entry_address(page: u64) -> u64 {
        PAGE_TABLE + page / PAGE_SIZE as u64 % 512 * 8
    }

    /// A page table entry that maps `physical`.
    pub fn entry(physical: u64) -> u64 {
        physical | ENTRY_FLAGS
    }

    /// Writes the whole guest into memory. What stood there before stays where the guest has nothing.
    pub fn load(&self, ram: &GuestRam) -> Result<(), GuestError> {
        let put = |at: u64, bytes: &[u8]| ram.write_slice(bytes, GuestAddress(at));
        put(GDT, gdt().as_bytes())?;
        for vector in 0..=255u8 {
            put(
                IDT + u64::from(vector) * 16,
                gate(STUBS + u64::from(vector) * STUB_BYTES).as_bytes(),
            )?;
        }
        put(TSS, &tss())?;
        let (stop, resume) = report()?;
        put(stop.at, &stop.bytes)?;
        put(resume.at, &resume.bytes)?;
        for vector in 0..=255u8 {
            let handler = self.handlers.iter().rev().find(|(known, _)| *known == vector);
            let target = match handler.map_or(Handler::Stop, |(_, handler)| *handler) {
                Handler::Stop => stop.at,
                Handler::Return => resume.at,
                Handler::Code(at) => at,
            };
            let at = STUBS + u64::from(vector) * STUB_BYTES;
            put(at, &stub(at, vector, target)?)?;
        }
        put(PML4, Self::entry(PDPT).as_bytes())?;
        put(PDPT, Self::entry(PAGE_DIRECTORY).as_bytes())?;
        put(PAGE_DIRECTORY, Self::entry(PAGE_TABLE).as_bytes())?;
        for page in (0..MEMORY_BYTES).step_by(PAGE_SIZE) {
            put(Self::entry_address(page), Self::entry(page).as_bytes())?;
        }
        for &(page, physical) in &self.mappings {
            put(Self::entry_address(page), Self::entry(physical).as_bytes())?;
        }
        for (at, bytes) in &self.pieces {
            put(*at, bytes)?;
        }
        Ok(())
    }

    /// General registers at the start; what is not named is zero.
    pub fn regs(&self) -> kvm_regs {
        let stack = match self.ring {
            Ring::Kernel => KERNEL_STACK,
            Ring::User => USER_STACK,
        };
        kvm_regs {
            rip: self.entry,
            rsp: stack,
            rflags: self.flags,
            ..Default::default()
        }
    }

    /// Special registers at the start, from those of a vCPU that has not run.
    pub fn sregs(&self, base: &kvm_sregs) -> kvm_sregs {
        let (dpl, cs, ss) = match self.ring {
            Ring::Kernel => (0, KERNEL_CS, KERNEL_DS),
            Ring::User => (3, USER_CS, USER_DS),
        };
        // Types: 0xb is execute, read, accessed (and a busy TSS), 3 is read, write, accessed.
        let flat = kvm_segment {
            limit: 0xffff_ffff,
            present: 1,
            s: 1,
            g: 1,
            dpl,
            ..Default::default()
        };
        let data = kvm_segment {
            selector: USER_DS,
            type_: 3,
            db: 1,
            dpl: 3,
            ..flat
        };
        let tr = kvm_segment {
            base: TSS,
            limit: TSS_LIMIT,
            selector: TSS_SELECTOR,
            type_: 0xb,
            present: 1,
            ..Default::default()
        };
        kvm_sregs {
            cs: kvm_segment {
                selector: cs,
                type_: 0xb,
                l: 1,
                ..flat
            },
            ss: kvm_segment {
                selector: ss,
                type_: 3,
                db: 1,
                ..flat
            },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            tr,
            ldt: kvm_segment {
                unusable: 1,
                type_: 2,
                ..Default::default()
            },
            gdt: kvm_dtable {
                base: GDT,
                limit: gdt().as_bytes().len() as u16 - 1,
                ..Default::default()
            },
            idt: kvm_dtable {
                base: IDT,
                limit: 256 * 16 - 1,
                ..Default::default()
            },
            cr0: CR0,
            cr2: 0,
            cr3: PML4,
            cr4: self.cr4,
            cr8: 0,
            efer: EFER | if self.syscall.is_some() { EFER_SCE } else { 0 },
            interrupt_bitmap: [0; 4],
            ..*base
        }
    }

    /// The vCPU's whole state at the start, from that of a vCPU that has not run.
    pub fn state(&self, base: &VcpuState) -> Result<VcpuState, GuestError> {
        let sregs = self.sregs(&state::sregs(base)?);
        let mut whole = base.clone();
        for entry in &mut whole.msrs {
            match (entry.index, self.syscall) {
                (msr::EFER, _) => entry.value = sregs.efer,
                (STAR, Some(_)) => {
                    // SYSRET's base: ring 3's code segment stands 16 beyond it.
                    entry.value = u64::from(KERNEL_CS) << 32 | u64::from(USER_CS - 16) << 48;
                }
                (LSTAR, Some(target)) => entry.value = target,
                _ => {}
            }
        }
        whole.regs = Blob::copy_from_slice(self.regs().as_bytes());
        whole.sregs = Blob::copy_from_slice(sregs.as_bytes());
        Ok(whole)
    }
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

/// Segment descriptors (Intel SDM volume 3A, 3.4.5 and 7.2.3): present, type, privilege, granularity in place.
fn gdt() -> [u64; 10] {
    let tss = u64::from(TSS_LIMIT) | TSS << 16 | 0x89 << 40;
    [
        0,
        0,
        0x00af_9b00_0000_ffff, // 0x10: ring 0, 64-bit code
        0x00cf_9300_0000_ffff, // 0x18: ring 0, data
        0x00cf_fb00_0000_ffff, // 0x20: ring 3, 32-bit code
        0x00cf_f300_0000_ffff, // 0x28: ring 3, data
        0x00af_fb00_0000_ffff, // 0x30: ring 3, 64-bit code
        0,
        tss, // 0x40, two entries
        0,
    ]
}

/// A 64-bit interrupt gate to `target` that ring 3 may name.
fn gate(target: u64) -> [u64; 2] {
    let low = target & 0xffff | u64::from(KERNEL_CS) << 16 | 0xee << 40 | (target >> 16 & 0xffff) << 48;
    [low, target >> 32]
}

/// The 64-bit TSS: RSP0, and an I/O map base beyond its limit (there is none).
fn tss() -> [u8; TSS_LIMIT as usize + 1] {
    let mut bytes = [0; TSS_LIMIT as usize + 1];
    bytes[4..12].copy_from_slice(&INTERRUPT_STACK.to_le_bytes());
    bytes[0x66..].copy_from_slice(&(TSS_LIMIT as u16 + 1).to_le_bytes());
    bytes
}

/// Pushes an error code where the CPU does not, and the vector, and goes to `target`.
fn stub(at: u64, vector: u8, target: u64) -> Result<Vec<u8>, GuestError> {
    let has_error_code = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
    let code = assemble(at, |a| {
        if !has_error_code {
            a.push(0)?;
        }
        a.push(i32::from(vector))?;
        a.jmp(target)
    })?;
    Ok(code.bytes)
}

/// What the stubs jump to: one that stops, one that returns.
fn report() -> Result<(Code, Code), GuestError> {
    let say = |a: &mut CodeAssembler| {
        a.push(rax)?;
        a.lea(rax, rsp + 8)?;
        a.out(u32::from(FRAME_PORT), eax)?;
        a.pop(rax)
    };
    let stop = assemble(REPORT, |a| {
        say(a)?;
        let mut stay = a.create_label();
        a.cli()?;
        a.set_label(&mut stay)?;
        a.hlt()?;
        a.jmp(stay)
    })?;
    let resume = assemble(REPORT + 0x100, |a| {
        say(a)?;
        a.add(rsp, 16)?;
        a.iretq()
    })?;
    Ok((stop, resume))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    #[test]
    fn every_stub_fits_and_names_its_vector() {
        for vector in 0..=255u8 {
            let bytes = stub(STUBS + u64::from(vector) * STUB_BYTES, vector, REPORT).unwrap();
            assert!(
                bytes.len() as u64 <= STUB_BYTES,
                "vector {vector}: {} bytes",
                bytes.len()
            );
        }
    }

    #[test]
    fn the_layout_lies_in_memory_and_maps_itself() {
        let memory = Memory::new(MEMORY_BYTES).unwrap();
        let guest = MicroGuest::new(Ring::User, |a| {
            a.nop()?;
            done(a)
        })
        .unwrap()
        .map(DATA, DATA + 0x1000);
        guest.load(memory.ram()).unwrap();
        let read = |at: u64| memory.ram().read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!(read(MicroGuest::entry_address(CODE)), MicroGuest::entry(CODE));
        assert_eq!(read(MicroGuest::entry_address(DATA)), MicroGuest::entry(DATA + 0x1000));
        assert_eq!(read(MicroGuest::entry_address(DEVICE)) & !0xfff, DEVICE_PHYSICAL);
        assert_eq!(guest.address(0), CODE);
        assert_eq!(guest.address(1), CODE + 1, "NOP is one byte long");
        assert_eq!(read(CODE) & 0xff, 0x90);
        let sregs = guest.sregs(&kvm_sregs::default());
        assert_eq!((sregs.cs.dpl, sregs.cs.selector & 3), (3, 3));
    }

    #[test]
    fn the_state_has_syscall_where_it_was_asked_for() {
        let base = VcpuState {
            sregs: Blob::copy_from_slice(kvm_sregs::default().as_bytes()),
            msrs: msr::SAVED
                .iter()
                .map(|&index| lockstep_proto::Msr { index, value: 0 })
                .collect(),
            ..Default::default()
        };
        let value = |state: &VcpuState, index| state.msrs.iter().find(|entry| entry.index == index).unwrap().value;
        let plain = MicroGuest::new(Ring::User, done).unwrap();
        assert_eq!(value(&plain.state(&base).unwrap(), msr::EFER), EFER);
        let with = plain.with_syscall(DATA).state(&base).unwrap();
        assert_eq!(value(&with, msr::EFER), EFER | EFER_SCE);
        assert_eq!(value(&with, LSTAR), DATA);
        assert_eq!(value(&with, STAR), 0x0023_0010_0000_0000);
    }
}
