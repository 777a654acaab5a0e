use super::*;
use crate::devices::testing::{BUFFERS, MAC, NIC, Rig};

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 253) as u8).collect()
}

fn dropped(rig: &Rig) -> (u64, u64) {
    let counters = rig.devices.nic_counters(0).unwrap();
    (counters.rx_dropped, counters.tx_dropped)
}

#[test]
fn sends() {
    let mut rig = Rig::new();
    rig.init_pic();
    let [_, mut ring] = rig.start(NIC);
    let data = frame(1_514);
    rig.poke(BUFFERS + 12, &data);
    let head = ring.send(&mut rig, &[(BUFFERS, 1_526, false)]);
    assert_eq!(
        rig.take_effects(),
        [Effect::Frame {
            nic: 0,
            data: data.clone()
        }]
    );
    assert_eq!((ring.used(&rig), rig.service()), (vec![(u32::from(head), 0)], Some(7)));
    // The header on its own, as Linux does it for cloned packets; two frames for one notification.
    for _ in 0..2 {
        let head = ring.chain(&rig, &[(BUFFERS, 12, false), (BUFFERS + 12, 60, false)]);
        ring.offer(&rig, head);
    }
    ring.kick(&mut rig);
    let expected = Effect::Frame {
        nic: 0,
        data: data[..60].to_vec(),
    };
    assert_eq!(rig.take_effects(), [expected.clone(), expected]);
}

#[test]
fn what_is_no_frame_is_dropped() {
    let mut rig = Rig::new();
    let [_, mut ring] = rig.start(NIC);
    for (count, len) in [(1, 0), (2, 11), (3, 12 + 13), (4, 12 + MAX_FRAME as u32 + 1)] {
        ring.send(&mut rig, &[(BUFFERS, len, false)]);
        assert_eq!(
            (rig.take_effects(), dropped(&rig), ring.used(&rig).len()),
            (vec![], (0, count), 1),
            "{len}"
        );
    }
    ring.send(&mut rig, &[(BUFFERS, 12 + MAX_FRAME as u32, false)]);
    assert_eq!((rig.take_effects().len(), dropped(&rig)), (1, (0, 4)));
    assert_eq!(rig.status(NIC), 0xf);
}

#[test]
fn receives() {
    let mut rig = Rig::new();
    rig.init_pic();
    let [mut ring, _] = rig.start(NIC);
    assert_eq!(rig.devices.frame_room(0, &rig.ram), 0);
    let head = ring.send(&mut rig, &[(BUFFERS, 12, true), (BUFFERS + 0x1000, 1_518, true)]);
    assert_ne!(rig.devices.frame_room(0, &rig.ram), 0);
    rig.poke(BUFFERS, &[0xff; 12]);
    rig.reload();
    let data = frame(1_514);
    rig.devices.frame_input(0, &data, &rig.ram).unwrap();
    assert_eq!(rig.peek(BUFFERS, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(rig.peek(BUFFERS + 0x1000, 1_514), data);
    assert_eq!(
        (ring.used(&rig), rig.service()),
        (vec![(u32::from(head), 1_526)], Some(7))
    );
    assert_eq!(rig.devices.frame_room(0, &rig.ram), 0);
}

#[test]
fn frames_without_a_place_are_dropped_and_counted() {
    let mut rig = Rig::new();
    rig.devices.frame_input(0, &frame(60), &rig.ram).unwrap();
    assert_eq!(dropped(&rig), (1, 0), "no driver");
    let [mut ring, _] = rig.start(NIC);
    rig.devices.frame_input(0, &frame(60), &rig.ram).unwrap();
    assert_eq!(dropped(&rig), (2, 0), "no buffer");
    ring.send(&mut rig, &[(BUFFERS, 71, true)]);
    rig.devices.frame_input(0, &frame(60), &rig.ram).unwrap();
    assert_eq!(
        (dropped(&rig), ring.used(&rig)),
        ((3, 0), vec![]),
        "a buffer that is too small"
    );
    rig.devices.frame_input(0, &frame(59), &rig.ram).unwrap();
    assert_eq!(
        (dropped(&rig), ring.used(&rig).len()),
        ((3, 0), 1),
        "it is still there for a smaller one"
    );
    rig.write(NIC, 0x70, 0);
    assert_eq!(rig.devices.frame_room(0, &rig.ram), 0);
}

#[test]
fn inputs_that_cannot_be_are_refused() {
    let mut rig = Rig::new();
    assert_eq!(
        rig.devices.frame_input(1, &frame(60), &rig.ram),
        Err(DeviceError::UnknownNic(1))
    );
    assert!(rig.devices.frame_input(0, &frame(13), &rig.ram).is_err());
    assert!(
        rig.devices
            .frame_input(0, &frame(MAX_FRAME as usize + 1), &rig.ram)
            .is_err()
    );
    assert_eq!(dropped(&rig), (0, 0));
    assert_eq!(rig.devices.frame_room(1, &rig.ram), 0);
    assert_eq!(rig.devices.nic_counters(1), None);
}

#[test]
fn a_broken_receive_ring_needs_a_reset() {
    let mut rig = Rig::new();
    let [mut ring, _] = rig.start(NIC);
    ring.offer(&rig, 99);
    rig.devices.frame_input(0, &frame(60), &rig.ram).unwrap();
    assert_eq!(rig.status(NIC), 0x4f);
    assert_eq!(rig.devices.frame_room(0, &rig.ram), 0);
}

#[test]
fn the_configuration_is_the_interfaces() {
    let mut rig = Rig::new();
    let mut config = [0; 8];
    rig.devices
        .mmio_read(crate::devices::bus::slot_address(NIC) + 0x100, &mut config);
    assert_eq!(config, [MAC[0], MAC[1], MAC[2], MAC[3], MAC[4], MAC[5], 1, 0]);
    assert_eq!(rig.read(NIC, 0x10) & !(1 << 28), 1 << 5 | 1 << 16);
    let new = |mac: &[u8], mtu, revision| {
        let config = lockstep_proto::NicConfig {
            mac: mac.to_vec().into(),
            mtu,
        };
        Net::new(0, &config, revision)
    };
    for mac in [&[][..], &[2, 0, 0, 0, 0], &[3, 0, 0, 0, 0, 1], &[0; 6]] {
        assert!(new(mac, 0, MTU_REVISION).is_err(), "{mac:?}");
    }
    for (mtu, revision, fits) in [
        (0, 1, true),
        (9000, MTU_REVISION - 1, false),
        (9000, MTU_REVISION, true),
        (1279, MTU_REVISION, false),
        (65_521, MTU_REVISION, true),
        (65_522, MTU_REVISION, false),
        (9000 + 65_536, MTU_REVISION, false),
    ] {
        assert_eq!(new(&MAC, mtu, revision).is_ok(), fits, "{mtu} {revision}");
    }
    // A card that is told no MTU is as it was.
    let (plain, jumbo) = (new(&MAC, 0, 3).unwrap(), new(&MAC, 9000, 3).unwrap());
    assert_eq!(jumbo.features() ^ plain.features(), 1 << 3);
    assert_eq!(plain.config(), [&MAC[..], &[1, 0]].concat());
    assert_eq!(
        jumbo.config(),
        [&MAC[..], &[1, 0, 0, 0], &9000_u16.to_le_bytes()].concat()
    );
}
