//! What the DSDT says: the devices with their resources, and how the machine is powered off (ACPI 6.5, chapters 6, 7, 19 and 20).

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope};

use crate::devices::{FIXED, Resources};

/// As AML, with `devices` in this order.
pub fn of(devices: &[Resources]) -> Vec<u8> {
    let mut aml = Vec::new();
    // SLP_TYP of the two control blocks, of which there is one; the rest is reserved (section 7.4.2.6).
    let off = Package::new(vec![&FIXED.s5, &0_u8, &0_u8, &0_u8]);
    Name::new("_S5_".into(), &off).to_aml_bytes(&mut aml);
    let mut children = Vec::new();
    for device in devices {
        describe(device, &mut children);
    }
    aml.extend(Scope::raw("\\_SB_".into(), children));
    aml
}

fn describe(device: &Resources, aml: &mut Vec<u8>) {
    let id = match device.id.strip_prefix("PNP") {
        Some(_) => Name::new("_HID".into(), &EISAName::new(device.id)),
        None => Name::new("_HID".into(), &device.id),
    };
    let number = Name::new("_UID".into(), &device.number);
    let ports = device.ports.iter().filter(|(_, count)| *count > 0);
    let ports: Vec<IO> = ports.map(|&(first, count)| IO::new(first, first, 1, count)).collect();
    let memory: Option<Memory32Fixed> = device
        .memory
        .map(|(start, bytes)| Memory32Fixed::new(true, start as u32, bytes as u32));
    let interrupt = Interrupt::new(true, true, false, false, device.irq.into());
    let mut resources: Vec<&dyn Aml> = Vec::new();
    resources.extend(ports.iter().map(|range| range as &dyn Aml));
    resources.extend(memory.iter().map(|range| range as &dyn Aml));
    resources.push(&interrupt);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    Device::new(name(device), vec![&id, &number, &resources]).to_aml_bytes(aml);
}

/// Four characters, which no other device has.
fn name(device: &Resources) -> Path {
    let (prefix, number) = match device.id {
        "PNP0501" => ("COM", device.number + 1),
        "PNP0B00" => ("RTC", device.number),
        "PNP0303" => ("KBD", device.number),
        _ => ("VIO", device.number),
    };
    format!("{prefix}{number:X}").as_str().into()
}
