use proptest::prelude::*;

use super::*;

const HZ: u128 = channel::HZ;

/// The first nanosecond at which so many clocks are over.
fn ns(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000).div_ceil(HZ) as u64
}

/// A timer whose counter was given this mode and count at `now`.
fn pit(counter: u16, mode: u8, count: u16, now: u64) -> Pit {
    let mut pit = Pit::new();
    pit.advance(now);
    pit.write(3, (counter as u8) << 6 | 0x30 | mode << 1, now);
    load(&mut pit, counter, count, now);
    pit
}

fn load(pit: &mut Pit, counter: u16, count: u16, now: u64) {
    let [low, high] = count.to_le_bytes();
    pit.write(counter, low, now);
    pit.write(counter, high, now);
    pit.line.take();
}

fn rose(pit: &mut Pit, now: u64) -> bool {
    pit.advance(now);
    pit.line.take().rose
}

fn out2(pit: &mut Pit, now: u64) -> bool {
    pit.advance(now);
    pit.read_port61(now) & 0x20 != 0
}

fn latched(pit: &mut Pit, counter: u16, now: u64) -> u16 {
    pit.advance(now);
    pit.write(3, (counter as u8) << 6, now);
    u16::from_le_bytes([pit.read(counter, now), pit.read(counter, now)])
}

proptest! {
    #[test]
    fn periodic_ticks_do_not_drift(start in 0..1_000_000_000_000_u64, count in 2..=65_535_u16, nth in 1..1_000_000_u64) {
        for mode in [2, 3] {
            let mut pit = pit(0, mode, count, start);
            let tick = start + ns(nth * u64::from(count));
            if nth > 1 {
                prop_assert!(rose(&mut pit, start + ns((nth - 1) * u64::from(count))));
            }
            prop_assert_eq!(pit.deadline(), Some(tick));
            prop_assert!(!rose(&mut pit, tick - 1));
            prop_assert!(rose(&mut pit, tick));
            prop_assert!(!rose(&mut pit, tick));
        }
    }

    #[test]
    fn a_count_never_leaves_its_range(mode in 0..6_u8, count: u16, now in 0..10_000_000_000_u64, at in 0..10_000_000_000_u64, bcd: bool) {
        let mut pit = Pit::new();
        pit.advance(now);
        pit.write(3, 0x30 | mode << 1 | u8::from(bcd), now);
        load(&mut pit, 0, count, now);
        let value = latched(&mut pit, 0, now + at);
        if bcd {
            prop_assert!((0..4).all(|digit| value >> (4 * digit) & 15 <= 9));
        } else if matches!(mode, 2 | 3) && count > 1 {
            prop_assert!(value <= count);
        }
    }
}

#[test]
fn the_tick_of_linux_at_100_hz() {
    // HZ=100 gives a count of 11932: 10,000,150.86 ns.
    let mut pit = pit(0, 2, 11_932, 0);
    assert_eq!(pit.deadline(), Some(10_000_151));
    assert!(rose(&mut pit, 6 * 10_000_151));
    assert_eq!(pit.deadline(), Some(70_001_056), "not seven times the rounded period");
}

#[test]
fn elapsed_periods_are_one_edge_and_the_phase_stays() {
    let mut pit = pit(0, 2, 1_000, 0);
    assert!(rose(&mut pit, ns(5_500)));
    assert!(!rose(&mut pit, ns(5_999)));
    assert_eq!(pit.deadline(), Some(ns(6_000)));
    assert!(rose(&mut pit, ns(6_000)));
}

#[test]
fn a_count_of_zero_is_65536() {
    assert_eq!(pit(0, 2, 0, 0).deadline(), Some(ns(65_536)));
    assert_eq!(pit(0, 2, 0, 7).deadline(), Some(7 + ns(65_536)));
}

#[test]
fn mode_0_rises_once_at_the_terminal_count() {
    let mut pit = pit(0, 0, 100, 50);
    assert!(!rose(&mut pit, 50 + ns(100) - 1));
    assert!(rose(&mut pit, 50 + ns(100)));
    assert_eq!(pit.deadline(), None);
    assert!(pit.line.is_high());
    assert_eq!(
        latched(&mut pit, 0, 50 + ns(103)),
        0xfffd,
        "the counter wraps and goes on"
    );
    pit.write(0, 5, 50 + ns(200));
    assert!(!pit.line.is_high(), "the first byte of a new count makes OUT low");
    assert_eq!(pit.deadline(), None, "and stops the counter");
}

#[test]
fn mode_4_strobes_once_for_each_count() {
    let mut pit = pit(0, 4, 100, 0);
    assert_eq!(pit.deadline(), Some(ns(101)), "low for the one clock after the count");
    assert!(!rose(&mut pit, ns(100)));
    assert!(!pit.line.is_high());
    assert!(rose(&mut pit, ns(101)));
    assert_eq!(pit.deadline(), None);
    // Linux's one-shot event: a count, without another control word.
    load(&mut pit, 0, 50, ns(300));
    assert_eq!(pit.deadline(), Some(ns(300) + ns(51)));
    // A new count before the old one is through starts over.
    load(&mut pit, 0, 50, ns(320));
    assert_eq!(pit.deadline(), Some(ns(320) + ns(51)));
}

#[test]
fn a_control_word_can_raise_out() {
    let mut pit = Pit::new();
    pit.write(3, 0x30, 0);
    assert!(!pit.line.take().high);
    pit.write(3, 0x38, 10);
    assert!(pit.line.take().rose, "from mode 0's low to mode 4's high");
}

#[test]
fn a_new_count_waits_for_the_end_of_the_period() {
    let mut pit = pit(0, 2, 1_000, 0);
    pit.advance(ns(300));
    load(&mut pit, 0, 10, ns(300));
    pit.write(3, 0xe2, ns(300));
    assert_eq!(pit.read(0, ns(300)) & 0x40, 0x40, "null count");
    assert_eq!(pit.deadline(), Some(ns(1_000)));
    assert!(rose(&mut pit, ns(1_000)));
    assert_eq!(pit.deadline(), Some(ns(1_000) + ns(10)));
    pit.write(3, 0xe2, ns(1_001));
    assert_eq!(pit.read(0, ns(1_001)) & 0x40, 0);
}

#[test]
fn mode_3_is_a_square_wave() {
    for (count, high) in [(10, 5), (11, 6)] {
        let mut pit = pit(2, 3, count, 0);
        pit.write_port61(1, 0);
        assert!(out2(&mut pit, 0));
        assert!(out2(&mut pit, ns(high) - 1));
        assert!(!out2(&mut pit, ns(high)));
        assert!(!out2(&mut pit, ns(u64::from(count)) - 1));
        assert!(out2(&mut pit, ns(u64::from(count))));
        let counts: Vec<_> = (0..u64::from(count))
            .map(|tick| latched(&mut pit, 2, ns(tick)))
            .collect();
        let expected: &[u16] = if count == 10 {
            &[10, 8, 6, 4, 2, 10, 8, 6, 4, 2]
        } else {
            &[10, 8, 6, 4, 2, 0, 10, 8, 6, 4, 2]
        };
        assert_eq!(counts, expected);
    }
}

#[test]
fn mode_2_is_low_for_one_clock() {
    let mut pit = pit(2, 2, 5, 0);
    pit.write_port61(1, 0);
    let wave: Vec<_> = (0..10)
        .map(|tick| (latched(&mut pit, 2, ns(tick)), out2(&mut pit, ns(tick))))
        .collect();
    let period = [(5, true), (4, true), (3, true), (2, true), (1, false)];
    assert_eq!(wave, [period, period].concat());
}

#[test]
fn the_gate_holds_modes_0_and_4() {
    for mode in [0, 4] {
        let mut pit = pit(2, mode, 1_000, 0);
        assert_eq!(latched(&mut pit, 2, ns(500)), 1_000, "counter 2's gate is low at first");
        pit.write_port61(1, ns(500));
        assert_eq!(latched(&mut pit, 2, ns(500) + ns(400)), 600);
        pit.write_port61(0, ns(900));
        let held = latched(&mut pit, 2, ns(5_000));
        assert!((599..=601).contains(&held));
        pit.write_port61(1, ns(5_000));
        let resumed = latched(&mut pit, 2, ns(5_100));
        assert!((held - 101..=held - 99).contains(&resumed));
    }
}

#[test]
fn the_gate_reloads_modes_2_and_3() {
    for mode in [2, 3] {
        let mut pit = pit(2, mode, 1_000, 0);
        pit.write_port61(1, 0);
        pit.advance(ns(990));
        pit.write_port61(0, ns(990));
        assert!(out2(&mut pit, ns(2_600)), "OUT is high while the gate is low");
        pit.write_port61(1, 7_000_000);
        assert_eq!(latched(&mut pit, 2, 7_000_000), 1_000);
    }
}

#[test]
fn modes_1_and_5_start_with_the_gate() {
    for (mode, at_start, at_end) in [(1, false, true), (5, true, false)] {
        let mut pit = pit(2, mode, 100, 0);
        assert!(out2(&mut pit, ns(5_000)));
        pit.write_port61(1, ns(5_000));
        let triggered = ns(5_000);
        assert_eq!(out2(&mut pit, triggered), at_start);
        assert_eq!(out2(&mut pit, triggered + ns(99)), at_start);
        assert_eq!(out2(&mut pit, triggered + ns(100)), at_end);
        assert!(out2(&mut pit, triggered + ns(101)));
        pit.write_port61(0, triggered + ns(200));
        pit.write_port61(1, triggered + ns(300));
        assert_eq!(
            out2(&mut pit, triggered + ns(300)),
            at_start,
            "it can be triggered again"
        );
    }
}

#[test]
fn a_latch_holds_until_it_is_read() {
    let mut pit = pit(0, 2, 1_000, 0);
    pit.write(3, 0, ns(100));
    pit.write(3, 0, ns(200));
    assert_eq!(u16::from_le_bytes([pit.read(0, ns(300)), pit.read(0, ns(300))]), 900);
    assert_eq!(
        u16::from_le_bytes([pit.read(0, ns(300)), pit.read(0, ns(300))]),
        700,
        "then reads are live again"
    );
}

#[test]
fn read_back_latches_status_before_count() {
    let mut pit = pit(0, 2, 1_000, 0);
    pit.write(3, 0xc2, ns(100));
    assert_eq!(pit.read(0, ns(100)), 0x80 | 0x30 | 2 << 1);
    assert_eq!(u16::from_le_bytes([pit.read(0, ns(500)), pit.read(0, ns(500))]), 900);
    pit.write(3, 0xe4, ns(100));
    assert_eq!(pit.read(1, ns(100)) & 0x40, 0x40, "counter 1 was given no count");
}

#[test]
fn single_byte_access() {
    let mut pit = Pit::new();
    pit.write(3, 0x14, 0);
    pit.write(0, 0x80, 0);
    assert_eq!(pit.deadline(), Some(ns(0x80)));
    assert_eq!(pit.read(0, ns(1)), 0x7f);
    assert_eq!(pit.read(0, ns(2)), 0x7e);
    pit.write(3, 0x24, 0);
    pit.write(0, 0x80, 0);
    assert_eq!(pit.deadline(), Some(ns(0x8000)));
    assert_eq!(pit.read(0, ns(1)), 0x7f);
}

#[test]
fn decimal_counts() {
    let mut pit = Pit::new();
    pit.write(3, 0x35, 0);
    load(&mut pit, 0, 0x1000, 0);
    assert_eq!(pit.deadline(), Some(ns(1_000)));
    assert_eq!(latched(&mut pit, 0, ns(1)), 0x0999);
    load(&mut pit, 0, 0, ns(1));
    assert_eq!(latched(&mut pit, 0, ns(1_000)), 0, "10000 reads as 0");
    assert_eq!(pit.deadline(), Some(ns(1_000) + ns(10_000)));
}

#[test]
fn port_61() {
    let mut pit = Pit::new();
    pit.write_port61(0xff, 0);
    assert_eq!(pit.read_port61(0) & 0xcf, 0x0f);
    assert_eq!(pit.read_port61(ns(17)) & 0x10, 0);
    assert_eq!(pit.read_port61(ns(18)) & 0x10, 0x10);
    assert_eq!(pit.read_port61(ns(36)) & 0x10, 0);
    assert_eq!(pit.read(3, 0), 0xff, "the control port cannot be read");
}

#[test]
fn the_end_of_time_is_no_panic() {
    for mode in 0..6 {
        let mut pit = pit(0, mode, 0, u64::MAX - 5);
        pit.advance(u64::MAX);
        let _ = (
            pit.deadline(),
            latched(&mut pit, 0, u64::MAX),
            pit.read_port61(u64::MAX),
        );
    }
}

impl Pit {
    /// A state that no sequence of accesses leads to.
    pub(in crate::devices) fn unsound() -> Self {
        Self {
            port61: 0xff,
            ..Self::new()
        }
    }
}

#[test]
fn impossible_states_are_known() {
    assert!(Pit::new().is_sound() && !Pit::unsound().is_sound());
    let mut pit = Pit::new();
    pit.channels[0].set_gate(false, 0);
    assert!(!pit.is_sound(), "counter 0's gate is tied high");
    let mut pit = Pit::new();
    pit.line.raise();
    assert!(!pit.is_sound());
}
