//! What executes the guest's code in each ring, and how fast.
//!
//! Decides: how long an interrupt may wait for IF=1 before the guest is stopped by force (a number of ring-0
//! instructions, so a time that depends on the rate), and whether instructions must be expected that KVM's emulator
//! declines.

use std::fmt;
use std::time::{Duration, Instant};

use iced_x86::code_asm::{eax, ebx, ecx, rcx};
use serde::{Deserialize, Serialize};

use super::ProbeError;
use super::bench::{Bench, Event};
use super::signals::done;
use crate::micro::{MicroGuest, Ring};
use crate::sys::vcpu::Exit;

/// What executes ring-0 code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// The CPU.
    Cpu,
    /// KVM's instruction emulator.
    Emulator,
    /// Something else happened.
    Unknown(String),
}

/// Finds out what executes ring-0 code: POPCNT runs (or faults, if hidden) on a CPU, and KVM's emulator has never had it.
pub fn engine(bench: &mut Bench<'_>, limit: Duration) -> Result<Engine, ProbeError> {
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        a.mov(ecx, 0x0f0f)?;
        a.popcnt(eax, ecx)?;
        a.mov(ebx, eax)?;
        done(a)
    });
    Ok(match bench.first(&guest, limit)? {
        Event::Done | Event::Frame(_) => Engine::Cpu,
        Event::Exit(Exit::EmulationFailed) => Engine::Emulator,
        other => Engine::Unknown(other.describe()),
    })
}

/// Speed of a ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rate {
    /// Simple instructions in a second.
    PerSecond(u64),
    /// The loop did not run to its end.
    Failed(String),
}

impl Rate {
    /// Instructions in a second, if the loop ran.
    pub fn per_second(&self) -> Option<u64> {
        match self {
            Self::PerSecond(rate) => Some(*rate),
            Self::Failed(_) => None,
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerSecond(rate) if *rate >= 1_000_000_000 => {
                write!(f, "{:.1} G instructions/s", *rate as f64 / 1e9)
            }
            Self::PerSecond(rate) => write!(f, "{:.2} M instructions/s", *rate as f64 / 1e6),
            Self::Failed(why) => write!(f, "did not run: the guest {why}"),
        }
    }
}

/// Measures a ring with loops that grow until one takes `wanted`.
pub fn rate(bench: &mut Bench<'_>, ring: Ring, wanted: Duration, limit: Duration) -> Result<Rate, ProbeError> {
    let mut rounds: u64 = 4_000;
    loop {
        let guest = MicroGuest::new(ring, |a| {
            let mut again = a.create_label();
            a.mov(rcx, rounds)?;
            a.set_label(&mut again)?;
            a.dec(rcx)?;
            a.jne(again)?;
            done(a)
        });
        bench.start(&guest, limit)?;
        let start = Instant::now();
        let event = bench.next_event();
        let took = start.elapsed();
        if event != Event::Done {
            return Ok(Rate::Failed(event.describe()));
        }
        if took >= wanted || rounds >= 1 << 34 {
            return Ok(Rate::PerSecond(
                (2.0 * rounds as f64 / took.as_secs_f64().max(1e-9)) as u64,
            ));
        }
        let factor = (wanted.as_secs_f64() / took.as_secs_f64().max(1e-9) * 1.2).clamp(2.0, 50.0);
        rounds = (rounds as f64 * factor) as u64;
    }
}
