//! Micro-guests: a few instructions in a small 64-bit machine.
//!
//! Virtual = physical, 2 MiB in 4 KiB pages, all open to ring 3:
//!
//! | address | what |
//! | --- | --- |
//! | `0x1000`, `0x2000`, `0x3000` | GDT, IDT, TSS |
//! | `0x8000`-`0xbfff` | page tables: PML4, PDPT, page directory, page table |
//! | `0x10000`-`0x17fff` | handlers, 128 bytes for each vector; a vector without one is a triple fault |
//! | below `0x1a000`, `0x1c000`, `0x1e000` | stacks of ring 0, of what interrupts ring 3, of ring 3 |
//! | [`CODE`] | the main code |
//! | [`DATA`] | free |
//! | [`SLOTS`] | the virtio slots' pages |
//! | [`NOBODY`] | one page that is mapped to where nothing answers |

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, dx, edx, rax};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment};
use lockstep_vmm::cpu::{msr, state};
use lockstep_vmm::loader::trap::Trapped;
use lockstep_vmm::machine::Machine;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

pub const MEMORY: u64 = 2 << 20;
pub const CODE: u64 = 0x2_0000;
pub const DATA: u64 = 0x10_0000;
/// Virtual address of the first virtio slot; 4 KiB each, eight of them.
pub const SLOTS: u64 = 0x1f_0000;
/// Virtual address of a page of MMIO where nothing answers.
pub const NOBODY: u64 = 0x1f_f000;
pub const NOBODY_PHYSICAL: u64 = 0xdf00_0000;
const SLOTS_PHYSICAL: u64 = 0xd000_0000;

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const PML4: u64 = 0x8000;
const PAGE_TABLE: u64 = 0xb000;
const HANDLERS: u64 = 0x1_0000;
const HANDLER_BYTES: u64 = 128;
const KERNEL_STACK: u64 = 0x1_a000;
const INTERRUPT_STACK: u64 = 0x1_c000;
const USER_STACK: u64 = 0x1_e000;

const KERNEL_CS: u16 = 0x10;
const KERNEL_DS: u16 = 0x18;
const USER_DS: u16 = 0x2b;
const USER_CS: u16 = 0x33;
const TSS_SELECTOR: u16 = 0x40;

/// Present, writable, user; and accessed, dirty.
const OPEN: u64 = 0x07;
const TOUCHED: u64 = 0x60;

pub const FLAG_IF: u64 = 1 << 9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    Kernel,
    User,
}

pub type Body = Result<(), IcedError>;

/// Memory and first state of a guest.
#[derive(Clone, Debug)]
pub struct MicroGuest {
    ring: Ring,
    pieces: Vec<(u64, Vec<u8>)>,
    mappings: Vec<(u64, u64)>,
    touched: u64,
}

pub fn assemble(at: u64, body: impl FnOnce(&mut CodeAssembler) -> Body) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64 is a bitness");
    body(&mut a).expect("the code is encodable");
    a.assemble(at).expect("the code is encodable")
}

impl MicroGuest {
    /// Starts at the first instruction of `body`, interrupts off.
    pub fn new(ring: Ring, body: impl FnOnce(&mut CodeAssembler) -> Body) -> Self {
        let mut guest = Self {
            ring,
            pieces: Vec::new(),
            mappings: Vec::new(),

            touched: TOUCHED,
        };
        for slot in 0..8 {
            guest.mappings.push((SLOTS + slot * 4096, SLOTS_PHYSICAL + slot * 4096));
        }
        guest.mappings.push((NOBODY, NOBODY_PHYSICAL));
        // How ring 3 says that it is finished.
        guest.code(CODE, body).handler(6, finish)
    }

    /// Code at another address.
    pub fn code(mut self, at: u64, body: impl FnOnce(&mut CodeAssembler) -> Body) -> Self {
        self.pieces.push((at, assemble(at, body)));
        self
    }

    /// What happens at `vector`; ends with IRETQ or [`finish`].
    pub fn handler(self, vector: u8, body: impl FnOnce(&mut CodeAssembler) -> Body) -> Self {
        let at = handler_address(vector);
        let guest = self.code(at, body);
        let length = guest.pieces.last().map_or(0, |(_, bytes)| bytes.len());
        assert!(length as u64 <= HANDLER_BYTES, "handler {vector} has {length} bytes");
        let gate = [
            at & 0xffff | u64::from(KERNEL_CS) << 16 | 0xee00 << 32 | (at >> 16 & 0xffff) << 48,
            at >> 32,
        ];
        guest.data(IDT + u64::from(vector) * 16, gate.as_bytes())
    }

    pub fn data(mut self, at: u64, bytes: &[u8]) -> Self {
        self.pieces.push((at, bytes.to_vec()));
        self
    }

    /// Leaves the accessed and dirty bits of all page table entries clear.
    pub fn untouched(mut self) -> Self {
        self.touched = 0;
        self
    }

    /// Puts the guest into the machine.
    pub fn load(&self, machine: &mut Machine) {
        let ram = machine.memory().ram();
        let put = |at: u64, bytes: &[u8]| ram.write_slice(bytes, GuestAddress(at)).expect("it is memory");
        put(GDT, gdt().as_bytes());
        put(TSS + 4, &INTERRUPT_STACK.to_le_bytes());
        let entry = |physical: u64| physical | OPEN | self.touched;
        for level in 0..3 {
            put(PML4 + level * 4096, &entry(PML4 + (level + 1) * 4096).to_le_bytes());
        }
        for page in (0..MEMORY).step_by(4096) {
            put(entry_address(page), &entry(page).to_le_bytes());
        }
        for &(page, physical) in &self.mappings {
            put(entry_address(page), &entry(physical).to_le_bytes());
        }
        for (at, bytes) in &self.pieces {
            put(*at, bytes);
        }
        self.set_state(machine);
    }

    fn set_state(&self, machine: &mut Machine) {
        let mut whole = machine.vcpu_state().expect("a new vCPU has a state");
        let (dpl, cs, ss, rsp) = match self.ring {
            Ring::Kernel => (0, KERNEL_CS, KERNEL_DS, KERNEL_STACK),
            Ring::User => (3, USER_CS, USER_DS, USER_STACK),
        };
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
        let mut sregs = state::sregs(&whole).expect("it is this program's");
        // Types: 0xb is execute, read, accessed (and a busy TSS), 3 is read, write, accessed.
        sregs.cs = kvm_segment {
            selector: cs,
            type_: 0xb,
            l: 1,
            ..flat
        };
        sregs.ss = kvm_segment {
            selector: ss,
            type_: 3,
            db: 1,
            ..flat
        };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs) = (data, data, data, data);
        let system = kvm_segment {
            base: TSS,
            limit: 0x67,
            selector: TSS_SELECTOR,
            type_: 0xb,
            present: 1,
            ..Default::default()
        };
        sregs.tr = system;
        sregs.gdt = kvm_dtable {
            base: GDT,
            limit: 10 * 8 - 1,
            ..Default::default()
        };
        sregs.idt = kvm_dtable {
            base: IDT,
            limit: 256 * 16 - 1,
            ..Default::default()
        };
        // PE MP ET NE WP AM PG; PAE OSFXSR OSXMMEXCPT; SCE LME LMA.
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8005_0033, PML4, 0x620, 0x501);
        for entry in whole.msrs.iter_mut().filter(|entry| entry.index == msr::EFER) {
            entry.value = sregs.efer;
        }
        let regs = kvm_regs {
            rip: CODE,
            rsp,
            rflags: 2,
            ..Default::default()
        };
        whole.regs = regs.as_bytes().to_vec().into();
        whole.sregs = sregs.as_bytes().to_vec().into();
        machine.set_vcpu_state(&whole).expect("the state is a vCPU's");
    }
}

/// Where the page table entry of a page below 2 MiB stands.
pub fn entry_address(page: u64) -> u64 {
    PAGE_TABLE + page / 4096 * 8
}

/// A page table entry that maps `physical`.
pub fn entry(physical: u64) -> u64 {
    physical | OPEN | TOUCHED
}

pub fn handler_address(vector: u8) -> u64 {
    HANDLERS + u64::from(vector) * HANDLER_BYTES
}

/// Null, null, code and data of ring 0, null, data and code of ring 3, null, TSS: as Linux has them.
fn gdt() -> [u64; 10] {
    let tss = 0x67 | (TSS & 0xff_ffff) << 16 | 0x8b << 40;
    let (code, data) = (0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff);
    let user = 3 << 45;
    [0, 0, code, data, 0, data | user, code | user, 0, tss, 0]
}

/// Ends the guest: HLT with interrupts off. Ring 0.
pub fn finish(a: &mut CodeAssembler) -> Body {
    a.cli()?;
    a.hlt()
}

/// A natural stop that changes nothing and is told from others by its number, 0 to 15.
pub fn mark(a: &mut CodeAssembler, number: u32) -> Body {
    a.out(0x80 + number, al)
}

/// Writes a byte to a port of any number. Uses AL and DX.
pub fn outb(a: &mut CodeAssembler, port: u16, value: u8) -> Body {
    a.mov(edx, u32::from(port))?;
    a.mov(al, u32::from(value))?;
    a.out(dx, al)
}

/// The trap that replaces an instruction of `length` bytes.
pub fn trap(a: &mut CodeAssembler, trapped: Trapped, length: usize) -> Body {
    a.db(&trapped.encode(length).expect("a trap fits"))
}

/// Initializes the interrupt controllers for vectors 0x20 to 0x2f; bits of `masked` are the lines that stay off.
pub fn pic(a: &mut CodeAssembler, masked: u16) -> Body {
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0xa0, 0x11),
        (0xa1, 0x28),
        (0xa1, 2),
        (0xa1, 1),
    ] {
        outb(a, port, value)?;
    }
    outb(a, 0x21, masked as u8)?;
    outb(a, 0xa1, (masked >> 8) as u8)
}

/// Programs channel 0 of the timer in mode 2 (periodic) with `count` ticks of 1.193182 MHz.
pub fn timer(a: &mut CodeAssembler, count: u16) -> Body {
    outb(a, 0x43, 0x34)?;
    outb(a, 0x40, count as u8)?;
    outb(a, 0x40, (count >> 8) as u8)
}

/// In a handler: end of interrupt, then return. Keeps all registers.
pub fn end_of_interrupt(a: &mut CodeAssembler) -> Body {
    a.push(rax)?;
    a.mov(al, 0x20u32)?;
    a.out(0x20u32, al)?;
    a.pop(rax)?;
    a.iretq()
}
