//! The machine: a Linux guest on stock KVM whose every input enters at a stop, as data.
//!
//! Walk: [`machine`] is the machine and its run loop; [`cpu`], [`memory`] and [`devices`] are its parts; [`loader`]
//! puts a kernel into it, with [`acpi`]'s tables; [`snapshot`] saves and restores it; [`sys`] holds all `unsafe` code. [`micro`] builds guests
//! of a few instructions, with which [`probe`] finds out what the host's KVM does. [`scripted`] is a machine without KVM, for
//! tests of oracles.

pub mod acpi;
pub mod cpu;
pub mod devices;
pub mod loader;
pub mod machine;
pub mod memory;
pub mod micro;
pub mod probe;
pub mod scripted;
pub mod snapshot;
pub mod sys;
