//! What a guest's kernel has to be told of the devices, since nothing on this board can be enumerated: by ACPI, or by words on
//! its command line.

use lockstep_proto::MachineConfig;

use super::virtio::SLOT_IRQS;
use super::{Devices, KEYBOARD_IRQ, POWER_IRQ, RTC_IRQ, SERIAL_IRQ, bus, power, slots};

/// A device, and what it answers at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Its kind, as ACPI and PNP name it.
    pub id: &'static str,
    /// Its number among those of its kind.
    pub number: u8,
    /// Ranges of ports: the first one, and how many. None: 0 of them.
    pub ports: [(u16, u8); 2],
    /// A range of guest physical memory: where it begins, and how many bytes it has.
    pub memory: Option<(u64, u64)>,
    /// Its interrupt, an edge.
    pub irq: u8,
}

/// ACPI's fixed hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedHardware {
    /// Port of the PM1a event block, of 4 bytes.
    pub events: u16,
    /// Port of the PM1a control block, of 2 bytes.
    pub control: u16,
    /// Its interrupt, a level.
    pub irq: u8,
    /// The sleep type of S5.
    pub s5: u8,
    /// Port of the reset register, and what resets the machine there.
    pub reset: (u16, u8),
}

/// The machine's.
pub const FIXED: FixedHardware = FixedHardware {
    events: bus::POWER_EVENTS,
    control: bus::POWER_CONTROL,
    irq: POWER_IRQ,
    s5: power::S5,
    reset: (bus::RESET_CONTROL, 6),
};

impl Devices {
    /// The devices that a machine has, but for those that every PC has at the same place: serial port, clock and keyboard, then
    /// the virtio slots.
    pub fn resources(config: &MachineConfig) -> Vec<Resources> {
        let board = |id, ports, irq| Resources {
            id,
            number: 0,
            ports,
            memory: None,
            irq,
        };
        let mut all = vec![
            board("PNP0501", [(0x3f8, 8), (0, 0)], SERIAL_IRQ),
            board("PNP0B00", [(0x70, 2), (0, 0)], RTC_IRQ),
        ];
        if config.has_keyboard() {
            all.push(board("PNP0303", [(0x60, 1), (0x64, 1)], KEYBOARD_IRQ));
        }
        let slots = (0..slots(config)).zip(0..).zip(SLOT_IRQS);
        all.extend(slots.map(|((slot, number), irq)| Resources {
            id: "LNRO0005",
            number,
            ports: [(0, 0); 2],
            memory: Some((bus::slot_address(slot), bus::SLOT_BYTES)),
            irq,
        }));
        all
    }

    /// Words for the command line of a kernel without ACPI tables: where the virtio slots are, and what it need not ask the
    /// keyboard's controller, some 2,000 stops of a boot.
    pub fn cmdline_words(config: &MachineConfig) -> Vec<String> {
        let slots = (0..slots(config))
            .zip(SLOT_IRQS)
            .map(|(slot, irq)| format!("virtio_mmio.device=4K@{:#x}:{irq}", bus::slot_address(slot)));
        let keyboard: &[&str] = if config.has_keyboard() {
            &["i8042.nopnp", "i8042.noaux", "i8042.dumbkbd"]
        } else {
            &[]
        };
        slots.chain(keyboard.iter().copied().map(str::to_owned)).collect()
    }

    /// The same where it has them: they say which ports the keyboard's controller has, and no mouse.
    pub fn acpi_cmdline_words() -> Vec<String> {
        vec!["i8042.dumbkbd".to_owned()]
    }
}
