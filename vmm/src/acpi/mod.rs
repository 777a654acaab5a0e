//! ACPI tables: what tells a guest's kernel which devices it has, that it has a power button, and how it powers the machine off.
//!
//! Source: ACPI 6.5, chapter 5. A platform with fixed hardware (not "hardware-reduced"), two 8259A and an 8254: there is no MADT,
//! so a kernel has no APIC to look for. No PM timer, no SMI command port: the machine is in ACPI mode from its start. The
//! tables are a function of the machine's configuration, and constant.

mod namespace;
#[cfg(test)]
mod tests;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use lockstep_proto::MachineConfig;
use lockstep_proto::model::ACPI_REVISION;

use crate::devices::{Devices, FIXED};

/// Where the FACS is: a page of its own, which the guest may write.
pub const STATE: u64 = 0xe_0000;
/// Where the RSDP is, in the range that is searched for it (section 5.2.5.1); the other tables follow.
pub const TABLES: u64 = STATE + PAGE;
/// Where they end at most.
pub const END: u64 = 0xf_0000;

const PAGE: u64 = 4096;
const OEM: [u8; 6] = *b"LCKSTP";
const OEM_TABLE: [u8; 8] = *b"LOCKSTEP";
/// Of the tables, for people: the device model's revision that they came with.
const OEM_REVISION: u32 = ACPI_REVISION;
/// Revision of the DSDT from which on integers have 64 bits (section 5.2.11.1).
const DSDT_REVISION: u8 = 2;
/// A table's header (section 5.2.6).
const HEADER: u32 = 36;
/// Where the tables begin, each: the FACS needs it.
const ALIGNMENT: u64 = 64;
/// The CMOS register with the century.
const CENTURY: u8 = 0x32;

/// IAPC_BOOT_ARCH (section 5.2.9.3): devices of a PC, a keyboard controller, no VGA, no message-signalled interrupts.
const BOOT_ARCH: u16 = 1 | 1 << 1 | 1 << 2 | 1 << 3;
/// The cache can be flushed, C1 is there, no sleep button; the clock wakes nobody up; there is a reset register.
const FLAGS: [Flags; 5] = [
    Flags::Wbinvd,
    Flags::ProcC1,
    Flags::SlpButton,
    Flags::FixRtc,
    Flags::ResetRegSup,
];

/// A machine's tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// What is at [`STATE`].
    pub state: Vec<u8>,
    /// What is at [`TABLES`].
    pub tables: Vec<u8>,
}

impl Tables {
    /// Those of a machine with this configuration.
    pub fn of(config: &MachineConfig) -> Self {
        let dsdt_at = aligned(TABLES + Rsdp::len() as u64);
        let dsdt = dsdt(config);
        let fadt_at = aligned(dsdt_at + dsdt.len() as u64);
        let xsdt_at = aligned(fadt_at + FADT::len() as u64);
        let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
        xsdt.add_entry(fadt_at);
        let mut tables = Vec::new();
        for (at, bytes) in [
            (TABLES, bytes(&Rsdp::new(OEM, xsdt_at))),
            (dsdt_at, dsdt),
            (fadt_at, bytes(&fadt(dsdt_at))),
            (xsdt_at, bytes(&xsdt)),
        ] {
            tables.resize((at - TABLES) as usize, 0);
            tables.extend(bytes);
        }
        Self {
            state: bytes(&FACS::new()),
            tables,
        }
    }
}

fn aligned(address: u64) -> u64 {
    address.next_multiple_of(ALIGNMENT)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn dsdt(config: &MachineConfig) -> Vec<u8> {
    let mut table = Sdt::new(*b"DSDT", HEADER, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&namespace::of(&Devices::resources(config)));
    table.as_slice().to_vec()
}

fn port(first: u16, bits: u8) -> GAS {
    let access = if bits == 8 {
        AccessSize::ByteAccess
    } else {
        AccessSize::WordAccess
    };
    GAS::new(AddressSpace::SystemIo, bits, 0, access, first.into())
}

/// Section 5.2.9. Both forms of each address: old kernels read the one, new ones the other.
fn fadt(dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION).preferred_pm_profile(PmProfile::EnterpriseServer);
    for flag in FLAGS {
        fadt = fadt.flag(flag);
    }
    fadt.firmware_ctrl = (STATE as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::from(FIXED.irq).into();
    fadt.pm1a_evt_blk = u32::from(FIXED.events).into();
    fadt.pm1a_cnt_blk = u32::from(FIXED.control).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_evt_blk = port(FIXED.events, 32);
    fadt.x_pm1a_cnt_blk = port(FIXED.control, 16);
    // Latencies above 100 and 1000 microseconds: there is no C2, no C3 (sections 5.2.9, 8.1).
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.century = CENTURY;
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    let (reset, value) = FIXED.reset;
    fadt.reset_reg = port(reset, 8);
    fadt.reset_value = value;
    fadt.finalize()
}
