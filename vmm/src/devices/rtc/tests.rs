use super::*;

const SECOND: u64 = NS;
/// 2023-11-14 22:13:20, a Tuesday.
const BASE: i64 = 1_700_000_000;

fn get(rtc: &mut Rtc, register: u8, now: u64) -> u8 {
    rtc.advance(now);
    rtc.select(register);
    rtc.read(now)
}

fn put(rtc: &mut Rtc, register: u8, value: u8, now: u64) {
    rtc.advance(now);
    rtc.select(register);
    rtc.write(value, now);
}

fn shown(rtc: &mut Rtc, now: u64) -> [u8; 8] {
    [CENTURY, YEAR, MONTH, DAY_OF_MONTH, WEEKDAY, HOURS, MINUTES, SECONDS].map(|register| get(rtc, register, now))
}

#[test]
fn shows_base_and_guest_time() {
    let mut rtc = Rtc::new(BASE);
    assert_eq!(shown(&mut rtc, 0), [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x13, 0x20]);
    assert_eq!(
        shown(&mut rtc, 45 * SECOND),
        [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x14, 0x05]
    );
    assert_eq!(get(&mut rtc, REGISTER_D, 0), VRT);
    assert_eq!(get(&mut rtc, REGISTER_B, 0), HOURS_24);
}

#[test]
fn a_clock_that_is_set_from_outside_shows_that_also_where_the_guest_had_set_it() {
    let mut rtc = Rtc::new(BASE);
    put(&mut rtc, REGISTER_B, SET | HOURS_24, 0);
    put(&mut rtc, YEAR, 0x99, 0);
    put(&mut rtc, REGISTER_B, HOURS_24, 0);
    assert_eq!(get(&mut rtc, YEAR, SECOND), 0x99);
    rtc.set_base(BASE);
    assert_eq!(
        shown(&mut rtc, 45 * SECOND),
        [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x14, 0x05]
    );
}

#[test]
fn binary_and_twelve_hours() {
    let mut rtc = Rtc::new(BASE);
    put(&mut rtc, REGISTER_B, BINARY, 0);
    assert_eq!(shown(&mut rtc, 0), [20, 23, 11, 14, 3, PM + 10, 13, 20]);
    let noon = 14 * 3_600 * SECOND;
    assert_eq!(get(&mut rtc, HOURS, noon - 2 * 3_600 * SECOND), 10);
    put(&mut rtc, REGISTER_B, 0, 0);
    assert_eq!(get(&mut rtc, HOURS, noon), 0x92);
    assert_eq!(get(&mut rtc, HOURS, 2 * 3_600 * SECOND), 0x12, "midnight is 12 AM");
}

#[test]
fn update_in_progress_before_each_second() {
    let mut rtc = Rtc::new(BASE);
    assert_eq!(get(&mut rtc, REGISTER_A, SECOND - UPDATE_NS - 1), 0x26);
    assert_eq!(get(&mut rtc, REGISTER_A, SECOND - UPDATE_NS), 0xa6);
    assert_eq!(get(&mut rtc, REGISTER_A, SECOND), 0x26);
    put(&mut rtc, REGISTER_B, SET, SECOND);
    assert_eq!(
        get(&mut rtc, REGISTER_A, 2 * SECOND - 1),
        0x26,
        "no updates while SET is on"
    );
    put(&mut rtc, REGISTER_A, 0xff, 2 * SECOND);
    assert_eq!(get(&mut rtc, REGISTER_A, 2 * SECOND), 0x7f, "UIP cannot be written");
}

#[test]
fn setting_the_time() {
    let mut rtc = Rtc::new(BASE);
    let now = 1_000 * SECOND;
    put(&mut rtc, REGISTER_B, SET | HOURS_24, now);
    for (register, value) in [
        (CENTURY, 0x19),
        (YEAR, 0x99),
        (MONTH, 0x12),
        (DAY_OF_MONTH, 0x31),
        (HOURS, 0x23),
        (MINUTES, 0x59),
        (SECONDS, 0x59),
    ] {
        put(&mut rtc, register, value, now);
    }
    assert_eq!(
        get(&mut rtc, SECONDS, now + 10 * SECOND),
        0x59,
        "it stands still while SET is on"
    );
    put(&mut rtc, REGISTER_B, HOURS_24, now + 10 * SECOND);
    assert_eq!(
        shown(&mut rtc, now + 10 * SECOND),
        [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59]
    );
    assert_eq!(shown(&mut rtc, now + 11 * SECOND), [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 0]);
}

#[test]
fn setting_without_set_takes_at_once() {
    let mut rtc = Rtc::new(BASE);
    put(&mut rtc, MINUTES, 0x45, 0);
    assert_eq!(shown(&mut rtc, 0), [0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x45, 0x20]);
}

#[test]
fn nonsense_in_the_time_registers_is_some_time() {
    for byte in 0..=255 {
        for b in [0, BINARY, HOURS_24, BINARY | HOURS_24] {
            let mut rtc = Rtc::new(BASE);
            put(&mut rtc, REGISTER_B, SET | b, 0);
            for register in TIME {
                put(&mut rtc, register, byte, 0);
                put(&mut rtc, register + 1, byte, 0);
            }
            put(&mut rtc, REGISTER_B, AIE | b, 0);
            let _ = (shown(&mut rtc, u64::MAX), rtc.deadline());
        }
    }
}

#[test]
fn register_c_clears_on_read() {
    let mut rtc = Rtc::new(BASE);
    assert_eq!(
        get(&mut rtc, REGISTER_C, SECOND),
        PIE | UIE,
        "flags are set without being enabled, IRQF is not"
    );
    assert_eq!(get(&mut rtc, REGISTER_C, SECOND), 0);
    assert!(!rtc.line.is_high());
    put(&mut rtc, REGISTER_B, UIE | HOURS_24, SECOND);
    assert_eq!(rtc.deadline(), Some(2 * SECOND));
    rtc.advance(2 * SECOND);
    assert!(rtc.line.take().rose);
    assert_eq!(rtc.deadline(), None, "the line is high already");
    assert_eq!(get(&mut rtc, REGISTER_C, 2 * SECOND), IRQF | UIE | PIE);
    assert!(!rtc.line.is_high());
    assert_eq!(rtc.deadline(), Some(3 * SECOND));
    put(&mut rtc, REGISTER_B, SET | UIE | HOURS_24, 2 * SECOND);
    assert_eq!(get(&mut rtc, REGISTER_B, 2 * SECOND) & UIE, 0, "SET clears UIE");
    assert_eq!(rtc.deadline(), None);
}

#[test]
fn periodic_rates() {
    let mut rtc = Rtc::new(BASE);
    put(&mut rtc, REGISTER_B, PIE | HOURS_24, 0);
    // Table 5 of the data sheet, with a 32.768 kHz time base.
    for (rate, hz) in [(1, 256), (2, 128), (3, 8_192), (6, 1_024), (15, 2)] {
        put(&mut rtc, REGISTER_A, 0x20 | rate, 0);
        get(&mut rtc, REGISTER_C, 0);
        assert_eq!(rtc.deadline(), Some(SECOND.div_ceil(hz)), "rate {rate}");
    }
    for a in [0x20, 0x76, 0x06] {
        put(&mut rtc, REGISTER_A, a, 0);
        assert_eq!(rtc.deadline(), None, "{a:#x}");
    }
    put(&mut rtc, REGISTER_A, 0x26, 0);
    rtc.advance(SECOND / 2 + 1);
    get(&mut rtc, REGISTER_C, SECOND / 2 + 1);
    assert_eq!(rtc.deadline(), Some((513 * SECOND).div_ceil(1_024)), "in phase");
}

#[test]
fn alarms() {
    let mut rtc = Rtc::new(BASE);
    put(&mut rtc, REGISTER_B, AIE | HOURS_24, 0);
    let mut alarm = |hours, minutes, seconds| {
        put(&mut rtc, HOURS_ALARM, hours, 0);
        put(&mut rtc, MINUTES_ALARM, minutes, 0);
        put(&mut rtc, SECONDS_ALARM, seconds, 0);
        rtc.deadline().map(|at| at / SECOND)
    };
    assert_eq!(alarm(0x22, 0x13, 0x21), Some(1));
    assert_eq!(alarm(0x22, 0x13, 0x20), Some(86_400), "that second has begun already");
    assert_eq!(alarm(0x22, 0x13, 0x19), Some(86_399));
    assert_eq!(alarm(0xff, 0xff, 0xff), Some(1));
    assert_eq!(alarm(0xff, 0xff, 0x10), Some(50));
    assert_eq!(alarm(0xff, 0x00, 0x00), Some(46 * 60 + 40));
    assert_eq!(alarm(0x05, 0xc0, 0xc0), Some(6 * 3_600 + 46 * 60 + 40));
    assert_eq!(alarm(0x24, 0, 0), None);
    assert_eq!(alarm(0, 0x60, 0), None);
}

#[test]
fn an_alarm_long_ago_still_counts() {
    let mut rtc = Rtc::new(BASE);
    put(&mut rtc, REGISTER_B, AIE | HOURS_24, 0);
    for (register, value) in [(HOURS_ALARM, 0x22), (MINUTES_ALARM, 0x14), (SECONDS_ALARM, 0)] {
        put(&mut rtc, register, value, 0);
    }
    rtc.advance(39 * SECOND);
    assert!(!rtc.line.is_high());
    rtc.advance(500 * SECOND);
    assert!(rtc.line.take().rose);
    assert_eq!(get(&mut rtc, REGISTER_C, 500 * SECOND) & (IRQF | AIE), IRQF | AIE);
}

#[test]
fn other_bytes_are_kept() {
    let mut rtc = Rtc::new(BASE);
    for register in (0x0e..0x80).filter(|&register| register != CENTURY) {
        put(&mut rtc, register, register ^ 0x55, 0);
    }
    for register in (0x0e..0x80).filter(|&register| register != CENTURY) {
        assert_eq!(get(&mut rtc, register | 0x80, 0), register ^ 0x55);
    }
    put(&mut rtc, REGISTER_D, 0, 0);
    assert_eq!(get(&mut rtc, REGISTER_D, 0), VRT);
}

impl Rtc {
    /// A state that no sequence of accesses leads to.
    pub(in crate::devices) fn unsound() -> Self {
        Self {
            bytes: vec![0; 127],
            ..Self::new(BASE)
        }
    }
}

#[test]
fn impossible_states_are_known() {
    assert!(Rtc::new(BASE).is_sound() && !Rtc::unsound().is_sound());
    assert!(
        !Rtc {
            index: 128,
            ..Rtc::new(BASE)
        }
        .is_sound()
    );
    assert!(
        !Rtc {
            flags: IRQF,
            ..Rtc::new(BASE)
        }
        .is_sound()
    );
}
