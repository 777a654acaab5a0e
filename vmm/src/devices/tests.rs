use super::testing::{BUFFERS, ENTROPY, Rig, config};
use super::*;

#[test]
fn where_nothing_answers_all_bits_are_one() {
    let mut rig = Rig::new();
    for port in [0, 0x68, 0x80, 0x2f8, 0x3e8, 0x2e8, 0xcf8, 0xcfc, 0xffff] {
        for width in [1, 2, 4] {
            let mut data = [0; 4];
            rig.devices.pio_read(port, &mut data[..width], 0);
            assert!(data[..width].iter().all(|&byte| byte == 0xff), "{port:#x}");
        }
    }
    let mut data = [0; 8];
    rig.devices.mmio_read(0xfee0_0000, &mut data);
    assert_eq!(data, [0xff; 8]);
}

#[test]
fn wide_accesses_are_byte_cycles() {
    let mut rig = Rig::new();
    rig.devices.pio_write(0x3f8, b"a\0", 0, &mut rig.effects);
    let mut data = [0; 4];
    rig.devices.pio_read(0x3fa, &mut data, 0);
    assert_eq!(data[1], 0x03, "line control");
    assert_eq!(rig.take_effects(), [Effect::Console(b"a".to_vec())]);
}

#[test]
fn console_bytes_of_one_stop_are_one_effect() {
    let mut rig = Rig::new();
    for byte in *b"hi" {
        rig.out(0x3f8, byte, 0);
    }
    rig.out(0xcf9, 4, 0);
    rig.out(0x3f8, b'!', 0);
    let console = |bytes: &[u8]| Effect::Console(bytes.to_vec());
    assert_eq!(rig.effects, [console(b"hi"), Effect::Reset, console(b"!")]);
}

#[test]
fn the_ways_to_reset() {
    for (port, values, resets) in [
        (0x64, &[0xfe][..], 1),
        (0x64, &[0xf0, 0xfc], 2),
        (0x64, &[0xff, 0xd1, 0x20, 0xaa], 0),
        (0xcf9, &[0x02], 0),
        (0xcf9, &[0x02, 0x06], 1),
        (0xcf9, &[0x0e], 1),
        (0x92, &[0x02, 0x00], 0),
        (0x92, &[0x03, 0x03], 1),
    ] {
        let mut rig = Rig::new();
        for &value in values {
            rig.out(port, value, 0);
        }
        assert_eq!(rig.effects, vec![Effect::Reset; resets], "{port:#x} {values:x?}");
    }
    let mut rig = Rig::new();
    // A guest looking for a PCI bus writes the double word around the reset control register.
    rig.devices
        .pio_write(0xcf8, &0x8000_0400_u32.to_le_bytes(), 0, &mut rig.effects);
    assert_eq!(rig.effects, []);
    assert_eq!(rig.inb(0x64, 0) & 3, 0, "ready for the reset command");
    assert_eq!(rig.inb(0x92, 0), 2);
}

/// Timer in mode 2 with 100 Hz, everything unmasked.
fn ticking() -> Rig {
    let mut rig = Rig::new();
    rig.init_pic();
    rig.out(0x43, 0x34, 0);
    rig.out(0x40, 0x9c, 0);
    rig.out(0x40, 0x2e, 0);
    rig
}

#[test]
fn the_timer_interrupts() {
    let mut rig = ticking();
    assert_eq!(rig.devices.deadline(), Some(10_000_151));
    rig.devices.advance(10_000_150);
    assert_eq!(rig.service(), None);
    rig.devices.advance(10_000_151);
    assert_eq!(rig.devices.deadline(), None, "it is requested already");
    assert_eq!(rig.service(), Some(0));
    assert_eq!(rig.devices.deadline(), Some(20_000_302));
    rig.devices.advance(95_000_000);
    assert_eq!(
        (rig.service(), rig.service()),
        (Some(0), None),
        "lost ticks are not queued"
    );
}

#[test]
fn an_access_with_time_lets_timers_run_first() {
    let mut rig = ticking();
    // A one-shot count is written after the tick was due, but nobody advanced the devices in between.
    rig.out(0x43, 0x30, 10_500_000);
    assert_eq!(rig.service(), Some(0));
}

#[test]
fn a_masked_timer_has_no_deadline_and_catches_up() {
    let mut rig = ticking();
    rig.out(0x21, 1, 0);
    assert_eq!(rig.devices.deadline(), None);
    rig.out(0x21, 0, 0);
    assert_eq!(rig.devices.deadline(), Some(10_000_151));
    rig.devices.advance(11_000_000);
    assert_eq!(rig.service(), Some(0));
}

#[test]
fn the_clock_interrupts_through_the_cascade() {
    let mut rig = Rig::new();
    rig.init_pic();
    rig.out(0x70, 0x0b, 0);
    rig.out(0x71, 0x12, 0);
    assert_eq!(rig.devices.deadline(), Some(1_000_000_000));
    rig.devices.advance(1_000_000_000);
    assert_eq!(rig.service(), Some(8));
    assert_eq!(rig.devices.deadline(), None, "register C was not read");
    rig.out(0x70, 0x0c, 0);
    assert_eq!(rig.inb(0x71, 1_000_000_000) & 0x90, 0x90);
    assert_eq!(rig.devices.deadline(), Some(2_000_000_000));
    rig.out(0xa1, 1, 0);
    assert_eq!(rig.devices.deadline(), None);
}

#[test]
fn the_console_interrupts() {
    let mut rig = Rig::new();
    rig.init_pic();
    rig.out(0x3f9, 1, 0);
    rig.devices.console_input(b"x").unwrap();
    assert_eq!(rig.service(), Some(4));
    assert_eq!(rig.inb(0x3f8, 0), b'x');
    assert_eq!(rig.devices.console_room(), 64);
    assert!(rig.devices.console_input(&[0; 65]).is_err());
}

#[test]
fn slots_are_bounded_and_named() {
    let mut config = config();
    let words = Devices::cmdline_words(&config);
    assert_eq!(words[0], "virtio_mmio.device=4K@0xd0000000:5");
    assert_eq!(words[3], "virtio_mmio.device=4K@0xd0003000:9");
    assert_eq!(words[4..], ["i8042.nopnp", "i8042.noaux", "i8042.dumbkbd"]);
    let without_keyboard = lockstep_proto::MachineConfig {
        model_revision: 1,
        ..config.clone()
    };
    assert_eq!(Devices::cmdline_words(&without_keyboard), words[..4]);
    config.nics = vec![config.nics[0].clone(); 4];
    assert_eq!(
        Devices::cmdline_words(&config)[6],
        "virtio_mmio.device=4K@0xd0006000:12"
    );
    Devices::new(&config).unwrap();
    config.nics.push(config.nics[0].clone());
    assert!(matches!(Devices::new(&config), Err(DeviceError::Config(_))));
}

#[test]
fn a_clock_beyond_its_years_is_refused() {
    for rtc_base in [-1, LAST_SECOND + 1, i64::MIN, i64::MAX] {
        assert!(Devices::new(&lockstep_proto::MachineConfig { rtc_base, ..config() }).is_err());
    }
    let mut rig = Rig::new();
    rig.devices = Devices::new(&lockstep_proto::MachineConfig {
        rtc_base: LAST_SECOND,
        ..config()
    })
    .unwrap();
    rig.out(0x70, 9, 0);
    assert_eq!((rig.inb(0x71, 0), rig.inb(0x71, u64::MAX) & 0xf0 <= 0x90), (0x99, true));
}

#[test]
fn damaged_states_are_refused() {
    let mut rig = Rig::new();
    let [mut ring] = rig.start(ENTROPY);
    ring.send(&mut rig, &[(BUFFERS, 8, true)]);
    let saved = rig.devices.save();
    let refused = |bytes: &[u8]| matches!(Devices::restore(&config(), bytes), Err(DeviceError::State(_)));
    for len in 0..saved.len() {
        assert!(refused(&saved[..len]), "cut at {len}");
    }
    assert!(refused(&[&saved[..], &[0]].concat()), "something after it");
    assert!(refused(&[&[2], &saved[1..]].concat()), "another version");
    let mut other = config();
    other.nics.clear();
    assert!(
        matches!(Devices::restore(&other, &saved), Err(DeviceError::State(_))),
        "of another machine"
    );
    let long = Devices::restore(&config(), &vec![1; MAX_STATE_TESTED]);
    assert_eq!(
        long.unwrap_err(),
        DeviceError::State("it is longer than any state of this machine")
    );
    // Any one byte changed: refused, or a state that encodes as exactly these bytes. Never a panic.
    for at in 0..saved.len() {
        for bit in 0..8 {
            let mut bytes = saved.clone();
            bytes[at] ^= 1 << bit;
            if let Ok(devices) = Devices::restore(&config(), &bytes) {
                assert_eq!(devices.save(), bytes);
            }
        }
    }
}

#[test]
fn impossible_states_are_refused() {
    let corruptions: [fn(&mut Devices); 3] = [
        |devices| devices.pic = Pic::unsound(),
        |devices| devices.pit = Pit::unsound(),
        |devices| devices.rtc = Rtc::unsound(),
    ];
    for corrupt in corruptions {
        let mut devices = Devices::new(&config()).unwrap();
        corrupt(&mut devices);
        assert!(matches!(
            Devices::restore(&config(), &devices.save()),
            Err(DeviceError::State(_))
        ));
    }
}

/// Longer than any state of the tests' machine.
const MAX_STATE_TESTED: usize = 2 * 64 * ((1 << 20) + 8192) + (1 << 20) + 1;
