//! What a kernel can do, by the names that are in it: how it finds the machine's devices, and on which hosts its programs run.

/// The power button's device, which `drivers/acpi/scan.c` makes: in every kernel with ACPI.
const ACPI: &[u8] = b"LNXPWRBN\0";
/// The parameter of `drivers/virtio/virtio_mmio.c`, where it is built in with CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES.
const COMMAND_LINE_DEVICES: &[u8] = b"virtio_mmio.device\0";

/// What every kernel of Linux says of itself first (`init/version.c`).
const LINUX: &[u8] = b"Linux version ";
/// The mark of a kernel that takes a fault on its SYSCALL entry for the system call
/// (`integration/guest/kernel/patches/0001-syscall-entry-fault.patch`).
const SYSCALL_FAULTS: &[u8] = b"lockstep.syscall_entry_fault\0";

/// Whether this kernel serves its programs on a host where SYSCALL stays in ring 3. What is no Linux is not known to have any
/// that make system calls.
pub fn takes_syscalls_as_faults(vmlinux: &[u8]) -> bool {
    !has(vmlinux, LINUX) || has(vmlinux, SYSCALL_FAULTS)
}

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
    fn a_stock_kernel_needs_a_host_where_syscall_enters_it() {
        assert!(takes_syscalls_as_faults(b"a micro-guest"));
        assert!(!takes_syscalls_as_faults(b"..Linux version 6.1.0-44-cloud-amd64 ("));
        assert!(takes_syscalls_as_faults(
            b"..Linux version 6.1.0 (..lockstep.syscall_entry_fault\0"
        ));
    }

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
