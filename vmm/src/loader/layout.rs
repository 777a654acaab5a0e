//! Where the loader puts things in guest memory, in one table.
//!
//! | address | what |
//! | --- | --- |
//! | `0x0500` | GDT: null, null, 64-bit code, data |
//! | `0x7000` | `boot_params` (the "zero page"), one page |
//! | `0x8000`-`0x8ff0` | the first stack, growing down |
//! | `0x9000` | PML4 |
//! | `0xa000` | page directory pointer table |
//! | `0xb000`-`0xefff` | four page directories: 4 GiB, 2 MiB a page, virtual = physical |
//! | `0xf000` | `setup_data` with the boot seed |
//! | `0x20000` | the command line, up to 2 KiB |
//! | `0x9fc00` | end of the low usable memory |
//! | `0xe0000`-`0xeffff` | ACPI tables, where there are some (`crate::acpi`) |
//! | `0x100000` | usable memory again: the kernel at its linked address |
//! | below 2 GiB | the initrd, as high as there is memory, on a page boundary |
//! | `0xc0000000`-`0x100000000` | no memory, ever: devices |

/// The GDT.
pub const GDT: u64 = 0x500;
/// The GDT's limit: its last byte.
pub const GDT_LIMIT: u16 = 4 * 8 - 1;
/// Selector of the 64-bit code segment (`__BOOT_CS`).
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segment (`__BOOT_DS`).
pub const DATA_SELECTOR: u16 = 0x18;
/// The GDT's entries.
pub const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// `boot_params`.
pub const BOOT_PARAMS: u64 = 0x7000;
/// RSP at the kernel's entry.
pub const STACK_TOP: u64 = 0x8ff0;
/// The PML4 (CR3).
pub const PML4: u64 = 0x9000;
/// The page directory pointer table.
pub const PDPT: u64 = 0xa000;
/// The first of the page directories.
pub const PAGE_DIRECTORIES: u64 = 0xb000;
/// How many page directories there are: one for each GiB that is mapped.
pub const MAPPED_GIB: u64 = 4;
/// `setup_data`.
pub const SETUP_DATA: u64 = 0xf000;
/// The command line.
pub const COMMAND_LINE: u64 = 0x20000;
/// Where low usable memory ends (the extended BIOS data area would begin).
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// Where memory is usable again.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// The initrd ends at or below this, wherever memory ends (`initrd_addr_max` of every 64-bit kernel, plus one).
pub const INITRD_LIMIT: u64 = 0x8000_0000;
/// Where the hole for devices begins.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where memory goes on behind the hole.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// A page.
pub const PAGE: u64 = 4096;
