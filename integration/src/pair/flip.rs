//! A bit of a guest's memory that falls over, as a cosmic ray or a bad module has it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSymbol};

use super::{LIMIT, Node, Protected, number, status, stop_vcpu, wait_for_status};
use crate::paths::Guest;

/// Where the kernel's image is mapped: a symbol's physical address is this much less (Linux, x86-64 memory map).
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
const PAGE: usize = 4096;
/// How the kernel's banner begins.
const BANNER: &[u8; 14] = b"Linux version ";

/// How often a bit is flipped until it is found at the latest.
const TRIES: usize = 1000;

/// The tick counter of the kernel in a machine's memory, whose page each tick writes.
pub struct Tick {
    /// The memory of the process that has the machine.
    memory: File,
    /// Where the counter is in it,
    at: u64,
    /// and in the machine's memory.
    physical: u64,
}

impl Tick {
    /// In the memory of `bytes` of the machine that `node` has.
    pub fn of(node: &Node, bytes: u64) -> Result<Self> {
        let vmlinux = fs::read(Guest::find()?.vmlinux)?;
        let image = object::File::parse(&*vmlinux)?;
        let physical = |name: &str| -> Result<u64> {
            let symbol = image.symbol_by_name(name);
            Ok(symbol.with_context(|| format!("vmlinux has no {name}"))?.address() - KERNEL_MAP)
        };
        let (tick, banner) = (physical("jiffies_64")?, physical("linux_banner")?);
        let pid = node.run.pid();
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))?;
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        // The kernel of the host may show what is next to the guest's memory as one mapping with it.
        let mut bases = maps.lines().flat_map(|line| candidates(line, bytes));
        let base = bases.find(|base| {
            let mut text = [0; BANNER.len()];
            memory.read_exact_at(&mut text, base + banner).is_ok() && text == *BANNER
        });
        let base = base.context("the guest's memory is not there")?;
        Ok(Self {
            memory,
            at: base + tick,
            physical: tick,
        })
    }

    /// Sets a high bit of it.
    pub fn flip(&self) -> Result<()> {
        // The highest byte: the counter will not reach it.
        let byte = self.byte(7)?;
        self.set(7, byte | 0x40)
    }

    /// Sets a bit right behind it, in bytes that nobody reads or writes: only a comparison of memory finds it. Returns the
    /// byte's physical address; it was 0 and is 0x40 now.
    pub fn set_beside(&self) -> Result<u64> {
        let physical = self.physical + 9;
        let byte = self.byte(9)?;
        ensure!(matches!(byte, 0 | 0x40), "somebody uses the byte at {physical:#x}");
        self.set(9, 0x40)?;
        Ok(physical)
    }

    fn byte(&self, behind: u64) -> Result<u8> {
        let mut byte = [0];
        self.memory.read_exact_at(&mut byte, self.at + behind)?;
        Ok(byte[0])
    }

    fn set(&self, behind: u64, byte: u8) -> Result<()> {
        Ok(self.memory.write_all_at(&[byte], self.at + behind)?)
    }
}

/// Does `change` to the memory of the backup's machine, of `bytes`, until it is found: a delta may bring the page anew before
/// an epoch ends, and then the change is gone. Returns what the last one came to.
pub fn until_found<T>(protected: &Protected, bytes: u64, change: impl Fn(&Tick) -> Result<T>) -> Result<T> {
    let socket = protected.scene.pair.socket(protected.primary.host);
    let tick = Tick::of(&protected.backup, bytes)?;
    let mut changed = None;
    for _ in 0..TRIES {
        // While the replica executes nothing and the primary knows of no divergence, nothing of it has been healed: what is changed
        // after that would make a healed replica diverge again.
        let stands = stop_vcpu(&protected.backup)?;
        let before = status(&socket)?;
        if number(&before, "divergences")? == 0.0 {
            changed = Some(change(&tick)?);
        }
        drop(stands);
        let position = number(&before, "received")?;
        let after = wait_for_status(&socket, LIMIT, |now| {
            Ok(number(now, "divergences")? > 0.0 || number(now, "verified")? > position)
        })?;
        if number(&after, "divergences")? > 0.0 {
            return changed.context("the backup diverged before anything was changed");
        }
    }
    bail!("the change is found by nobody")
}

/// Where in the mapping that `line` of /proc/PID/maps is of, memory of `bytes` may begin.
fn candidates(line: &str, bytes: u64) -> impl Iterator<Item = u64> + use<> {
    let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
    let parse = |text| u64::from_str_radix(text, 16).unwrap_or(0);
    let (first, end) = range.map_or((1, 0), |(first, end)| (parse(first), parse(end)));
    (first..(end + 1).saturating_sub(bytes)).step_by(PAGE)
}
