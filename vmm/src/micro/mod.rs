//! Micro-guests: a few instructions in a small 64-bit machine of their own.
//!
//! A [`MicroGuest`] lays out memory and computes the vCPU's first state; it does not know how it is run. The probe runs
//! it on a bare VM ([`crate::probe::bench`]), the tests in `vmm/tests/micro` on a whole `Machine`:
//!
//! ```no_run
//! # use lockstep_vmm::machine::Machine;
//! # use lockstep_vmm::micro::{MicroGuest, Ring, finish};
//! # fn example(machine: &mut Machine) -> Result<(), Box<dyn std::error::Error>> {
//! let guest = MicroGuest::new(Ring::Kernel, |a| {
//!     a.nop()?;
//!     finish(a)
//! });
//! guest.load(machine.memory().ram(), &[])?;
//! let base = machine.vcpu_state()?;
//! machine.set_vcpu_state(&guest.state(&base)?)?;
//! # Ok(())
//! # }
//! ```
//!
//! Memory (virtual = physical, 2 MiB in 4 KiB pages, all open to ring 3; accessed and dirty bits are set beforehand so
//! that no page walk writes memory, see [`MicroGuest::untouched`]):
//!
//! | address | what |
//! | --- | --- |
//! | `0x1000` | GDT, laid out as Linux does |
//! | `0x2000` | IDT: interrupt gates, each reachable from ring 3; a vector without [`Handler`] is a triple fault |
//! | `0x3000` | TSS; its RSP0 is the stack of interrupts |
//! | `0x8000`-`0xbfff` | page tables: PML4, PDPT, page directory, page table |
//! | `0x1_0000`-`0x1_7fff` | handlers, 128 bytes for each vector |
//! | below `0x1_a000`, `0x1_c000`, `0x1_e000` | stacks of ring 0, of interrupts that leave ring 3, of ring 3 |
//! | [`CODE`] | the code given to [`MicroGuest::new`] |
//! | [`DATA`] | free |
//! | [`NOBODY`] | one page that is mapped to where nothing answers: accesses are MMIO |

mod code;
mod guest;
mod state;
mod tables;

pub use code::{Body, Code, CodeError, Handler, assemble, finish};
pub use guest::{GuestError, MicroGuest, Ring};
pub use state::{CR4_TSD, FLAG_IF};
pub use tables::{USER_CS, USER_DS, page_entry, page_entry_address};

use crate::memory::PAGE_SIZE;

/// Memory that a micro-guest needs at least, in bytes.
pub const MEMORY_BYTES: u64 = 2 << 20;
/// Where the main code stands.
pub const CODE: u64 = 0x2_0000;
/// Free memory up to [`NOBODY`].
pub const DATA: u64 = 0x10_0000;
/// Virtual address of a page where nothing answers.
pub const NOBODY: u64 = MEMORY_BYTES - PAGE_SIZE as u64;
/// Physical address of [`NOBODY`].
pub const NOBODY_PHYSICAL: u64 = 0xdf00_0000;
/// First stack pointer of ring 3.
pub const USER_STACK: u64 = 0x1_e000;

const KERNEL_STACK: u64 = 0x1_a000;
const INTERRUPT_STACK: u64 = 0x1_c000;
