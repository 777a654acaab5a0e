use super::*;
use crate::devices::testing::{BUFFERS, DISK, DISK_BYTES, RAM_BYTES, READ_ONLY_DISK, Rig, Ring};

const HEADER_AT: u64 = BUFFERS;
const DATA: u64 = BUFFERS + 0x1000;
const STATUS: u64 = BUFFERS + 0x800;
const NOT_YET: u8 = 0xaa;

fn header(rig: &Rig, kind: u32, sector: u64) {
    let mut raw = kind.to_le_bytes().to_vec();
    raw.extend([0; 4]);
    raw.extend(sector.to_le_bytes());
    rig.poke(HEADER_AT, &raw);
    rig.poke(STATUS, &[NOT_YET]);
}

/// A request as Linux makes it: header, data, status.
fn request(rig: &mut Rig, ring: &mut Ring, kind: u32, sector: u64, bytes: u32) -> u16 {
    header(rig, kind, sector);
    let writable = matches!(kind, blk::VIRTIO_BLK_T_IN | blk::VIRTIO_BLK_T_GET_ID);
    let mut buffers = vec![(HEADER_AT, 16, false)];
    if bytes > 0 {
        buffers.push((DATA, bytes, writable));
    }
    buffers.push((STATUS, 1, true));
    ring.send(rig, &buffers)
}

fn status(rig: &Rig) -> u8 {
    rig.peek(STATUS, 1)[0]
}

fn complete(rig: &mut Rig, request: u64, status: u8, data: Option<&[u8]>) -> Result<(), DeviceError> {
    rig.devices
        .disk_completion(0, request, status, data, &rig.ram, &mut rig.effects)
}

fn disk(request: u64, op: DiskOp) -> Effect {
    Effect::Disk(DiskRequest { disk: 0, request, op })
}

#[test]
fn reads() {
    let mut rig = Rig::new();
    rig.init_pic();
    let [mut ring] = rig.start(DISK);
    let head = request(&mut rig, &mut ring, blk::VIRTIO_BLK_T_IN, 3, 1024);
    assert_eq!(rig.take_effects(), [disk(0, DiskOp::Read { sector: 3, bytes: 1024 })]);
    assert_eq!((status(&rig), ring.used(&rig), rig.service()), (NOT_YET, vec![], None));
    rig.reload();
    let data: Vec<u8> = (0..1024).map(|index| (index % 251) as u8).collect();
    complete(&mut rig, 0, 0, Some(&data)).unwrap();
    assert_eq!(rig.peek(DATA, 1024), data);
    assert_eq!((status(&rig), ring.used(&rig)), (0, vec![(u32::from(head), 1025)]));
    assert_eq!(rig.service(), Some(5));
    assert_eq!(rig.devices.outstanding_disk_requests().count(), 0);
}

#[test]
fn a_layout_of_any_kind_is_the_same_request() {
    let mut rig = Rig::new();
    let [mut ring] = rig.start(DISK);
    header(&rig, blk::VIRTIO_BLK_T_IN, 1);
    // The header in two pieces; the status byte at the end of a piece of data.
    ring.send(
        &mut rig,
        &[
            (HEADER_AT, 7, false),
            (HEADER_AT + 7, 9, false),
            (DATA, 500, true),
            (DATA + 600, 13, true),
        ],
    );
    assert_eq!(rig.take_effects(), [disk(0, DiskOp::Read { sector: 1, bytes: 512 })]);
    complete(&mut rig, 0, 0, Some(&[7; 512])).unwrap();
    assert_eq!(rig.peek(DATA, 500), [7; 500]);
    assert_eq!(rig.peek(DATA + 600, 13), [&[7; 12][..], &[0]].concat());
}

#[test]
fn writes_are_captured_when_they_are_notified() {
    let mut rig = Rig::new();
    let [mut ring] = rig.start(DISK);
    rig.poke(DATA, &[1; 512]);
    let head = request(&mut rig, &mut ring, blk::VIRTIO_BLK_T_OUT, 4095, 512);
    rig.poke(DATA, &[2; 512]);
    let expected = DiskOp::Write {
        sector: 4095,
        data: vec![1; 512],
    };
    assert_eq!(rig.take_effects(), [disk(0, expected.clone())]);
    rig.reload();
    let again: Vec<_> = rig.devices.outstanding_disk_requests().collect();
    assert_eq!(
        again,
        [DiskRequest {
            disk: 0,
            request: 0,
            op: expected
        }],
        "the host can submit it again"
    );
    complete(&mut rig, 0, 0, None).unwrap();
    assert_eq!((status(&rig), ring.used(&rig)), (0, vec![(u32::from(head), 1)]));
}

#[test]
fn flush_discard_and_write_zeroes() {
    let mut rig = Rig::new();
    let [mut ring] = rig.start(DISK);
    request(&mut rig, &mut ring, blk::VIRTIO_BLK_T_FLUSH, 0, 0);
    let segment = |sector: u64, sectors: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    for (kind, flags) in [
        (blk::VIRTIO_BLK_T_DISCARD, 0),
        (blk::VIRTIO_BLK_T_WRITE_ZEROES, 0),
        (blk::VIRTIO_BLK_T_WRITE_ZEROES, 1),
    ] {
        rig.poke(DATA, &segment(4088, 8, flags));
        request(&mut rig, &mut ring, kind, 0, 16);
    }
    let expected = [
        disk(0, DiskOp::Flush),
        disk(
            1,
            DiskOp::Discard {
                sector: 4088,
                sectors: 8,
            },
        ),
        disk(
            2,
            DiskOp::WriteZeroes {
                sector: 4088,
                sectors: 8,
                unmap: false,
            },
        ),
        disk(
            3,
            DiskOp::WriteZeroes {
                sector: 4088,
                sectors: 8,
                unmap: true,
            },
        ),
    ];
    assert_eq!(rig.take_effects(), expected);
    for (kind, segment, expected) in [
        (blk::VIRTIO_BLK_T_DISCARD, segment(4089, 8, 0), STATUS_IOERR),
        (blk::VIRTIO_BLK_T_DISCARD, segment(u64::MAX, 8, 0), STATUS_IOERR),
        (blk::VIRTIO_BLK_T_DISCARD, segment(0, 0, 0), STATUS_IOERR),
        (blk::VIRTIO_BLK_T_WRITE_ZEROES, segment(0, u32::MAX, 0), STATUS_IOERR),
        (blk::VIRTIO_BLK_T_DISCARD, segment(0, 8, 1), STATUS_UNSUPP),
        (blk::VIRTIO_BLK_T_WRITE_ZEROES, segment(0, 8, 2), STATUS_UNSUPP),
        (
            blk::VIRTIO_BLK_T_WRITE_ZEROES,
            [segment(0, 8, 0), segment(8, 8, 0)].concat(),
            STATUS_IOERR,
        ),
        (blk::VIRTIO_BLK_T_DISCARD, vec![], STATUS_IOERR),
    ] {
        rig.poke(DATA, &segment);
        request(&mut rig, &mut ring, kind, 0, segment.len() as u32);
        assert_eq!(
            (status(&rig), rig.take_effects()),
            (expected, vec![]),
            "{kind} {segment:?}"
        );
    }
    // They complete in the order that the turns say.
    ring.used(&rig);
    for request in [2, 0, 3, 1] {
        complete(&mut rig, request, 0, None).unwrap();
    }
    assert_eq!(ring.used(&rig).len(), 4);
}

#[test]
fn get_id_is_answered_at_once() {
    let mut rig = Rig::new();
    let [mut ring] = rig.start(DISK);
    request(&mut rig, &mut ring, blk::VIRTIO_BLK_T_GET_ID, 0, 20);
    assert_eq!((status(&rig), rig.take_effects()), (0, vec![]));
    assert_eq!(rig.peek(DATA, 20), b"first\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    // A short buffer takes the beginning of it.
    rig.poke(DATA, &[9; 20]);
    ring.used(&rig);
    request(&mut rig, &mut ring, blk::VIRTIO_BLK_T_GET_ID, 0, 3);
    assert_eq!((status(&rig), rig.peek(DATA, 4)), (0, b"fir\x09".to_vec()));
    assert_eq!(ring.used(&rig)[0].1, 4);
}

#[test]
fn bad_requests_fail_without_an_effect() {
    let mut rig = Rig::new();
    let [mut ring] = rig.start(DISK);
    let [mut read_only] = rig.start(READ_ONLY_DISK);
    let (read, write) = (blk::VIRTIO_BLK_T_IN, blk::VIRTIO_BLK_T_OUT);
    let long = MAX_DATA as u32 + 512;
    for (kind, sector, bytes, expected) in [
        (read, DISK_BYTES / 512, 512, STATUS_IOERR),
        (read, DISK_BYTES / 512 - 1, 1024, STATUS_IOERR),
        (read, u64::MAX, 512, STATUS_IOERR),
        (write, u64::MAX, 512, STATUS_IOERR),
        (write, DISK_BYTES / 512, 512, STATUS_IOERR),
        (read, 0, 511, STATUS_IOERR),
        (write, 0, 513, STATUS_IOERR),
        (read, 0, 0, STATUS_IOERR),
        (write, 0, 0, STATUS_IOERR),
        (read, 0, long, STATUS_IOERR),
        (write, 0, long, STATUS_IOERR),
        (2, 0, 512, STATUS_UNSUPP),
        (u32::MAX, 0, 512, STATUS_UNSUPP),
    ] {
        request(&mut rig, &mut ring, kind, sector, bytes);
        assert_eq!(
            (status(&rig), rig.take_effects()),
            (expected, vec![]),
            "{kind} {sector} {bytes}"
        );
    }
    for kind in [write, blk::VIRTIO_BLK_T_DISCARD, blk::VIRTIO_BLK_T_WRITE_ZEROES] {
        let bytes = if kind == write { 512 } else { 16 };
        rig.poke(DATA, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        request(&mut rig, &mut read_only, kind, 0, bytes);
        assert_eq!(
            (status(&rig), rig.take_effects()),
            (STATUS_IOERR, vec![]),
            "read-only, {kind}"
        );
    }
    request(&mut rig, &mut read_only, read, 0, 512);
    let expected = DiskRequest {
        disk: 1,
        request: 0,
        op: DiskOp::Read { sector: 0, bytes: 512 },
    };
    assert_eq!(rig.take_effects(), [Effect::Disk(expected)]);
}

#[test]
fn requests_that_cannot_be_answered_need_a_reset() {
    for buffers in [
        &[(HEADER_AT, 16, false)][..],
        &[(HEADER_AT, 15, false), (STATUS, 1, true)],
        &[(STATUS, 1, true)],
        &[(HEADER_AT, 16, false), (RAM_BYTES, 1, true)],
    ] {
        let mut rig = Rig::new();
        let [mut ring] = rig.start(DISK);
        header(&rig, blk::VIRTIO_BLK_T_FLUSH, 0);
        ring.send(&mut rig, buffers);
        assert_eq!((rig.status(DISK), rig.take_effects()), (0x4f, vec![]), "{buffers:?}");
    }
}

#[test]
fn completions_that_cannot_be_are_refused() {
    let mut rig = Rig::new();
    let [mut ring] = rig.start(DISK);
    let read = |rig: &mut Rig, ring: &mut Ring| request(rig, ring, blk::VIRTIO_BLK_T_IN, 0, 512);
    read(&mut rig, &mut ring);
    request(&mut rig, &mut ring, blk::VIRTIO_BLK_T_FLUSH, 0, 0);
    let before = rig.devices.save();
    let unknown = rig.devices.disk_completion(2, 0, 0, None, &rig.ram, &mut rig.effects);
    assert_eq!(unknown, Err(DeviceError::UnknownDisk(2)));
    assert_eq!(
        complete(&mut rig, 2, 0, None),
        Err(DeviceError::NotOutstanding { disk: 0, request: 2 })
    );
    assert_eq!(complete(&mut rig, 0, 3, None), Err(DeviceError::UnknownStatus(3)));
    let length = |got| {
        Err(DeviceError::WrongLength {
            what: "data read",
            expected: 512,
            got,
        })
    };
    assert_eq!(complete(&mut rig, 0, 0, None), length(0));
    assert_eq!(complete(&mut rig, 0, 0, Some(&[0; 511])), length(511));
    assert_eq!(complete(&mut rig, 0, 0, Some(&[0; 513])), length(513));
    assert_eq!(
        complete(&mut rig, 0, 1, Some(&[0; 512])),
        Err(DeviceError::UnexpectedData)
    );
    assert_eq!(complete(&mut rig, 1, 0, Some(&[])), Err(DeviceError::UnexpectedData));
    assert_eq!(rig.devices.save(), before, "they changed nothing");
    complete(&mut rig, 0, 1, None).unwrap();
    assert_eq!(status(&rig), STATUS_IOERR);
    assert_eq!(
        complete(&mut rig, 0, 1, None),
        Err(DeviceError::NotOutstanding { disk: 0, request: 0 })
    );
}

#[test]
fn after_a_reset_completions_reach_no_memory() {
    for how in 0..2 {
        let mut rig = Rig::new();
        let [mut ring] = rig.start(DISK);
        request(&mut rig, &mut ring, blk::VIRTIO_BLK_T_IN, 0, 512);
        if how == 0 {
            rig.write(DISK, 0x70, 0);
        } else {
            rig.write(DISK, 0x44, 0);
        }
        let [mut ring] = rig.start(DISK);
        rig.reload();
        assert_eq!(
            rig.devices.outstanding_disk_requests().count(),
            1,
            "the host still has it"
        );
        complete(&mut rig, 0, 0, Some(&[7; 512])).unwrap();
        assert_eq!(
            (status(&rig), rig.peek(DATA, 1), ring.used(&rig)),
            (NOT_YET, vec![0], vec![])
        );
        rig.take_effects();
        request(&mut rig, &mut ring, blk::VIRTIO_BLK_T_FLUSH, 0, 0);
        assert_eq!(rig.take_effects(), [disk(1, DiskOp::Flush)], "numbers are never reused");
    }
}

#[test]
fn a_device_that_needs_a_reset_still_takes_completions() {
    let mut rig = Rig::new();
    let [mut ring] = rig.start(DISK);
    request(&mut rig, &mut ring, blk::VIRTIO_BLK_T_IN, 0, 512);
    ring.offer(&rig, 99);
    ring.kick(&mut rig);
    assert_eq!(rig.status(DISK), 0x4f);
    complete(&mut rig, 0, 0, Some(&[7; 512])).unwrap();
    assert_eq!((status(&rig), ring.used(&rig)), (NOT_YET, vec![]));
}

#[test]
fn requests_beyond_the_limit_wait_in_the_ring() {
    let mut rig = Rig::new();
    let mut ring = Ring::new(DISK, 0, 256);
    rig.start::<1>(DISK);
    rig.write(DISK, 0x44, 0);
    ring.enable(&mut rig);
    header(&rig, blk::VIRTIO_BLK_T_FLUSH, 0);
    let head = ring.chain(&rig, &[(HEADER_AT, 16, false), (STATUS, 1, true)]);
    for _ in 0..MAX_OUTSTANDING + 2 {
        ring.offer(&rig, head);
    }
    ring.kick(&mut rig);
    assert_eq!(rig.take_effects().len(), MAX_OUTSTANDING);
    ring.kick(&mut rig);
    assert_eq!(rig.take_effects(), []);
    complete(&mut rig, 0, 0, None).unwrap();
    assert_eq!(rig.take_effects(), [disk(MAX_OUTSTANDING as u64, DiskOp::Flush)]);
    // Resets do not make room either: the host has these requests still.
    let [mut ring] = rig.start(DISK);
    request(&mut rig, &mut ring, blk::VIRTIO_BLK_T_FLUSH, 0, 0);
    assert_eq!(rig.take_effects(), []);
    complete(&mut rig, 1, 0, None).unwrap();
    assert_eq!(rig.take_effects(), [disk(MAX_OUTSTANDING as u64 + 1, DiskOp::Flush)]);
}

#[test]
fn the_configuration_is_the_disks() {
    let mut rig = Rig::new();
    assert_eq!(rig.read(DISK, 0x100), (DISK_BYTES / 512) as u32);
    assert_eq!(
        (rig.read(DISK, 0x108), rig.read(DISK, 0x10c), rig.read(DISK, 0x114)),
        (16 << 10, 64, 512)
    );
    assert_eq!(
        rig.read(DISK, 0x10) & 0x7fff_ffff & !(1 << 28),
        1 << 1 | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 13 | 1 << 14
    );
    assert_eq!(
        rig.read(READ_ONLY_DISK, 0x10) & !(1 << 28),
        1 << 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9
    );
    let bad = |bytes, serial: &str| {
        Block::new(
            0,
            &lockstep_proto::DiskConfig {
                bytes,
                read_only: false,
                serial: serial.to_owned(),
            },
        )
        .is_err()
    };
    assert!(bad(0, "") && bad(513, "") && bad(512, "twenty-one characters") && bad(512, "ä"));
    assert!(!bad(512, "twenty characters ok"));
}

#[test]
fn an_impossible_state_is_refused() {
    let config = lockstep_proto::DiskConfig {
        bytes: DISK_BYTES,
        read_only: true,
        serial: String::new(),
    };
    let mut block = Block::new(0, &config).unwrap();
    let it = |request, op| Outstanding {
        request,
        op,
        target: None,
    };
    let read = |sector, bytes| DiskOp::Read { sector, bytes };
    for outstanding in [
        vec![it(5, DiskOp::Flush)],
        vec![it(1, DiskOp::Flush), it(1, DiskOp::Flush)],
        vec![it(0, read(0, 100))],
        vec![it(0, read(u64::MAX, 512))],
        vec![it(
            0,
            DiskOp::Write {
                sector: 0,
                data: vec![0; 512],
            },
        )],
        (0..=MAX_OUTSTANDING as u64)
            .map(|request| it(request, DiskOp::Flush))
            .collect(),
        vec![Outstanding {
            request: 0,
            op: read(0, 512),
            target: Some(Target {
                head: 0,
                data: vec![Piece { address: 0, bytes: 1 }],
                status: 0,
            }),
        }],
    ] {
        let next_request = if outstanding.len() > 2 { 1_000 } else { 5 };
        assert!(
            block
                .set_state(BlockState {
                    next_request,
                    outstanding: outstanding.into()
                })
                .is_err()
        );
    }
    block
        .set_state(BlockState {
            next_request: 5,
            outstanding: vec![it(4, read(0, 512))].into(),
        })
        .unwrap();
}
