//! Setting states of a vCPU and reading them back.
//!
//! Decides: whether two replicas in the same state show the same state. What a host changes in a state that it is given is
//! made uniform in one place ([`crate::cpu::uniform`]); where anything else differs, epochs would differ without a reason.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use kvm_bindings::{kvm_debugregs, kvm_regs, kvm_segment, kvm_sregs};
use lockstep_proto::{Msr, VcpuState};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use super::ProbeError;
use super::bench::{Bench, Event};
use super::msrs::Outcome;
use super::signals::{done, mark};
use crate::cpu::{msr, state};
use crate::micro::{MicroGuest, Ring};

/// States that are tried.
const TRIED: u32 = 64;
/// A canonical address's bits that may be anything.
const LOWER_HALF: u64 = 0x0000_7fff_ffff_ffff;
/// RFLAGS that a state may have in any combination: all arithmetic flags, DF, AC and ID (Intel SDM volume 1, 3.4.3).
const FLAGS: u64 = 0x0024_0cd5;
/// Bits of MXCSR that may be set with SSE2 (Intel SDM volume 1, 10.2.3).
const MXCSR: u32 = 0xffff;

/// What setting and reading back random states found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct States {
    /// How many were tried.
    pub tried: u32,
    /// Pieces that the host gave back otherwise, and that were made uniform.
    pub uniform: Vec<String>,
    /// MSRs of which it keeps less than it is given; so the guest's writes of them are given by us.
    pub cut: Vec<String>,
    /// Pieces that differ all the same.
    pub differ: Vec<String>,
    /// The host did something else.
    pub instead: Option<String>,
}

impl States {
    /// In short.
    pub fn outcome(&self) -> Outcome {
        match &self.instead {
            Some(instead) => Outcome::Instead(instead.clone()),
            None if self.differ.is_empty() => Outcome::Works,
            None => Outcome::Instead(format!("read back otherwise: {}", self.differ.join(", "))),
        }
    }
}

impl fmt::Display for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.outcome() {
            Outcome::Works => {
                write!(f, "{} random ones: equal", self.tried)?;
                if !self.uniform.is_empty() {
                    write!(f, " once made uniform ({})", self.uniform.join(", "))?;
                }
                if !self.cut.is_empty() {
                    write!(f, "; writes given by us: {}", self.cut.join(", "))?;
                }
                Ok(())
            }
            instead @ Outcome::Instead(_) => instead.fmt(f),
        }
    }
}

/// Sets random states in a vCPU that stands at a completed stop, and reads each back.
pub fn survey(bench: &mut Bench<'_>, limit: Duration) -> Result<States, ProbeError> {
    let guest = MicroGuest::new(Ring::Kernel, |a| {
        mark(a)?;
        done(a)
    });
    let mut found = States::default();
    match bench.first(&guest, limit)? {
        Event::Mark => {}
        event => {
            found.instead = Some(format!("the guest {}", event.describe()));
            return Ok(found);
        }
    }
    if let Some(exit) = bench.complete()? {
        found.instead = Some(format!("completing an exit brought {exit:?}"));
        return Ok(found);
    }
    let first = state::save(bench.vcpu())?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut uniform, mut cut, mut differ) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for _ in 0..TRIED {
        let wanted = randomized(&first, &mut random)?;
        state::restore(bench.vcpu(), &wanted)?;
        let mut raw = state::read(bench.vcpu())?;
        for (got, wanted) in raw.msrs.iter_mut().zip(&wanted.msrs) {
            if got != wanted && msr::CUT.contains(&got.index) {
                cut.insert(format!("MSR {:#x}", got.index));
                *got = *wanted;
            }
        }
        differences(&wanted, &raw, &mut uniform)?;
        differences(&state::settled(wanted)?, &state::settled(raw)?, &mut differ)?;
        found.tried += 1;
    }
    state::restore(bench.vcpu(), &first)?;
    found.cut = cut.into_iter().collect();
    found.uniform = uniform.difference(&differ).cloned().collect();
    found.differ = differ.into_iter().collect();
    Ok(found)
}

/// Whether KVM keeps less of the MSRs that SYSENTER uses than it is given.
pub fn cuts_msrs(bench: &mut Bench<'_>) -> Result<bool, ProbeError> {
    let vcpu = bench.vcpu();
    let before = state::read(vcpu)?;
    let wide = msr::CUT.map(|index| Msr {
        index,
        value: LOWER_HALF,
    });
    state::set_msrs(vcpu, &wide)?;
    let after = state::read(vcpu)?;
    state::set_msrs(vcpu, &before.msrs)?;
    let kept = |wide: &Msr| after.msrs.contains(wide);
    Ok(!wide.iter().all(kept))
}

/// Adds the names of the pieces in which two states differ.
fn differences(one: &VcpuState, other: &VcpuState, names: &mut BTreeSet<String>) -> Result<(), ProbeError> {
    let pieces = |state: &VcpuState| {
        let mut pieces = Vec::new();
        state::pieces(state, &mut |name, number, bytes| {
            let name = number.map_or_else(|| name.to_owned(), |number| format!("{name} {number:#x}"));
            pieces.push((name, bytes.to_vec()));
        })?;
        Ok::<_, ProbeError>(pieces)
    };
    for (one, other) in pieces(one)?.into_iter().zip(pieces(other)?) {
        if one != other {
            names.insert(one.0);
        }
    }
    Ok(())
}

/// `first` with other values wherever a CPU in 64-bit mode may have any.
fn randomized(first: &VcpuState, random: &mut Random) -> Result<VcpuState, ProbeError> {
    let mut regs = kvm_regs::default();
    for word in regs.as_mut_bytes().chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    regs.rip &= LOWER_HALF;
    regs.rflags = regs.rflags & FLAGS | 2;
    let mut sregs = state::sregs(first)?;
    randomize_segments(&mut sregs, random);
    sregs.cr2 = random.next();
    let mut msrs = first.msrs.clone();
    for entry in &mut msrs {
        match entry.index {
            0xc000_0100 => entry.value = sregs.fs.base,
            0xc000_0101 => entry.value = sregs.gs.base,
            // KERNEL_GS_BASE, LSTAR, CSTAR, SYSENTER_ESP and _EIP are addresses.
            0xc000_0102 | 0xc000_0082 | 0xc000_0083 | 0x175 | 0x176 => entry.value = random.next() & LOWER_HALF,
            // FMASK has 32 bits on some CPUs.
            0xc000_0084 => entry.value = random.next() & 0xffff_ffff,
            _ => {}
        }
    }
    let mut debug = kvm_debugregs::read_from_bytes(&first.debugregs)
        .map_err(|_| state::StateError::Damaged("debug registers have the wrong size"))?;
    debug.db = [random.next(), random.next(), random.next(), random.next()].map(|address| address & LOWER_HALF);
    debug.dr6 = 0xffff_0ff0 | random.next() & 0xf;
    let mut events = state::events(first)?;
    // Of events that are over: nothing that a guest can see.
    events.exception.nr = (random.next() % 32) as u8;
    events.exception.has_error_code = (random.next() & 1) as u8;
    events.exception.error_code = random.next() as u32;
    events.interrupt.nr = random.next() as u8;
    events.interrupt.shadow = if random.next() & 1 == 0 {
        0
    } else {
        events.interrupt.shadow
    };
    Ok(VcpuState {
        regs: Bytes::copy_from_slice(regs.as_bytes()),
        sregs: Bytes::copy_from_slice(sregs.as_bytes()),
        debugregs: Bytes::copy_from_slice(debug.as_bytes()),
        events: Bytes::copy_from_slice(events.as_bytes()),
        xsave: random_fpu(random).into(),
        msrs,
        ..first.clone()
    })
}

/// The data segments and SS hold the null selector, as in a 64-bit kernel, or are there; what else a descriptor has may be anything.
fn randomize_segments(sregs: &mut kvm_sregs, random: &mut Random) {
    let there = sregs.ds;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs] {
        if random.next() & 1 == 0 {
            *segment = kvm_segment {
                base: random.next() & LOWER_HALF,
                ..there
            };
        } else {
            *segment = null_segment(random);
        }
    }
    // ES and DS have no base in 64-bit mode.
    (sregs.ds.base, sregs.es.base) = (0, 0);
    // Interrupts leave it in SS, in ring 0. Its DPL is the CPL.
    if random.next() & 1 == 0 {
        sregs.ss = kvm_segment {
            base: 0,
            dpl: sregs.ss.dpl,
            ..null_segment(random)
        };
    }
}

fn null_segment(random: &mut Random) -> kvm_segment {
    kvm_segment {
        base: random.next() & LOWER_HALF,
        limit: (random.next() as u32) >> 12,
        type_: (random.next() & 0xf) as u8,
        unusable: 1,
        dpl: (random.next() & 3) as u8,
        db: (random.next() & 1) as u8,
        s: (random.next() & 1) as u8,
        l: (random.next() & 1) as u8,
        avl: (random.next() & 1) as u8,
        ..kvm_segment::default()
    }
}

/// An FXSAVE image with any contents that a CPU takes (Intel SDM volume 1, 10.5.1), and the XSAVE header's bits for it.
fn random_fpu(random: &mut Random) -> Vec<u8> {
    let mut area = vec![0; 576];
    area[0..2].copy_from_slice(&(0x37f_u16 ^ (random.next() as u16 & 0xc00)).to_le_bytes());
    area[2..4].copy_from_slice(&(random.next() as u16 & 0x7800).to_le_bytes());
    area[4] = random.next() as u8;
    area[24..28].copy_from_slice(&(random.next() as u32 & MXCSR | 0x1f80).to_le_bytes());
    for register in 0..8 {
        let value = [random.next().to_le_bytes(), random.next().to_le_bytes()].concat();
        area[32 + register * 16..42 + register * 16].copy_from_slice(&value[..10]);
    }
    for half in area[160..416].chunks_exact_mut(8) {
        half.copy_from_slice(&random.next().to_le_bytes());
    }
    // XSTATE_BV: x87 and SSE.
    area[512] = 3;
    area
}

/// Xorshift64: the same states at every start.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
