use super::*;
use crate::devices::testing::{BUFFERS, RAM_BYTES, Rig, Ring};

/// A ready queue of 16, and the driver's side of it.
fn queue(rig: &Rig) -> (Queue, Ring) {
    let ring = Ring::new(0, 0, 16);
    let mut queue = Queue::new(MAX_QUEUE_SIZE);
    (queue.size, queue.descriptors, queue.available, queue.used) = (16, ring.descriptors, ring.available, ring.used);
    queue.enable(&rig.ram).unwrap();
    (queue, ring)
}

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

#[test]
fn a_chain_is_split_into_what_is_read_and_written() {
    let rig = Rig::new();
    let (mut queue, mut ring) = queue(&rig);
    assert_eq!(queue.pop(&rig.ram), Ok(None));
    let head = ring.chain(
        &rig,
        &[
            (0x1000, 16, false),
            (0x2000, 0, false),
            (0x3000, 512, true),
            (0x4000, 1, true),
        ],
    );
    ring.offer(&rig, head);
    let chain = queue.pop(&rig.ram).unwrap().unwrap();
    assert_eq!(
        chain.readable,
        [Piece {
            address: 0x1000,
            bytes: 16
        }]
    );
    assert_eq!(
        chain.writable,
        [
            Piece {
                address: 0x3000,
                bytes: 512
            },
            Piece {
                address: 0x4000,
                bytes: 1
            }
        ]
    );
    assert_eq!(queue.pop(&rig.ram), Ok(None));
    queue.put_back();
    assert_eq!(queue.pop(&rig.ram).unwrap().unwrap(), chain);
}

#[test]
fn an_indirect_table_is_followed() {
    let rig = Rig::new();
    let (mut queue, mut ring) = queue(&rig);
    let mut table = Vec::new();
    for (address, flags, next) in [(0x1000_u64, F_NEXT, 1_u16), (0x2000, F_WRITE, 0)] {
        table.extend(address.to_le_bytes());
        table.extend(64_u32.to_le_bytes());
        table.extend(flags.to_le_bytes());
        table.extend(next.to_le_bytes());
    }
    rig.poke(BUFFERS, &table);
    ring.set_descriptor(&rig, 3, BUFFERS, 32, F_INDIRECT, 0);
    ring.offer(&rig, 3);
    let chain = queue.pop(&rig.ram).unwrap().unwrap();
    assert_eq!((chain.head, chain.readable.len(), chain.writable.len()), (3, 1, 1));
    // A table whose length is no multiple of a descriptor's.
    ring.set_descriptor(&rig, 3, BUFFERS, 33, F_INDIRECT, 0);
    ring.offer(&rig, 3);
    assert!(queue.pop(&rig.ram).is_err());
}

#[test]
fn what_a_driver_must_not_do_is_malformed() {
    // Each: descriptors as (address, length, flags, next), and the head.
    type Case = (&'static str, &'static [(u64, u32, u16, u16)], u16);
    let cases: &[Case] = &[
        ("head out of range", &[], 16),
        ("successor out of range", &[(0x1000, 16, F_NEXT, 16)], 0),
        ("circle", &[(0x1000, 16, F_NEXT, 1), (0x1000, 16, F_NEXT, 0)], 0),
        ("beyond RAM", &[(RAM_BYTES - 8, 16, 0, 0)], 0),
        ("beyond RAM, writable", &[(RAM_BYTES - 8, 16, F_WRITE, 0)], 0),
        ("wraps", &[(u64::MAX - 3, 16, 0, 0)], 0),
        ("longer than 4 GiB", &[(0, u32::MAX, F_NEXT, 1), (0, u32::MAX, 0, 0)], 0),
        (
            "readable after writable",
            &[(0x1000, 16, F_NEXT | F_WRITE, 1), (0x1000, 16, 0, 0)],
            0,
        ),
        ("table beyond RAM", &[(RAM_BYTES, 32, F_INDIRECT, 0)], 0),
        ("table that is empty", &[(0x1000, 0, F_INDIRECT, 0)], 0),
    ];
    for (name, descriptors, head) in cases {
        let rig = Rig::new();
        let (mut queue, mut ring) = queue(&rig);
        for (index, &(address, len, flags, next)) in descriptors.iter().enumerate() {
            ring.set_descriptor(&rig, index as u16, address, len, flags, next);
        }
        ring.offer(&rig, *head);
        assert!(queue.pop(&rig.ram).is_err(), "{name}");
    }
}

#[test]
fn a_chain_longer_than_the_longest_queue_is_malformed() {
    let rig = Rig::new();
    let (mut queue, mut ring) = queue(&rig);
    for (descriptors, taken) in [(256_u16, true), (257, false)] {
        let mut table = Vec::new();
        for index in 1..=descriptors {
            table.extend(0x1000_u64.to_le_bytes());
            table.extend(1_u32.to_le_bytes());
            table.extend(if index < descriptors { F_NEXT } else { 0 }.to_le_bytes());
            table.extend(index.to_le_bytes());
        }
        rig.poke(BUFFERS, &table);
        ring.set_descriptor(&rig, 0, BUFFERS, table.len() as u32, F_INDIRECT, 0);
        ring.offer(&rig, 0);
        assert_eq!(queue.pop(&rig.ram).is_ok(), taken, "{descriptors}");
    }
}

#[test]
fn an_available_index_too_far_ahead_is_malformed() {
    let rig = Rig::new();
    let (mut queue, ring) = queue(&rig);
    rig.poke(ring.available + 2, &17_u16.to_le_bytes());
    assert!(queue.pop(&rig.ram).is_err());
}

#[test]
fn only_a_queue_in_ram_becomes_ready() {
    let rig = Rig::new();
    let (good, _) = queue(&rig);
    let end = RAM_BYTES;
    let changes: &[fn(&mut Queue, u64)] = &[
        |queue, _| queue.size = 0,
        |queue, _| queue.size = 12,
        |queue, _| queue.size = 512,
        |queue, _| queue.descriptors += 8,
        |queue, _| queue.available += 1,
        |queue, _| queue.used += 2,
        |queue, _| queue.available = 0,
        |queue, end| queue.descriptors = end - 16,
        |queue, end| queue.available = end - 16,
        |queue, end| queue.used = end - 16,
        |queue, _| queue.used = u64::MAX - 3,
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut bad = Queue {
            ready: false,
            ..good.clone()
        };
        change(&mut bad, end);
        assert!(bad.enable(&rig.ram).is_err() && !bad.ready, "change {index}");
    }
}

#[test]
fn used_buffers_and_the_interrupt_flag() {
    let rig = Rig::new();
    let (mut queue, mut ring) = queue(&rig);
    for round in 0..40 {
        queue.push_used(&rig.ram, round % 16, u32::from(round)).unwrap();
        assert_eq!(ring.used(&rig), [(u32::from(round) % 16, u32::from(round))]);
    }
    assert!(queue.push_used(&rig.ram, 16, 0).is_err());
    assert_eq!(queue.wants_interrupt(&rig.ram), Ok(true));
    rig.poke(ring.available, &[1, 0]);
    assert_eq!(queue.wants_interrupt(&rig.ram), Ok(false));
}

#[test]
fn writes_mark_the_dirty_bitmap() {
    use vm_memory::GuestMemoryRegion;
    use vm_memory::bitmap::Bitmap;
    let rig = Rig::new();
    let dirty = |address: u64| {
        use vm_memory::GuestMemoryBackend;
        rig.ram
            .find_region(GuestAddress(address))
            .unwrap()
            .bitmap()
            .dirty_at(address as usize)
    };
    let (mut queue, ring) = queue(&rig);
    assert!(!dirty(ring.used) && !dirty(BUFFERS));
    queue.push_used(&rig.ram, 0, 0).unwrap();
    assert!(dirty(ring.used));
    scatter(
        &rig.ram,
        &[Piece {
            address: BUFFERS,
            bytes: 4,
        }],
        b"data",
    )
    .unwrap();
    assert!(dirty(BUFFERS) && !dirty(BUFFERS + 4096));
}

#[test]
fn sections_of_pieces() {
    let pieces = [
        Piece {
            address: 0x1000,
            bytes: 10,
        },
        Piece {
            address: 0x2000,
            bytes: 5,
        },
    ];
    assert_eq!(total(&pieces), 15);
    assert_eq!(section(&pieces, 0, 15), pieces);
    assert_eq!(
        section(&pieces, 8, 4),
        [
            Piece {
                address: 0x1008,
                bytes: 2
            },
            Piece {
                address: 0x2000,
                bytes: 2
            }
        ]
    );
    assert_eq!(
        section(&pieces, 14, 100),
        [Piece {
            address: 0x2004,
            bytes: 1
        }]
    );
    assert_eq!(section(&pieces, 15, 1), []);
    assert_eq!(section(&pieces, 3, 0), []);
}
