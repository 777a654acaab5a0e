//! What of guest memory stands where in a core: all of it once, by physical address, as readers of kernels' dumps want it, and by virtual
//! address what the kernel maps elsewhere.
//!
//! Linux has all memory mapped one to one at one place, its direct map. A segment that lies there has both addresses. Of others the
//! physical address is [`NOT_PHYSICAL`], as /proc/kcore has it, since their memory would be there twice.

use std::collections::BTreeMap;

use lockstep_proto::quantity::{PageIndex, PageNumber};
use lockstep_vmm::cpu::walk::Mapping;
use lockstep_vmm::memory::{Memory, PAGE_SIZE};

/// The physical address of a segment that has none.
pub const NOT_PHYSICAL: u64 = u64::MAX;

/// A stretch of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its virtual address.
    pub address: u64,
    /// Its physical address, or [`NOT_PHYSICAL`].
    pub physical: u64,
    /// Bytes.
    pub length: u64,
    /// The first of its pages.
    pub page: PageIndex,
}

/// What a core tells of.
pub struct Segments {
    /// In no order.
    pub list: Vec<Segment>,
    /// All memory is there by physical address. False: the page tables in force here have no direct map of it, and what they map is
    /// all that can be told.
    pub is_physical: bool,
}

impl Segments {
    /// Of `memory`, where these mappings are in force.
    pub fn of(memory: &Memory, mapped: &[Mapping]) -> Self {
        let stretches = stretches(memory);
        let Some(offset) = direct_map(memory.bytes(), &stretches, mapped) else {
            let list = mapped.iter().filter_map(|range| segment(memory, range, range.physical));
            let one_to_one = mapped.iter().filter(|range| offset_of(range) == 0);
            return Self {
                list: list.collect(),
                // As before a kernel has set up its own.
                is_physical: one_to_one.map(|range| range.length).sum::<u64>() >= memory.bytes(),
            };
        };
        let direct = stretches.iter().map(|stretch| Segment {
            address: offset.wrapping_add(stretch.physical),
            ..*stretch
        });
        let others = mapped.iter().filter(|range| offset_of(range) != offset);
        Self {
            list: direct
                .chain(others.filter_map(|range| segment(memory, range, NOT_PHYSICAL)))
                .collect(),
            is_physical: true,
        }
    }
}

fn segment(memory: &Memory, range: &Mapping, physical: u64) -> Option<Segment> {
    // A mapping is of memory, or it would not be one.
    let page = memory.index(PageNumber::of(range.physical))?;
    Some(Segment {
        address: range.address,
        physical,
        length: range.length,
        page,
    })
}

/// The stretches of memory, by physical address; virtual ones they have not yet.
fn stretches(memory: &Memory) -> Vec<Segment> {
    let mut found: Vec<Segment> = Vec::new();
    for page in memory.indices() {
        let physical = memory.frame(page).address();
        match found.last_mut() {
            Some(last) if last.physical + last.length == physical => last.length += PAGE_SIZE as u64,
            _ => found.push(Segment {
                address: 0,
                physical,
                length: PAGE_SIZE as u64,
                page,
            }),
        }
    }
    found
}

fn offset_of(range: &Mapping) -> u64 {
    range.address.wrapping_sub(range.physical)
}

/// How far virtual addresses of the direct map are from physical ones: in the kernel's half, for most of memory, and where nothing else
/// is mapped.
fn direct_map(bytes: u64, stretches: &[Segment], mapped: &[Mapping]) -> Option<u64> {
    let mut covered: BTreeMap<u64, u64> = BTreeMap::new();
    for range in mapped.iter().filter(|range| range.address >> 63 == 1) {
        *covered.entry(offset_of(range)).or_default() += range.length;
    }
    let (offset, length) = covered.into_iter().max_by_key(|(_, length)| *length)?;
    let is_free = |stretch: &Segment| {
        let start = offset.wrapping_add(stretch.physical);
        let is_in = |range: &Mapping| {
            range.address < start.saturating_add(stretch.length) && start < range.address.saturating_add(range.length)
        };
        !mapped.iter().any(|range| offset_of(range) != offset && is_in(range))
    };
    (length > bytes / 2 && stretches.iter().all(is_free)).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const DIRECT: u64 = 0xffff_8880_0000_0000;
    const TEXT: u64 = 0xffff_ffff_8000_0000;

    fn of(mapped: &[(u64, u64, u64)]) -> Segments {
        let memory = Memory::new(8 * MIB).unwrap();
        let mapped: Vec<_> = mapped
            .iter()
            .map(|&(address, physical, length)| Mapping {
                address,
                physical,
                length,
            })
            .collect();
        Segments::of(&memory, &mapped)
    }

    fn segment(address: u64, physical: u64, length: u64, from: u64) -> Segment {
        Segment {
            address,
            physical,
            length,
            page: PageIndex::new(from >> 12),
        }
    }

    #[test]
    fn memory_is_there_once_by_physical_address() {
        // Of the direct map a page in the middle is not mapped.
        let found = of(&[
            (0x40_0000, MIB, MIB),
            (DIRECT, 0, 3 * MIB),
            (DIRECT + 3 * MIB + 0x1000, 3 * MIB + 0x1000, 5 * MIB - 0x1000),
            (TEXT + MIB, MIB, 2 * MIB),
        ]);
        assert!(found.is_physical);
        let expected = [
            segment(DIRECT, 0, 8 * MIB, 0),
            segment(0x40_0000, NOT_PHYSICAL, MIB, MIB),
            segment(TEXT + MIB, NOT_PHYSICAL, 2 * MIB, MIB),
        ];
        assert_eq!(found.list, expected);
    }

    #[test]
    fn where_nothing_is_a_direct_map_only_what_is_mapped_is_there() {
        for mapped in [
            // A program's half, as with page-table isolation.
            &[(0x40_0000, MIB, 6 * MIB), (TEXT, 0, 2 * MIB)][..],
            // Too little.
            &[(DIRECT, 0, 4 * MIB)],
            // Another mapping where the direct map would go on.
            &[(DIRECT, 0, 6 * MIB), (DIRECT + 7 * MIB, MIB, 0x1000)],
        ] {
            let found = of(mapped);
            assert!(!found.is_physical, "{mapped:x?}");
            let expected: Vec<_> = mapped
                .iter()
                .map(|&(address, physical, length)| segment(address, physical, length, physical))
                .collect();
            assert_eq!(found.list, expected);
        }
    }

    #[test]
    fn memory_that_is_mapped_one_to_one_is_there_by_physical_address() {
        let found = of(&[(0, 0, 8 * MIB)]);
        assert!(found.is_physical);
        assert_eq!(found.list, [segment(0, 0, 8 * MIB, 0)]);
    }

    /// The memory behind the hole for devices has physical addresses of its own.
    #[test]
    fn memory_on_both_sides_of_the_hole_is_two_segments() {
        let memory = Memory::new((3 << 30) + 2 * MIB).unwrap();
        let whole = Mapping {
            address: DIRECT,
            physical: 0,
            length: 3 << 30,
        };
        let found = Segments::of(&memory, &[whole]);
        let expected = [
            segment(DIRECT, 0, 3 << 30, 0),
            segment(DIRECT + (4 << 30), 4 << 30, 2 * MIB, 3 << 30),
        ];
        assert_eq!(found.list, expected);
    }
}
