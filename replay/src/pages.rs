//! Which pages an epoch's end found to differ, and where a single bit makes the difference.
//!
//! The log has hashes of the pages that the recorder's epoch dirtied, not their content. A page in which one bit fell over
//! is found all the same: with that bit turned back, its hash is the logged one.

use std::collections::HashMap;

use lockstep_proto::Epoch;
use lockstep_proto::quantity::PageNumber;
use lockstep_vmm::machine::EpochReport;
use lockstep_vmm::memory::{Memory, PAGE_SIZE, Page, page_hash};

use crate::divergence::{DifferentByte, DifferentPage, Mismatch};

/// Pages in which a single bit is looked for; each costs some ten milliseconds.
const SEARCHED: usize = 4;

/// The low 32 bits of a page's hash, as the log has them.
pub fn short_hash(frame: PageNumber, page: &Page) -> u32 {
    page_hash(frame, page) as u32
}

/// What differs between an epoch in the log and the same one `here`, where `memory` still is as the epoch left it.
pub fn compare(memory: &Memory, logged: &Epoch, here: &EpochReport) -> Mismatch {
    let mut frame = PageNumber::FIRST;
    let mut theirs = Vec::with_capacity(logged.page_hashes.len());
    for (gap, hash) in logged.frame_gaps.iter().zip(&logged.page_hashes) {
        frame = frame.plus(*gap);
        theirs.push((frame, *hash));
    }
    let ours: HashMap<PageNumber, u32> = here.pages.iter().map(|&(frame, hash)| (frame, hash as u32)).collect();
    let mut different = Vec::new();
    let mut page = [0; PAGE_SIZE];
    for &(frame, hash) in theirs.iter().filter(|(frame, _)| memory.index(*frame).is_some()) {
        // A page that was only looked at may be dirty on one side alone: its content counts.
        let found = ours.get(&frame).copied().unwrap_or_else(|| {
            memory.read_page(frame, &mut page);
            short_hash(frame, &page)
        });
        if found != hash {
            let byte = if different.len() < SEARCHED {
                memory.read_page(frame, &mut page);
                fallen_bit(frame, &mut page, hash)
            } else {
                None
            };
            different.push(DifferentPage {
                frame,
                logged: hash,
                here: found,
                byte,
            });
        }
    }
    let detail = !theirs.is_empty();
    let only_here = here.pages.iter().map(|entry| entry.0);
    Mismatch::Epoch {
        different,
        only_here: only_here
            .filter(|frame| theirs.binary_search_by_key(frame, |entry| entry.0).is_err())
            .collect(),
        detail,
        parts: here.parts.differing(&logged.parts),
        counts: (logged.pages, here.pages.len() as u32),
    }
}

/// The byte with the one bit that has to be turned for the page to have this hash. By chance alone, one page of 130,000
/// has such a bit.
fn fallen_bit(frame: PageNumber, page: &mut Page, hash: u32) -> Option<DifferentByte> {
    for offset in 0..PAGE_SIZE {
        let actual = page[offset];
        for bit in 0..8 {
            let expected = actual ^ 1 << bit;
            page[offset] = expected;
            if short_hash(frame, page) == hash {
                return Some(DifferentByte {
                    address: frame.address() + offset as u64,
                    expected,
                    actual,
                });
            }
        }
        page[offset] = actual;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64) -> PageNumber {
        PageNumber::new(number)
    }

    fn noise(seed: u64) -> Page {
        let mut page = [0; PAGE_SIZE];
        for (number, byte) in page.iter_mut().enumerate() {
            *byte = (seed + number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0];
        }
        page
    }

    /// Memory with three pages of noise, and the epoch that a recorder with the same memory would log.
    fn memory() -> (Memory, Epoch, EpochReport) {
        let memory = Memory::new(16 << 20).unwrap();
        let mut report = EpochReport::default();
        for frame in [3, 7, 8] {
            let noise = noise(frame);
            memory.write_page(at(frame), &noise).unwrap();
            report.pages.push((at(frame), page_hash(at(frame), &noise)));
        }
        let logged = report.to_message(true);
        (memory, logged, report)
    }

    fn change(memory: &Memory, report: &mut EpochReport, frame: PageNumber, to: impl Fn(&mut Page)) {
        let mut page = [0; PAGE_SIZE];
        memory.read_page(frame, &mut page);
        to(&mut page);
        memory.write_page(frame, &page).unwrap();
        for entry in report.pages.iter_mut().filter(|entry| entry.0 == frame) {
            entry.1 = page_hash(frame, &page);
        }
    }

    fn found(mismatch: Mismatch) -> (Vec<DifferentPage>, Vec<PageNumber>) {
        match mismatch {
            Mismatch::Epoch {
                different, only_here, ..
            } => (different, only_here),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_fallen_bit_is_found() {
        let (memory, logged, mut report) = memory();
        change(&memory, &mut report, at(7), |page| page[0x309] ^= 0x40);
        let (different, _) = found(compare(&memory, &logged, &report));
        assert_eq!(different.len(), 1);
        assert_eq!(
            (different[0].frame, different[0].here),
            (at(7), report.pages[1].1 as u32)
        );
        let byte = different[0].byte.unwrap();
        assert_eq!((byte.address, byte.expected ^ byte.actual), (0x7309, 0x40));
        assert_eq!(byte.expected, noise(7)[0x309]);
    }

    #[test]
    fn more_than_a_bit_is_a_page_that_differs() {
        let (memory, logged, mut report) = memory();
        change(&memory, &mut report, at(3), |page| page[5] ^= 0x41);
        let (different, _) = found(compare(&memory, &logged, &report));
        assert_eq!(
            (different.len(), different[0].frame, different[0].byte),
            (1, at(3), None)
        );
    }

    #[test]
    fn content_counts_and_not_who_marked_it_dirty() {
        let (memory, logged, mut report) = memory();
        // Dirty there alone, with the same content and with another; and here alone.
        report.pages.retain(|entry| entry.0 == at(3));
        report.pages.push((at(9), 1));
        change(&memory, &mut report, at(8), |page| page[0] ^= 0xff);
        let (different, only_here) = found(compare(&memory, &logged, &report));
        assert_eq!(different.iter().map(|page| page.frame).collect::<Vec<_>>(), [at(8)]);
        assert_eq!(only_here, [at(9)]);
    }

    #[test]
    fn frames_outside_memory_are_passed_over() {
        let (memory, _, report) = memory();
        let logged = Epoch {
            frame_gaps: vec![1 << 30, u64::MAX],
            page_hashes: vec![1, 2],
            ..Epoch::default()
        };
        let (different, only_here) = found(compare(&memory, &logged, &report));
        assert_eq!((different.len(), only_here.len()), (0, 3));
    }
}
