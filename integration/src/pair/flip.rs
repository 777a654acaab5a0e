//! A bit of a guest's memory that falls over, as a cosmic ray or a bad module has it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSymbol};

use super::Node;
use crate::paths::Guest;

/// Where the kernel's image is mapped: a symbol's physical address is this much less (Linux, x86-64 memory map).
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
const PAGE: usize = 4096;
/// How the kernel's banner begins.
const BANNER: &[u8; 14] = b"Linux version ";

/// Sets a high bit of the kernel's tick counter, whose page each tick writes, in the memory of the machine that `node` has,
/// of `bytes`.
pub fn flip_tick(node: &Node, bytes: u64) -> Result<()> {
    // The highest byte: the counter will not reach it.
    let (memory, at, _) = beside_tick(node, bytes, 7)?;
    let mut byte = [0];
    memory.read_exact_at(&mut byte, at)?;
    memory.write_all_at(&[byte[0] | 0x40], at)?;
    Ok(())
}

/// Sets a bit right behind the counter, in bytes that nobody reads or writes: only a comparison of memory finds it. Returns
/// the byte's physical address; it was 0 and is 0x40 now.
pub fn set_beside_tick(node: &Node, bytes: u64) -> Result<u64> {
    let (memory, at, physical) = beside_tick(node, bytes, 9)?;
    let mut byte = [0];
    memory.read_exact_at(&mut byte, at)?;
    ensure!(matches!(byte[0], 0 | 0x40), "somebody uses the byte at {physical:#x}");
    memory.write_all_at(&[0x40], at)?;
    Ok(physical)
}

/// The memory of the process, and where the byte so far behind the kernel's tick counter lies: in it, and in the machine.
fn beside_tick(node: &Node, bytes: u64, behind: u64) -> Result<(File, u64, u64)> {
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
    Ok((memory, base + tick + behind, tick + behind))
}

/// Where in the mapping that `line` of /proc/PID/maps is of, memory of `bytes` may begin.
fn candidates(line: &str, bytes: u64) -> impl Iterator<Item = u64> + use<> {
    let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
    let parse = |text| u64::from_str_radix(text, 16).unwrap_or(0);
    let (first, end) = range.map_or((1, 0), |(first, end)| (parse(first), parse(end)));
    (first..(end + 1).saturating_sub(bytes)).step_by(PAGE)
}
