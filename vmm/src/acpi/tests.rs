//! The tables as a kernel reads them, by code that shares nothing with what made them.

use lockstep_proto::model::NEWEST_REVISION;
use lockstep_proto::{DiskConfig, NicConfig};

use super::*;

/// With so many disks and network cards.
fn config(disks: usize, nics: usize) -> MachineConfig {
    let disk = DiskConfig {
        bytes: 512,
        ..DiskConfig::default()
    };
    let nic = NicConfig {
        mac: vec![2, 0, 0, 0, 0, 1].into(),
        ..NicConfig::default()
    };
    MachineConfig {
        disks: vec![disk; disks],
        nics: vec![nic; nics],
        model_revision: NEWEST_REVISION,
        ..MachineConfig::default()
    }
}

fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    let field = bytes[at..at + size].iter().rev();
    field.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The table at an address, checked as firmware's tables are: signature, length, checksum.
fn table(tables: &Tables, address: u64, signature: [u8; 4]) -> &[u8] {
    let bytes = &tables.tables[(address - TABLES) as usize..];
    assert_eq!(bytes[..4], signature);
    let bytes = &bytes[..number(bytes, 4, 4) as usize];
    assert_eq!(sum(bytes), 0, "{signature:?}");
    bytes
}

/// Each place of `what` in `bytes`.
fn places(bytes: &[u8], what: &[u8]) -> Vec<usize> {
    let windows = bytes.windows(what.len()).enumerate();
    windows
        .filter(|(_, window)| *window == what)
        .map(|(at, _)| at)
        .collect()
}

#[test]
fn each_table_leads_to_the_next() {
    let tables = Tables::of(&config(1, 1));
    let rsdp = &tables.tables[..36];
    assert_eq!((&rsdp[..8], rsdp[15]), (&b"RSD PTR "[..], 2));
    assert_eq!((sum(&rsdp[..20]), sum(rsdp), number(rsdp, 20, 4)), (0, 0, 36));
    let xsdt = table(&tables, number(rsdp, 24, 8), *b"XSDT");
    assert_eq!(xsdt.len(), 36 + 8, "one table");
    let fadt = table(&tables, number(xsdt, 36, 8), *b"FACP");
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5), "ACPI 6.5");
    assert_eq!(number(fadt, 40, 4), number(fadt, 140, 8), "DSDT");
    table(&tables, number(fadt, 140, 8), *b"DSDT");
    assert_eq!((number(fadt, 36, 4), number(fadt, 132, 8)), (STATE, 0), "FACS");
    assert_eq!(STATE % 64, 0);
    assert_eq!((&tables.state[..4], number(&tables.state, 4, 4)), (&b"FACS"[..], 64));
    assert_eq!(tables.state.len(), 64);
}

#[test]
fn the_fixed_hardware_is_where_the_devices_have_it() {
    let tables = Tables::of(&config(0, 0));
    let xsdt = table(&tables, number(&tables.tables, 24, 8), *b"XSDT");
    let fadt = table(&tables, number(xsdt, 36, 8), *b"FACP");
    let field = |at, size| number(fadt, at, size);
    assert_eq!(field(46, 2), 14, "SCI");
    assert_eq!((field(48, 4), field(52, 4)), (0, 0), "no SMI: always in ACPI mode");
    assert_eq!((field(56, 4), field(88, 1)), (0x600, 4), "PM1a events");
    assert_eq!((field(64, 4), field(89, 1)), (0x604, 2), "PM1a control");
    assert_eq!((field(148, 4), field(152, 8)), (0x0200_2001, 0x600));
    assert_eq!((field(172, 4), field(176, 8)), (0x0200_1001, 0x604));
    assert_eq!((field(76, 4), field(91, 1), field(208, 12)), (0, 0, 0), "no PM timer");
    assert_eq!((field(80, 8), field(92, 2)), (0, 0), "no general-purpose events");
    assert_eq!((field(96, 2), field(98, 2)), (101, 1001), "neither C2 nor C3");
    assert_eq!(field(108, 1), 0x32, "century");
    assert_eq!(
        field(109, 2),
        0x0f,
        "a PC with a keyboard controller and without VGA and MSI"
    );
    // WBINVD, C1, no sleep button (but a power button), no wake-up by the clock, a reset register.
    assert_eq!(field(112, 4), 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 10);
    assert_eq!((field(116, 4), field(120, 8), field(128, 1)), (0x0100_0801, 0xcf9, 6));
}

#[test]
fn each_device_stands_in_the_namespace_with_its_resources() {
    for (disks, nics) in [(0, 0), (1, 1), (3, 3)] {
        let tables = Tables::of(&config(disks, nics));
        let xsdt = table(&tables, number(&tables.tables, 24, 8), *b"XSDT");
        let fadt = table(&tables, number(xsdt, 36, 8), *b"FACP");
        let dsdt = table(&tables, number(fadt, 140, 8), *b"DSDT");
        let slots = disks + nics + 1;
        let ids = places(dsdt, b"_HID\x0dLNRO0005\0");
        assert_eq!(ids.len(), slots);
        let irqs = [5_u8, 6, 7, 9, 10, 11, 12];
        for ((slot, at), irq) in (0_u8..).zip(ids).zip(irqs) {
            assert_eq!(dsdt[at - 5..at - 1], [b'V', b'I', b'O', b'0' + slot]);
            // Memory32Fixed (section 6.4.3.4), then an extended interrupt (6.4.3.6): a consumer's edge, active high.
            let memory = [0x86, 9, 0, 1, 0, 0x10 * slot, 0, 0xd0, 0, 0x10, 0, 0];
            let interrupt = [0x89, 6, 0, 3, 1, irq, 0, 0, 0];
            let resources = [&memory[..], &interrupt, &[0x79]].concat();
            assert_eq!(places(&dsdt[at..], &resources).len(), 1, "slot {slot}");
        }
        // EISA IDs, and each one's ports (section 6.4.2.5) and interrupt.
        for (id, ports, irq) in [
            ([0x41, 0xd0, 0x05, 0x01], &[(0x3f8_u16, 8_u8)][..], 4),
            ([0x41, 0xd0, 0x0b, 0x00], &[(0x70, 2)], 8),
            ([0x41, 0xd0, 0x03, 0x03], &[(0x60, 1), (0x64, 1)], 1),
        ] {
            let at = places(dsdt, &[&b"_HID\x0c"[..], &id].concat());
            assert_eq!(at.len(), 1, "{id:x?}");
            let mut resources = Vec::new();
            for (first, count) in ports {
                let [low, high] = first.to_le_bytes();
                resources.extend([0x47, 1, low, high, low, high, 1, *count]);
            }
            resources.extend([0x89, 6, 0, 3, 1, irq, 0, 0, 0, 0x79]);
            assert_eq!(places(&dsdt[at[0]..], &resources).len(), 1, "{id:x?}");
        }
        // Name (_S5_, Package (4) {5, 0, 0, 0}).
        assert_eq!(places(dsdt, b"\x08_S5_\x12\x07\x04\x0a\x05\0\0\0").len(), 1);
    }
}

#[test]
fn the_fullest_machine_has_room() {
    let tables = Tables::of(&config(6, 0));
    assert!(TABLES + (tables.tables.len() as u64) < END, "{}", tables.tables.len());
    assert_eq!(tables, Tables::of(&config(6, 0)), "the same again");
    // LOCKSTEP_TABLES_DIR: for a look at them with other programs (`iasl -d dsdt.aml`).
    if let Some(dir) = std::env::var_os("LOCKSTEP_TABLES_DIR") {
        let dir = std::path::PathBuf::from(dir);
        let xsdt = number(&tables.tables, 24, 8);
        let fadt = number(table(&tables, xsdt, *b"XSDT"), 36, 8);
        let dsdt = number(table(&tables, fadt, *b"FACP"), 140, 8);
        for (name, at, signature) in [
            ("xsdt", xsdt, *b"XSDT"),
            ("facp", fadt, *b"FACP"),
            ("dsdt", dsdt, *b"DSDT"),
        ] {
            std::fs::write(dir.join(format!("{name}.aml")), table(&tables, at, signature)).unwrap();
        }
        std::fs::write(dir.join("facs.aml"), &tables.state).unwrap();
    }
}
