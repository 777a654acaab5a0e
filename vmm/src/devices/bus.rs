//! Who answers at which address: one table for the ports, one window for memory.

use super::virtio::MAX_SLOTS;

/// What answers at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Port {
    MasterPic,
    SlavePic,
    Elcr,
    Pit,
    SystemControlB,
    KeyboardData,
    KeyboardCommand,
    RtcIndex,
    RtcData,
    SystemControlA,
    Serial,
    PowerEvents,
    PowerControl,
    ResetControl,
}

/// A range of ports that one device answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct PortRange {
    first: u16,
    last: u16,
    pub(super) port: Port,
    /// Whether what a read, a write does depends on the guest's time.
    read_needs_time: bool,
    write_needs_time: bool,
    /// Answers to accesses of one byte only. The other devices sit on an 8-bit bus, where a wider access becomes one
    /// cycle for each byte; the reset control register lies within the PCI address register's double word, which a
    /// guest looking for a PCI bus writes.
    byte_only: bool,
}

const fn range(first: u16, last: u16, port: Port) -> PortRange {
    PortRange {
        first,
        last,
        port,
        read_needs_time: false,
        write_needs_time: false,
        byte_only: false,
    }
}

const fn timed(range: PortRange) -> PortRange {
    PortRange {
        read_needs_time: true,
        write_needs_time: true,
        ..range
    }
}

/// ACPI's PM1a event block: the status register, then the enable register.
pub(super) const POWER_EVENTS: u16 = 0x600;
/// ACPI's PM1a control block: one register.
pub(super) const POWER_CONTROL: u16 = 0x604;
/// The reset control register.
pub(super) const RESET_CONTROL: u16 = 0xcf9;

const PORTS: &[PortRange] = &[
    range(0x020, 0x021, Port::MasterPic),
    timed(range(0x040, 0x043, Port::Pit)),
    range(0x060, 0x060, Port::KeyboardData),
    timed(range(0x061, 0x061, Port::SystemControlB)),
    range(0x064, 0x064, Port::KeyboardCommand),
    range(0x070, 0x070, Port::RtcIndex),
    timed(range(0x071, 0x071, Port::RtcData)),
    range(0x092, 0x092, Port::SystemControlA),
    range(0x0a0, 0x0a1, Port::SlavePic),
    range(0x3f8, 0x3ff, Port::Serial),
    range(0x4d0, 0x4d1, Port::Elcr),
    range(POWER_EVENTS, POWER_EVENTS + 3, Port::PowerEvents),
    range(POWER_CONTROL, POWER_CONTROL + 1, Port::PowerControl),
    PortRange {
        byte_only: true,
        ..range(RESET_CONTROL, RESET_CONTROL, Port::ResetControl)
    },
];

fn find(port: u16) -> Option<&'static PortRange> {
    PORTS.iter().find(|range| (range.first..=range.last).contains(&port))
}

/// The device at a port and the port's offset in its range, for one byte of an access of `width` bytes.
pub(super) fn decode(port: u16, width: usize) -> Option<(Port, u16)> {
    let range = find(port).filter(|range| width == 1 || !range.byte_only)?;
    Some((range.port, port - range.first))
}

/// Whether an access to a port needs the guest's time.
pub(super) fn needs_time(port: u16, write: bool) -> bool {
    find(port).is_some_and(|range| {
        if write {
            range.write_needs_time
        } else {
            range.read_needs_time
        }
    })
}

/// Where the virtio slots begin in guest physical memory.
pub(super) const SLOTS_BASE: u64 = 0xd000_0000;
/// Each slot's size.
pub(super) const SLOT_BYTES: u64 = 0x1000;

/// The slot at a guest physical address and the offset in it, if the whole access lies within it.
pub(super) fn slot(address: u64, width: usize) -> Option<(usize, u64)> {
    let offset = address.checked_sub(SLOTS_BASE)?;
    let (slot, offset) = (offset / SLOT_BYTES, offset % SLOT_BYTES);
    (slot < MAX_SLOTS as u64 && offset + width as u64 <= SLOT_BYTES).then_some((slot as usize, offset))
}

/// Where a slot lies.
pub(super) fn slot_address(slot: usize) -> u64 {
    SLOTS_BASE + slot as u64 * SLOT_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_ascending_and_disjoint() {
        assert!(PORTS.windows(2).all(|pair| pair[0].last < pair[1].first));
        assert!(PORTS.iter().all(|range| range.first <= range.last));
    }

    #[test]
    fn reset_control_is_not_within_a_wider_access() {
        assert_eq!(decode(0xcf9, 1), Some((Port::ResetControl, 0)));
        assert_eq!(decode(0xcf9, 4), None);
        assert_eq!(decode(0x41, 2), Some((Port::Pit, 1)));
    }

    #[test]
    fn time_is_needed_where_the_guest_sees_it() {
        for port in [0x40, 0x42, 0x43, 0x61, 0x71] {
            assert!(needs_time(port, false) && needs_time(port, true), "{port:#x}");
        }
        for port in [0x20, 0x21, 0x64, 0x70, 0x80, 0x3f8, 0xcf9] {
            assert!(!needs_time(port, false) && !needs_time(port, true), "{port:#x}");
        }
    }

    #[test]
    fn slots_end_where_they_end() {
        assert_eq!(slot(SLOTS_BASE, 4), Some((0, 0)));
        assert_eq!(slot(SLOTS_BASE + 0x1ffc, 4), Some((1, 0xffc)));
        assert_eq!(slot(SLOTS_BASE + 0x1ffd, 4), None);
        assert_eq!(slot(SLOTS_BASE - 1, 1), None);
        assert_eq!(slot(slot_address(MAX_SLOTS), 1), None);
        assert_eq!(slot(u64::MAX, 8), None);
    }
}
