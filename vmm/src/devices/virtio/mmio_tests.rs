use crate::devices::bus;
use crate::devices::testing::{BUFFERS, DISK, ENTROPY, NIC, RAM_BYTES, READ_ONLY_DISK, Rig, Ring};

const STATUS: u64 = 0x70;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const NEEDS_RESET: u32 = 0x40;

#[test]
fn identification() {
    let mut rig = Rig::new();
    for (slot, id, queues) in [(DISK, 2, 1), (READ_ONLY_DISK, 2, 1), (NIC, 1, 2), (ENTROPY, 4, 1)] {
        assert_eq!(rig.read(slot, 0x00), 0x7472_6976);
        assert_eq!(rig.read(slot, 0x04), 2);
        assert_eq!(rig.read(slot, 0x08), id);
        assert_eq!(rig.read(slot, 0xfc), 0);
        assert_eq!(rig.read(slot, 0xb0), u32::MAX, "no shared memory");
        for queue in 0..4 {
            rig.write(slot, 0x30, queue);
            assert_eq!(rig.read(slot, 0x34) > 0, queue < queues, "slot {slot} queue {queue}");
        }
    }
    assert_eq!(rig.read(ENTROPY + 1, 0), u32::MAX, "an empty slot");
}

#[test]
fn registers_take_aligned_words_only() {
    let mut rig = Rig::new();
    let base = bus::slot_address(DISK);
    for (offset, width) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 2)] {
        let mut data = vec![0; width];
        rig.devices.mmio_read(base + offset, &mut data);
        assert!(data.iter().all(|&byte| byte == 0xff), "{offset} {width}");
    }
    rig.devices.mmio_write(base + STATUS, &[1], &rig.ram, &mut rig.effects);
    rig.devices
        .mmio_write(base + STATUS, &[1; 8], &rig.ram, &mut rig.effects);
    assert_eq!(rig.status(DISK), 0);
}

#[test]
fn configuration_space_takes_all_widths() {
    let mut rig = Rig::new();
    let base = bus::slot_address(DISK) + 0x100;
    let sectors = crate::devices::testing::DISK_BYTES / 512;
    for width in [1, 2, 4, 8] {
        let mut data = vec![0; width];
        rig.devices.mmio_read(base, &mut data);
        assert_eq!(data, sectors.to_le_bytes()[..width]);
    }
    assert_eq!(rig.read(DISK, 0xffc), 0, "beyond the fields");
    let mut data = [0; 8];
    rig.devices.mmio_read(base + 0xefc, &mut data);
    assert_eq!(data, [0xff; 8], "beyond the slot");
    rig.write(DISK, 0x100, 7);
    assert_eq!(rig.read(DISK, 0x100), sectors as u32, "it cannot be written");
}

#[test]
fn features_are_offered_and_checked() {
    let mut rig = Rig::new();
    rig.write(DISK, 0x14, 1);
    assert_eq!(rig.read(DISK, 0x10), 1, "VERSION_1 and nothing else in the upper half");
    rig.write(DISK, 0x14, 2);
    assert_eq!(rig.read(DISK, 0x10), 0);
    rig.write(DISK, STATUS, 3);
    // Nothing accepted, not even VERSION_1.
    rig.write(DISK, STATUS, 0xb);
    assert_eq!(rig.status(DISK), 3);
    rig.write(DISK, 0x24, 1);
    rig.write(DISK, 0x20, 1 | 1 << 2);
    rig.write(DISK, STATUS, 0xb);
    assert_eq!(rig.status(DISK), 3, "accepted something that was not offered");
    rig.write(DISK, 0x20, 1);
    rig.write(DISK, STATUS, 0xf);
    assert_eq!(rig.status(DISK), 0xf);
    rig.write(DISK, 0x20, 0);
    rig.write(DISK, STATUS, 0xf);
    assert_eq!(rig.status(DISK), 0xf, "the choice was final");
}

#[test]
fn the_driver_is_up_only_with_features() {
    let mut rig = Rig::new();
    rig.write(DISK, STATUS, 7);
    assert_eq!(rig.status(DISK), 3);
    rig.write(DISK, STATUS, NEEDS_RESET | 0x80);
    assert_eq!(rig.status(DISK), 0x83, "NEEDS_RESET is the device's");
}

#[test]
fn a_ready_queue_cannot_be_moved() {
    let mut rig = Rig::new();
    let [mut ring] = rig.start(ENTROPY);
    rig.write(ENTROPY, 0x80, 0x5_0000);
    rig.write(ENTROPY, 0x38, 2);
    ring.send(&mut rig, &[(BUFFERS, 8, true)]);
    assert_eq!(rig.effects.len(), 1);
    assert_eq!(rig.read(ENTROPY, 0x44), 1);
    rig.write(ENTROPY, 0x44, 0);
    assert_eq!(rig.read(ENTROPY, 0x44), 0);
}

#[test]
fn a_notification_before_driver_ok_is_nothing() {
    let mut rig = Rig::new();
    let mut ring = Ring::new(ENTROPY, 0, 16);
    ring.enable(&mut rig);
    ring.send(&mut rig, &[(BUFFERS, 8, true)]);
    assert_eq!(rig.effects, []);
    // Neither is one for a queue that does not exist or is not ready.
    rig.start::<1>(ENTROPY);
    rig.write(ENTROPY, 0x50, 1);
    rig.write(ENTROPY, 0x50, u32::MAX);
    rig.write(ENTROPY, 0x44, 0);
    rig.write(ENTROPY, 0x50, 0);
    assert_eq!((rig.take_effects(), rig.status(ENTROPY)), (vec![], 0xf));
}

#[test]
fn a_broken_ring_needs_a_reset() {
    let mut rig = Rig::new();
    rig.init_pic();
    let [mut ring] = rig.start(ENTROPY);
    ring.send(&mut rig, &[(RAM_BYTES - 4, 8, true)]);
    assert_eq!(rig.status(ENTROPY), 0xf | NEEDS_RESET);
    assert_eq!(rig.read(ENTROPY, INTERRUPT_STATUS), 2, "a configuration change");
    assert_eq!(rig.service(), Some(9));
    ring.send(&mut rig, &[(BUFFERS, 8, true)]);
    assert_eq!(rig.effects, [], "it does nothing more");
    let [mut ring] = rig.start(ENTROPY);
    ring.send(&mut rig, &[(BUFFERS, 8, true)]);
    assert_eq!((rig.effects.len(), rig.status(ENTROPY)), (1, 0xf));
}

#[test]
fn a_queue_outside_ram_needs_a_reset() {
    let mut rig = Rig::new();
    rig.write(ENTROPY, 0x30, 0);
    rig.write(ENTROPY, 0x90, 0x1000);
    rig.write(ENTROPY, 0xa4, 0x1000);
    rig.write(ENTROPY, 0x44, 1);
    assert_eq!((rig.status(ENTROPY), rig.read(ENTROPY, 0x44)), (NEEDS_RESET, 0));
    assert_eq!(
        rig.read(ENTROPY, INTERRUPT_STATUS),
        0,
        "without a driver nobody is told"
    );
}

#[test]
fn edges_for_an_edge_triggered_input() {
    let mut rig = Rig::new();
    rig.init_pic();
    let [mut ring] = rig.start(ENTROPY);
    for _ in 0..2 {
        ring.send(&mut rig, &[(BUFFERS, 4, true)]);
    }
    rig.devices.entropy_input(b"aaaa", &rig.ram, &mut rig.effects).unwrap();
    assert_eq!(rig.service(), Some(9));
    rig.devices.entropy_input(b"bbbb", &rig.ram, &mut rig.effects).unwrap();
    assert_eq!(
        rig.service(),
        None,
        "the bit was set already; the driver has not looked yet"
    );
    // Another bit is another edge.
    ring.offer(&rig, 99);
    ring.kick(&mut rig);
    assert_eq!(rig.read(ENTROPY, INTERRUPT_STATUS), 3);
    assert_eq!(rig.service(), Some(9));
    rig.write(ENTROPY, INTERRUPT_ACK, 1);
    assert_eq!(rig.service(), Some(9), "an acknowledgement left a bit set");
    rig.write(ENTROPY, INTERRUPT_ACK, 2);
    assert_eq!(rig.service(), None);
    rig.write(ENTROPY, INTERRUPT_ACK, 3);
    assert_eq!((rig.service(), rig.read(ENTROPY, INTERRUPT_STATUS)), (None, 0));
}

#[test]
fn a_driver_that_polls_is_not_interrupted() {
    let mut rig = Rig::new();
    rig.init_pic();
    let [mut ring] = rig.start(ENTROPY);
    rig.poke(ring.available, &[1, 0]);
    ring.send(&mut rig, &[(BUFFERS, 4, true)]);
    rig.devices.entropy_input(b"aaaa", &rig.ram, &mut rig.effects).unwrap();
    assert_eq!(ring.used(&rig).len(), 1);
    assert_eq!((rig.service(), rig.read(ENTROPY, INTERRUPT_STATUS)), (None, 0));
}

#[test]
fn a_reset_puts_everything_back() {
    let mut rig = Rig::new();
    let fresh = rig.devices.save();
    let [mut ring, _] = rig.start(NIC);
    ring.send(&mut rig, &[(BUFFERS, 100, true)]);
    // Without an interrupt, which would stay in the interrupt controller.
    rig.poke(ring.available, &[1, 0]);
    rig.devices.frame_input(0, &[0; 60], &rig.ram).unwrap();
    assert_eq!(ring.used(&rig).len(), 1);
    assert_ne!(rig.devices.save(), fresh);
    rig.write(NIC, STATUS, 0);
    assert_eq!(rig.devices.save(), fresh);
}
