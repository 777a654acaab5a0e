//! Building what the 64-bit boot protocol hands to the kernel (Documentation/arch/x86/boot.rst, zero-page.rst): pure
//! bytes, no guest memory.

use super::layout;

/// Size of `boot_params`.
pub const SIZE: usize = 4096;
/// Most entries of the memory map.
pub const MAX_E820: usize = 128;
/// `setup_data` of this type seeds the kernel's random numbers, and is credited with `random.trust_bootloader=on`.
pub const SETUP_RNG_SEED: u32 = 9;

const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const KERNEL_ALIGNMENT: usize = 0x230;
const CMDLINE_SIZE: usize = 0x238;
const SETUP_DATA: usize = 0x250;
const E820_TABLE: usize = 0x2d0;

/// What a range of the memory map is (ACPI 6.5, section 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel's to use.
    Ram = 1,
    /// ACPI tables: the kernel's to use when it has read them.
    Acpi = 3,
    /// Memory that ACPI goes on using.
    Nvs = 4,
}

/// What goes into `boot_params`.
pub struct BootParams<'a> {
    /// The memory map: (start, length, kind), ascending.
    pub map: &'a [(u64, u64, Kind)],
    /// Where the ACPI tables' root pointer is.
    pub rsdp: Option<u64>,
    /// The command line's length.
    pub command_line: u32,
    /// The initrd: (start, length).
    pub initrd: Option<(u32, u32)>,
}

impl BootParams<'_> {
    /// The bytes. Memory map entries beyond [`MAX_E820`] are left out; the caller has counted them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut page = vec![0; SIZE];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(BOOT_FLAG, &0xaa55u16.to_le_bytes());
        put(HEADER, b"HdrS");
        put(VERSION, &0x020fu16.to_le_bytes());
        put(TYPE_OF_LOADER, &[0xff]);
        put(LOADFLAGS, &[1]);
        put(KERNEL_ALIGNMENT, &0x0100_0000u32.to_le_bytes());
        put(CMD_LINE_PTR, &(layout::COMMAND_LINE as u32).to_le_bytes());
        put(CMDLINE_SIZE, &self.command_line.to_le_bytes());
        put(SETUP_DATA, &layout::SETUP_DATA.to_le_bytes());
        if let Some((start, length)) = self.initrd {
            put(RAMDISK_IMAGE, &start.to_le_bytes());
            put(RAMDISK_SIZE, &length.to_le_bytes());
        }
        if let Some(rsdp) = self.rsdp {
            put(ACPI_RSDP_ADDR, &rsdp.to_le_bytes());
        }
        let map = &self.map[..self.map.len().min(MAX_E820)];
        put(E820_ENTRIES, &[map.len() as u8]);
        for (index, (start, length, kind)) in map.iter().enumerate() {
            let at = E820_TABLE + index * 20;
            put(at, &start.to_le_bytes());
            put(at + 8, &length.to_le_bytes());
            put(at + 16, &(*kind as u32).to_le_bytes());
        }
        page
    }
}

/// The `setup_data` node that carries the boot seed: next, type, length, data.
pub fn setup_data(seed: &[u8; 32]) -> Vec<u8> {
    let mut node = Vec::with_capacity(48);
    node.extend_from_slice(&0u64.to_le_bytes());
    node.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    node.extend_from_slice(&(seed.len() as u32).to_le_bytes());
    node.extend_from_slice(seed);
    node
}

/// The page tables, to be put at [`layout::PML4`]: PML4, PDPT and the page directories follow each other.
pub fn page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    let pages = 2 + layout::MAPPED_GIB;
    let mut bytes = vec![0; (pages * layout::PAGE) as usize];
    let mut put = |at: u64, entry: u64| {
        let at = (at - layout::PML4) as usize;
        bytes[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    };
    put(layout::PML4, layout::PDPT | PRESENT_WRITABLE);
    for gib in 0..layout::MAPPED_GIB {
        put(
            layout::PDPT + gib * 8,
            (layout::PAGE_DIRECTORIES + gib * layout::PAGE) | PRESENT_WRITABLE,
        );
    }
    for page in 0..layout::MAPPED_GIB * 512 {
        put(
            layout::PAGE_DIRECTORIES + page * 8,
            (page << 21) | LARGE | PRESENT_WRITABLE,
        );
    }
    bytes
}
