//! Who walks the guest's page tables: the CPU, or a copy of them that KVM keeps (shadow paging).
//!
//! Decides: whether memory slots must be re-created after userspace wrote into guest memory (a delta, a restore into a
//! live VM), because KVM does not notice what userspace writes into page tables.

use std::time::{Duration, Instant};

use iced_x86::code_asm::{cr3, qword_ptr, rax, rbx, rcx};
use serde::{Deserialize, Serialize};

use super::ProbeError;
use super::bench::{Bench, Event};
use super::signals::{done, mark};
use crate::micro::{DATA, MicroGuest, Ring, page_entry, page_entry_address};

const PAGE: u64 = DATA;
const OLD_PAGE: u64 = DATA + 0x1000;
const NEW_PAGE: u64 = DATA + 0x2000;
const OLD: u64 = 0x1d1d;
const NEW: u64 = 0x2e2e;

/// What the guest's memory accesses go by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Paging {
    /// The CPU walks the guest's page tables (EPT, NPT).
    Hardware,
    /// KVM keeps a copy of the page tables, which is stale after userspace wrote into them.
    Shadow,
    /// The experiment did not end as planned.
    Unknown(String),
}

/// When a page table entry that userspace rewrote began to count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagingTest {
    /// The verdict.
    pub paging: Paging,
    /// At once.
    pub seen_at_once: bool,
    /// After the guest has reloaded CR3, which empties a TLB.
    pub seen_after_cr3: bool,
    /// After the slots were re-created.
    pub seen_after_reset: bool,
    /// Nanoseconds that re-creating the slots of 2 MiB took.
    pub reset_ns: u64,
}

/// Maps a page, lets the guest read it, maps another in its place from userspace, and lets the guest read again.
///
/// In ring 3: where KVM's emulator executes ring 0, it walks the guest's page tables afresh for every access.
pub fn survey(bench: &mut Bench<'_>, limit: Duration) -> Result<PagingTest, ProbeError> {
    let guest = MicroGuest::new(Ring::User, |a| {
        a.mov(rbx, PAGE)?;
        // The first read; one right after the change; one after INT3, whose handler reloads CR3; one after the slots
        // were re-created.
        for number in 0..4 {
            if number == 2 {
                a.int3()?;
            }
            a.mov(rax, qword_ptr(rbx))?;
            mark(a)?;
        }
        done(a)
    })
    .handler(3, |a| {
        a.mov(rcx, cr3)?;
        a.mov(cr3, rcx)?;
        a.iretq()
    })
    .map(PAGE, OLD_PAGE)
    .data(OLD_PAGE, &OLD.to_le_bytes())
    .data(NEW_PAGE, &NEW.to_le_bytes());
    bench.start(&guest, limit)?;
    let mut read = Vec::new();
    let mut reset_ns = 0;
    for number in 0..4 {
        let event = bench.next_event();
        if event != Event::Mark {
            return Ok(failed(format!("the guest {}", event.describe())));
        }
        read.push(bench.regs()?.rax);
        match number {
            0 => bench.poke(page_entry_address(PAGE), page_entry(NEW_PAGE))?,
            2 => {
                let start = Instant::now();
                bench.reset_slots()?;
                reset_ns = start.elapsed().as_nanos() as u64;
            }
            _ => {}
        }
    }
    if read[0] != OLD || read.iter().any(|value| ![OLD, NEW].contains(value)) {
        return Ok(failed(format!("the guest read {read:x?}")));
    }
    let seen = |number: usize| read[number] == NEW;
    let paging = match (seen(2), seen(3)) {
        (true, _) => Paging::Hardware,
        (false, true) => Paging::Shadow,
        (false, false) => Paging::Unknown("the new mapping was not seen even after the slots were re-created".into()),
    };
    Ok(PagingTest {
        paging,
        seen_at_once: seen(1),
        seen_after_cr3: seen(2),
        seen_after_reset: seen(3),
        reset_ns,
    })
}

fn failed(why: String) -> PagingTest {
    PagingTest {
        paging: Paging::Unknown(why),
        seen_at_once: false,
        seen_after_cr3: false,
        seen_after_reset: false,
        reset_ns: 0,
    }
}
