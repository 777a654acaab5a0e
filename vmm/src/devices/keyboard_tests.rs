use super::super::testing::Rig;
use super::super::{Devices, Effect};
use super::*;

const DATA: u16 = 0x60;
const STATUS: u16 = 0x64;

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.init_pic();
    rig
}

const NOTHING: [u8; 0] = [];

/// Reads what waits, as a driver does that looks at the status.
fn flush(rig: &mut Rig) -> Vec<u8> {
    let mut bytes = Vec::new();
    while rig.inb(STATUS, 0) & OUTPUT_FULL != 0 {
        bytes.push(rig.inb(DATA, 0));
    }
    bytes
}

/// A command for the controller with its parameters; what it answers.
fn command(rig: &mut Rig, command: u8, parameters: &[u8]) -> Vec<u8> {
    rig.out(STATUS, command, 0);
    for &byte in parameters {
        rig.out(DATA, byte, 0);
    }
    flush(rig)
}

#[test]
fn every_byte_is_an_interrupt() {
    let mut rig = rig();
    rig.devices.keyboard_input(&CTRL_ALT_DEL).unwrap();
    let mut read = Vec::new();
    while let Some(irq) = rig.service() {
        assert_eq!(irq, 1);
        read.push(rig.inb(DATA, 0));
        rig.reload();
    }
    assert_eq!(read, CTRL_ALT_DEL);
    assert_eq!(rig.inb(STATUS, 0) & OUTPUT_FULL, 0);
}

#[test]
fn what_linux_asks_at_its_start_is_answered() {
    let mut rig = rig();
    assert_eq!(flush(&mut rig), NOTHING);
    assert_eq!(command(&mut rig, 0x20, &[]), [0x05], "interrupts, and no translation");
    assert_eq!(rig.inb(STATUS, 0), 0x1c, "command last, self test passed, not locked");
    assert_eq!(command(&mut rig, 0x60, &[0x54]), NOTHING);
    assert_eq!(command(&mut rig, 0x20, &[]), [0x14], "translation stays off");
    assert_eq!(command(&mut rig, 0xaa, &[]), [0x55]);
    assert_eq!(command(&mut rig, 0xab, &[]), [0x00]);
    assert_eq!(command(&mut rig, 0xd0, &[]), [0x03]);
    assert_eq!(command(&mut rig, 0xd1, &[0xdf]), NOTHING);
    assert_eq!(rig.take_effects(), []);
    // No mouse: the loop does not come back as a mouse's byte, and the test of its port fails.
    assert_eq!(command(&mut rig, 0xd3, &[0x5a]), [0x5a]);
    assert_eq!(rig.inb(STATUS, 0) & 0x20, 0);
    assert!(!matches!(command(&mut rig, 0xa9, &[])[..], [0x00 | 0xfa | 0xff] | []));
    // The keyboard.
    for (sent, answer) in [
        (&[0xf2][..], &[0xfa, 0xab, 0x83][..]),
        (&[0xff], &[0xfa, 0xaa]),
        (&[0xed, 0x02], &[0xfa, 0xfa]),
        (&[0xf3, 0x00], &[0xfa, 0xfa]),
        (&[0xf0, 0x00], &[0xfa, 0xfa, 0x02]),
        (&[0xee], &[0xee]),
        (&[0xf6], &[0xfa]),
        (&[0xf4], &[0xfa]),
        (&[0x12], &[0xfe]),
    ] {
        for &byte in sent {
            rig.out(DATA, byte, 0);
        }
        assert_eq!(flush(&mut rig), answer, "{sent:x?}");
    }
}

#[test]
fn a_keyboard_that_is_held_sends_later_and_one_that_is_off_never() {
    let mut rig = rig();
    command(&mut rig, 0xad, &[]);
    rig.devices.keyboard_input(&[0x14]).unwrap();
    assert_eq!((flush(&mut rig), rig.service()), (vec![], None));
    rig.reload();
    rig.out(STATUS, 0x60, 0);
    rig.out(DATA, 0x04, 0);
    assert_eq!(rig.service(), None, "let go, without its interrupt");
    assert_eq!(flush(&mut rig), [0x14]);
    rig.out(DATA, 0xf5, 0);
    assert_eq!(flush(&mut rig), [0xfa]);
    rig.devices.keyboard_input(&[0x14]).unwrap();
    assert_eq!(flush(&mut rig), NOTHING);
}

#[test]
fn the_keyboard_keeps_sixteen_bytes() {
    let mut rig = rig();
    assert_eq!(rig.devices.keyboard_room(), 16);
    assert!(rig.devices.keyboard_input(&[0x1c; 17]).is_err());
    rig.devices.keyboard_input(&[0x1c; 16]).unwrap();
    assert_eq!(rig.devices.keyboard_room(), 1, "one waits at the port");
    assert!(rig.devices.keyboard_input(&[0x1c; 2]).is_err());
    // Answers that nobody reads do not pile up.
    for _ in 0..100 {
        rig.out(DATA, 0xf2, 0);
    }
    assert_eq!(flush(&mut rig).len(), 16);
}

#[test]
fn the_output_port_resets() {
    let mut rig = rig();
    command(&mut rig, 0xd1, &[0xde]);
    assert_eq!(rig.take_effects(), [Effect::Reset]);
}

#[test]
fn a_saved_state_that_cannot_be_is_refused() {
    let mut keyboard = Keyboard::new();
    assert!(keyboard.is_sound());
    keyboard.queue = vec![0; QUEUE + 1];
    assert!(!keyboard.is_sound());
}

/// Of a machine of revision 1 that was just made, by a program that had no other.
const REVISION_1_STATE: u128 = 0x45df_da07_3297_bf64_1be3_52c5_7a02_f1e0;

/// What revision 1 was, and how it was saved by programs that had no other.
#[test]
fn revision_1_has_no_keyboard_and_its_state_as_ever() {
    let mut rig = Rig::of_revision(1);
    assert_eq!(xxhash_rust::xxh3::xxh3_128(&rig.devices.save()), REVISION_1_STATE);
    rig.init_pic();
    assert_eq!((rig.inb(DATA, 0), rig.inb(STATUS, 0)), (0xff, 0xfd));
    rig.out(STATUS, 0x20, 0);
    rig.out(DATA, 0xf2, 0);
    assert_eq!((rig.inb(DATA, 0), rig.inb(STATUS, 0)), (0xff, 0xfd));
    assert_eq!(rig.devices.keyboard_room(), 0);
    assert_eq!(rig.devices.keyboard_input(&[1]), Err(DeviceError::NoKeyboard));
    let saved = rig.devices.save();
    assert!(Devices::restore(&rig.config, &saved).is_ok());
    let newer = Rig::of_revision(2);
    assert!(Devices::restore(&newer.config, &saved).is_err());
    assert!(Devices::restore(&rig.config, &newer.devices.save()).is_err());
}

/// The same of revision 3, by a program that had no later one.
const REVISION_3_STATE: u128 = 0x07fd_3859_9655_a36b_8f9a_65ed_fe16_2fd0;

#[test]
fn revision_3_has_its_state_as_ever() {
    let rig = Rig::of_revision(3);
    let saved = rig.devices.save();
    assert_eq!(xxhash_rust::xxh3::xxh3_128(&saved), REVISION_3_STATE);
}

#[test]
fn other_revisions_are_refused() {
    for revision in [0, lockstep_proto::model::NEWEST_REVISION + 1, u32::MAX] {
        let mut config = Rig::new().config;
        config.model_revision = revision;
        assert_eq!(
            Devices::new(&config).unwrap_err(),
            DeviceError::Revision { wanted: revision }
        );
    }
}
