//! What a kernel can do, by the names that are in it: how it finds the machine's devices.

/// The power button's device, which `drivers/acpi/scan.c` makes: in every kernel with ACPI.
const ACPI: &[u8] = b"LNXPWRBN\0";
/// The parameter of `drivers/virtio/virtio_mmio.c`, where it is built in with CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES.
const COMMAND_LINE_DEVICES: &[u8] = b"virtio_mmio.device\0";

/// Whether the machine should have ACPI tables for this `vmlinux`, unless somebody says otherwise: the kernel has ACPI, and does
/// not take its devices from the command line by itself.
///
/// A kernel that does was built for machines without firmware. It boots faster without an interpreter of AML, and it has to be
/// the one or the other: told both, it would have each device twice.
pub fn wants_acpi(vmlinux: &[u8]) -> bool {
    has(vmlinux, ACPI) && !has(vmlinux, COMMAND_LINE_DEVICES)
}

fn has(bytes: &[u8], name: &[u8]) -> bool {
    bytes.windows(name.len()).any(|window| window == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_with_acpi_has_tables_unless_it_takes_devices_from_its_command_line() {
        for (names, wants) in [
            (&[][..], false),
            (&["LNXPWRBN"], true),
            (&["LNXPWRBN", "virtio_mmio.device"], false),
            (&["virtio_mmio.device"], false),
            // Other names of the same driver, which a kernel has that loads it as a module.
            (&["LNXPWRBN", "virtio_mmio.devices", "virtio_mmio"], true),
        ] {
            let mut kernel = b"\x7fELF\0".to_vec();
            for name in names {
                kernel.extend(name.bytes().chain([0]));
            }
            assert_eq!(wants_acpi(&kernel), wants, "{names:?}");
        }
    }
}
