//! Tests of each source of nondeterminism and of each kind of stop, with guests of a few instructions. What each test
//! stands for is in docs/determinism.md.
//!
//! Every guest is recorded once and replayed in fresh machines, with kicks at other moments; the registers, effects and
//! digest chain of every stop, every epoch, and at the end memory, vCPU and devices are compared.

#![allow(clippy::wildcard_imports, reason = "an assembler's registers")]

mod guard;
mod guest;
mod harness;
mod kicks;
mod record;
mod replay;
mod world;

mod clock;
mod cpu;
mod creation;
mod detection;
mod devices;
mod exam;
mod forced;
mod halt;
mod hammer;
mod interrupts;
mod mmio;
mod modules;
mod msrs;
mod ports;
mod power;
mod snapshots;
mod traps;
mod virtio;
