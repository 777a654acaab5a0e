use super::super::testing::Rig;
use super::super::{DeviceError, Devices, Effect};
use super::*;

const STATUS: u16 = 0x600;
const ENABLE: u16 = 0x602;
const CONTROL: u16 = 0x604;

/// Interrupts on, and the one of the button level-triggered as Linux has it (ELCR2, bit 6).
fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.init_pic();
    rig.out(0x4d1, 1 << 6, 0);
    rig
}

fn read(rig: &mut Rig, port: u16) -> u16 {
    let mut data = [0; 2];
    rig.devices.pio_read(port, &mut data, 0);
    u16::from_le_bytes(data)
}

fn write(rig: &mut Rig, port: u16, value: u16) {
    rig.devices.pio_write(port, &value.to_le_bytes(), 0, &mut rig.effects);
}

#[test]
fn a_press_interrupts_only_if_it_is_enabled() {
    let mut rig = rig();
    assert!(!rig.devices.hears_power_button());
    rig.devices.press_power_button().unwrap();
    assert_eq!((read(&mut rig, STATUS), rig.service()), (BUTTON, None));
    // What was pressed before counts as soon as somebody wants to hear.
    write(&mut rig, ENABLE, BUTTON);
    assert!(rig.devices.hears_power_button());
    assert_eq!(rig.service(), Some(14));
}

#[test]
fn a_status_is_cleared_by_writing_one_and_its_line_falls() {
    let mut rig = rig();
    write(&mut rig, ENABLE, BUTTON);
    rig.devices.press_power_button().unwrap();
    assert_eq!(rig.service(), Some(14));
    write(&mut rig, STATUS, !BUTTON);
    assert_eq!(read(&mut rig, STATUS), BUTTON);
    assert_eq!(rig.service(), Some(14), "a level is requested until it falls");
    write(&mut rig, STATUS, BUTTON);
    assert_eq!((read(&mut rig, STATUS), rig.service()), (0, None));
    rig.devices.press_power_button().unwrap();
    assert_eq!(rig.service(), Some(14), "the next press");
    write(&mut rig, ENABLE, 0);
    assert_eq!(rig.service(), None);
}

#[test]
fn registers_keep_what_they_have() {
    let mut rig = rig();
    write(&mut rig, ENABLE, 0xffff);
    write(&mut rig, STATUS, 0xffff);
    assert_eq!((read(&mut rig, STATUS), read(&mut rig, ENABLE)), (0, ENABLES));
    rig.out(ENABLE + 1, 1, 0);
    assert_eq!(read(&mut rig, ENABLE), 0x121, "the other half stays");
    assert_eq!(read(&mut rig, CONTROL), SCI_ENABLED, "ACPI mode");
    write(&mut rig, CONTROL, 0xdfff);
    assert_eq!(read(&mut rig, CONTROL), SCI_ENABLED | CONTROLS);
    write(&mut rig, CONTROL, 0);
    assert_eq!(read(&mut rig, CONTROL), SCI_ENABLED);
    assert_eq!(rig.effects, []);
}

#[test]
fn only_soft_off_ends_the_machine() {
    let mut rig = rig();
    for kind in 0..8_u16 {
        // As ACPICA does: the type, and then the same with SLP_EN.
        write(&mut rig, CONTROL, kind << SLEEP_TYPE_SHIFT);
        assert_eq!(rig.effects, []);
        write(&mut rig, CONTROL, kind << SLEEP_TYPE_SHIFT | SLEEP);
        let ends = rig.take_effects();
        if kind == u16::from(S5) {
            assert_eq!(ends, [Effect::PowerOff]);
        } else {
            assert_eq!(ends, [], "{kind}");
        }
        assert_eq!(read(&mut rig, CONTROL) & SLEEP, 0);
    }
    // The upper byte alone, as an 8-bit access.
    rig.out(CONTROL + 1, 0x34, 0);
    assert_eq!(rig.take_effects(), [Effect::PowerOff]);
}

#[test]
fn a_pressed_button_is_saved() {
    let mut rig = rig();
    write(&mut rig, ENABLE, BUTTON);
    rig.devices.press_power_button().unwrap();
    let saved = rig.devices.save();
    rig.reload();
    assert_eq!(rig.devices.save(), saved);
    assert!(rig.devices.hears_power_button());
    assert_eq!((read(&mut rig, STATUS), rig.service()), (BUTTON, Some(14)));
    assert!(Devices::restore(&rig.config, &saved[..saved.len() - 1]).is_err());
}

#[test]
fn a_saved_state_that_cannot_be_is_refused() {
    let corruptions: [fn(&mut Power); 4] = [
        |power| power.status = 1,
        |power| power.enable = 2,
        |power| power.control = SLEEP,
        |power| power.line.set(true),
    ];
    for corrupt in corruptions {
        let mut power = Power::new();
        assert!(power.is_sound());
        corrupt(&mut power);
        assert!(!power.is_sound(), "{power:?}");
    }
    let mut power = Power::new();
    (power.status, power.enable) = (BUTTON, BUTTON);
    assert!(!power.is_sound(), "the line is low");
}

#[test]
fn machines_of_before_have_none() {
    let mut rig = Rig::of_revision(3);
    rig.init_pic();
    assert_eq!(rig.devices.press_power_button(), Err(DeviceError::NoPowerButton));
    assert!(!rig.devices.hears_power_button());
    write(&mut rig, CONTROL, u16::from(S5) << SLEEP_TYPE_SHIFT | SLEEP);
    assert_eq!(rig.effects, []);
    assert_eq!((read(&mut rig, STATUS), read(&mut rig, CONTROL)), (0xffff, 0xffff));
    let newer = Rig::new();
    assert!(Devices::restore(&newer.config, &rig.devices.save()).is_err());
    assert!(Devices::restore(&rig.config, &newer.devices.save()).is_err());
}
