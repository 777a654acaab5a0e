//! The revisions of the device model, as QEMU's machine types: a machine keeps its own from its boot on, through
//! snapshots, recordings and joins. A change that a guest can see is a new revision. A program has the newest and the one
//! before, so that a pair can be upgraded one host after the other.
//!
//! | revision | what it added |
//! | --- | --- |
//! | 1 | |
//! | 2 | a keyboard |

use std::ops::RangeInclusive;

use crate::MachineConfig;

/// The revisions that this program has.
pub const MODEL_REVISIONS: RangeInclusive<u32> = 1..=2;

/// What a machine gets that is booted anew.
pub const NEWEST_REVISION: u32 = *MODEL_REVISIONS.end();

/// The first revision with a keyboard.
const KEYBOARD: u32 = 2;

impl MachineConfig {
    /// Whether the machine has a keyboard.
    pub fn has_keyboard(&self) -> bool {
        self.model_revision >= KEYBOARD
    }
}
