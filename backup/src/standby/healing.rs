//! What a join finds to differ in the memory of a replica that went another way: the one place where both sides' bytes meet.
//!
//! The replica has stood still since its divergence and the primary has gone on: a page that comes may differ because of
//! what the primary wrote since. A page that an epoch named is known to be the primary's of that stop where it still has the
//! hash that the log had.

use std::collections::HashSet;
use std::fmt::Write;

use lockstep_node::reports::Kept;
use lockstep_proto::quantity::PageNumber;
use lockstep_replay::divergence::{DifferentByte, DifferentPage};
use lockstep_replay::pages::short_hash;
use lockstep_vmm::memory::{PAGE_SIZE, Page};

/// Pages whose bytes are told.
const PAGES: usize = 4;
/// Bytes that are told of a page.
const BYTES: usize = 16;
/// Pages that are named.
const NAMED: usize = 16;

/// A join that heals a replica.
pub struct Healing {
    report: Option<Kept>,
    /// Pages that the divergence named. Without any, the first ones that differ are looked into.
    suspects: Vec<DifferentPage>,
    /// Pages that have come: those that come again are compared no more.
    seen: HashSet<PageNumber>,
    differing: u64,
    named: Vec<PageNumber>,
    pages: Vec<Healed>,
}

/// A page that was healed.
struct Healed {
    frame: PageNumber,
    /// Whether what came is what the log's hash says; `None`: the log has none.
    is_of_the_stop: Option<bool>,
    count: usize,
    bytes: Vec<DifferentByte>,
}

impl Healing {
    /// Of a replica whose divergence named these pages.
    pub fn new(report: Option<Kept>, suspects: Vec<DifferentPage>) -> Self {
        Self {
            report,
            suspects,
            seen: HashSet::new(),
            differing: 0,
            named: Vec::new(),
            pages: Vec::new(),
        }
    }

    /// A page has come; `old` is what the replica had.
    pub fn page(&mut self, frame: PageNumber, old: &Page, new: &Page) {
        if !self.seen.insert(frame) || old == new {
            return;
        }
        self.differing += 1;
        if self.named.len() < NAMED {
            self.named.push(frame);
        }
        let suspect = self.suspects.iter().find(|suspect| suspect.frame == frame);
        if self.pages.len() == PAGES || (suspect.is_none() && !self.suspects.is_empty()) {
            return;
        }
        let mut offsets: Vec<_> = (0..PAGE_SIZE).filter(|&at| old[at] != new[at]).collect();
        let count = offsets.len();
        let address = |offset: usize| frame.address() + offset as u64;
        // The byte that is known to be wrong comes first.
        let known = suspect.and_then(|suspect| suspect.byte).map(|byte| byte.address);
        offsets.sort_by_key(|&offset| Some(address(offset)) != known);
        let bytes = offsets.into_iter().take(BYTES).map(|offset| DifferentByte {
            address: address(offset),
            expected: new[offset],
            actual: old[offset],
        });
        self.pages.push(Healed {
            frame,
            is_of_the_stop: suspect.map(|suspect| short_hash(frame, new) == suspect.logged),
            count,
            bytes: bytes.collect(),
        });
    }

    /// All have come: tells what differed, and completes the report.
    pub fn finish(self) {
        let text = self.text();
        tracing::info!("{}", text.trim_end());
        if let Some(mut report) = self.report {
            report.add(&text);
        }
    }

    fn text(&self) -> String {
        let mut text = format!(
            "healed: {} pages differed when the primary's came, those included that it has written since the divergence\n",
            self.differing
        );
        // A string takes all that is written.
        for page in &self.pages {
            let address = page.frame.address();
            let when = match page.is_of_the_stop {
                Some(true) => "as it was at the divergence",
                Some(false) => "which the primary has written since",
                None => "perhaps written since",
            };
            let _ = writeln!(text, "  healed page {address:#x}, {when}: {} bytes differ", page.count);
            for byte in &page.bytes {
                let _ = writeln!(text, "    healed {byte}");
            }
            if page.count > page.bytes.len() {
                let _ = writeln!(text, "    and {} bytes more", page.count - page.bytes.len());
            }
        }
        for suspect in self.suspects.iter().take(PAGES) {
            if !self.seen.contains(&suspect.frame) {
                let address = suspect.frame.address();
                let _ = writeln!(text, "  page {address:#x} was the same by then, and did not come");
            }
        }
        let named: Vec<_> = self
            .named
            .iter()
            .map(|frame| format!("{:#x}", frame.address()))
            .collect();
        let more = if (self.named.len() as u64) < self.differing {
            " ..."
        } else {
            ""
        };
        let _ = writeln!(text, "  pages that differed: {}{more}", named.join(" "));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64) -> PageNumber {
        PageNumber::new(number)
    }

    fn page(bytes: &[(usize, u8)]) -> Page {
        let mut page = [0; PAGE_SIZE];
        for &(offset, byte) in bytes {
            page[offset] = byte;
        }
        page
    }

    fn suspect(frame: u64, right: &Page) -> DifferentPage {
        let frame = at(frame);
        DifferentPage {
            frame,
            logged: short_hash(frame, right),
            here: 0,
            byte: None,
        }
    }

    #[test]
    fn bytes_of_named_pages_are_told_and_whether_they_are_of_the_stop() {
        let (right, wrong) = (page(&[(9, 1)]), page(&[(9, 0x41)]));
        let mut healing = Healing::new(None, vec![suspect(3, &right), suspect(5, &right), suspect(6, &right)]);
        healing.page(at(2), &wrong, &right);
        healing.page(at(3), &wrong, &right);
        healing.page(at(5), &wrong, &page(&[(9, 1), (10, 7)]));
        // It comes again, healed by now.
        healing.page(at(3), &right, &page(&[(0, 1)]));
        let text = healing.text();
        assert!(text.starts_with("healed: 3 pages differed"), "{text}");
        assert!(
            text.contains("page 0x3000, as it was at the divergence: 1 bytes differ\n    healed byte 0x3009: 01 expected, 41 actual\n"),
            "{text}"
        );
        assert!(
            text.contains("page 0x5000, which the primary has written since: 2 bytes"),
            "{text}"
        );
        assert!(text.contains("page 0x6000 was the same by then"), "{text}");
        assert!(text.ends_with("pages that differed: 0x2000 0x3000 0x5000\n"), "{text}");
    }

    #[test]
    fn without_named_pages_the_first_are_told_and_all_is_bounded() {
        let mut healing = Healing::new(None, Vec::new());
        for frame in 1..=NAMED as u64 + 4 {
            healing.page(at(frame), &[0; PAGE_SIZE], &[1; PAGE_SIZE]);
            healing.page(at(frame + 1000), &[1; PAGE_SIZE], &[1; PAGE_SIZE]);
        }
        let text = healing.text();
        assert!(text.starts_with("healed: 20 pages differed"), "{text}");
        assert_eq!(text.matches("perhaps written since: 4096 bytes").count(), PAGES);
        assert_eq!(text.matches("healed byte").count(), PAGES * BYTES);
        assert_eq!(text.matches("and 4080 bytes more").count(), PAGES);
        assert!(text.ends_with("0xf000 0x10000 ...\n"), "{text}");
    }
}
