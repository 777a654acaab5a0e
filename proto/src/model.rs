//! The revisions of the device model, as QEMU's machine types: a machine keeps its own from its boot on, through
//! snapshots, recordings and joins. A change that a guest can see is a new revision. A program has the newest and those
//! before, so that a pair can be upgraded one host after the other.
//!
//! | revision | what it added |
//! | --- | --- |
//! | 1 | |
//! | 2 | a keyboard |
//! | 3 | network cards that tell the guest their MTU |
//! | 4 | ACPI: a power button, an orderly end, and tables where the kernel can use them |
//! | 5 | a trap where the kernel finishes a module, whose code is rewritten then; AMD's HWCR and NB_CFG, as their kernels use them at boot |

use std::ops::RangeInclusive;

use crate::MachineConfig;

/// The newest that there is. (A program may have fewer: [`program`](crate::program).)
pub const NEWEST_REVISION: u32 = 5;

/// The first revision with a keyboard.
const KEYBOARD: u32 = 2;

/// The first revision with ACPI's fixed hardware, whose part the power button is.
pub const ACPI_REVISION: u32 = 4;

/// The first revision whose network cards may tell the guest their MTU.
pub const MTU_REVISION: u32 = 3;

/// The first revision whose machines look the guest's modules through.
pub const MODULES_REVISION: u32 = 5;

/// The first revision with the MSRs HWCR and NB_CFG of AMD's processors.
pub const AMD_MSRS_REVISION: u32 = 5;

/// What a card may tell: IPv6 needs the least (RFC 8200), and a tap device has no more.
pub const MTUS: RangeInclusive<u32> = 1280..=65_521;

/// What a card takes of which the guest was told nothing: Ethernet's.
pub const DEFAULT_MTU: u32 = 1500;

impl MachineConfig {
    /// Whether the machine has a keyboard.
    pub fn has_keyboard(&self) -> bool {
        self.model_revision >= KEYBOARD
    }

    /// Whether the machine has a power button.
    pub fn has_power_button(&self) -> bool {
        self.model_revision >= ACPI_REVISION
    }

    /// Whether the machine may have a trap where the kernel finishes a module.
    pub fn may_trap_modules(&self) -> bool {
        self.model_revision >= MODULES_REVISION
    }

    /// Where the machine's trap for modules is.
    pub fn module_trap(&self) -> Option<u64> {
        (self.may_trap_modules() && self.module_trap != 0).then_some(self.module_trap)
    }
}
