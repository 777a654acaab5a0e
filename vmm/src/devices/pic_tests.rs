use super::*;

const EDGE: Signal = Signal {
    high: false,
    rose: true,
};
const HIGH: Signal = Signal {
    high: true,
    rose: false,
};
const LOW: Signal = Signal {
    high: false,
    rose: false,
};

/// Both chips initialized as Linux does (vectors 0x30 and 0x38), with this ICW4, nothing masked.
fn pic(icw4: u8) -> Pic {
    let mut pic = Pic::new();
    for (slave, base, icw3) in [(false, 0x30, 4), (true, 0x38, 2)] {
        pic.write(slave, false, 0x11);
        pic.write(slave, true, base);
        pic.write(slave, true, icw3);
        pic.write(slave, true, icw4);
        pic.write(slave, true, 0);
    }
    pic
}

fn isr(pic: &mut Pic, slave: bool) -> u8 {
    pic.write(slave, false, 0x0b);
    let value = pic.read(slave, false);
    pic.write(slave, false, 0x0a);
    value
}

#[test]
fn nothing_is_requested_before_initialization() {
    let mut pic = Pic::new();
    pic.drive(0, EDGE);
    assert!(!pic.interrupt_pending());
    pic.write(false, false, 0x11);
    pic.drive(0, EDGE);
    assert!(!pic.interrupt_pending(), "in the middle of the initialization");
}

#[test]
fn icw1_resets_mask_latches_and_priorities() {
    let mut pic = pic(1);
    pic.write(false, true, 0xf0);
    pic.drive(5, EDGE);
    pic.write(false, false, 0xc3);
    pic.write(false, false, 0x11);
    assert_eq!(pic.read(false, true), 0);
    assert_eq!(pic.read(false, false), 0);
    assert_eq!(pic.master.top, 0);
}

#[test]
fn an_initialization_without_icw4_has_three_words() {
    let mut pic = pic(3);
    pic.write(false, false, 0x10);
    pic.write(false, true, 0x50);
    pic.write(false, true, 4);
    pic.write(false, true, 0xab);
    assert_eq!(pic.read(false, true), 0xab, "the fourth word is OCW1");
    assert!(!pic.master.auto_eoi, "without ICW4 its functions are off");
}

#[test]
fn a_single_chip_is_given_no_icw3() {
    let mut pic = pic(1);
    pic.write(false, false, 0x12);
    pic.write(false, true, 0x50);
    pic.write(false, true, 0xcd);
    assert_eq!(pic.read(false, true), 0xcd);
}

#[test]
fn acknowledge_takes_the_highest_priority_and_nests() {
    let mut pic = pic(1);
    pic.drive(4, EDGE);
    pic.drive(1, EDGE);
    assert_eq!(pic.acknowledge(), 0x31);
    assert!(!pic.interrupt_pending(), "4 waits behind 1");
    pic.drive(0, EDGE);
    assert_eq!(pic.acknowledge(), 0x30);
    assert_eq!(isr(&mut pic, false), 3);
    pic.write(false, false, 0x20);
    assert_eq!(isr(&mut pic, false), 2, "a non-specific EOI ends the highest");
    pic.write(false, false, 0x20);
    assert_eq!(pic.acknowledge(), 0x34);
}

#[test]
fn a_specific_eoi_ends_what_it_names() {
    let mut pic = pic(1);
    pic.drive(4, EDGE);
    pic.acknowledge();
    pic.drive(1, EDGE);
    pic.acknowledge();
    pic.write(false, false, 0x64);
    assert_eq!(isr(&mut pic, false), 2);
}

#[test]
fn the_cascade_carries_the_slave() {
    let mut pic = pic(1);
    pic.drive(8, EDGE);
    assert_eq!(pic.read(false, false), 4);
    assert_eq!(pic.acknowledge(), 0x38);
    assert_eq!((isr(&mut pic, false), isr(&mut pic, true)), (4, 1));
    pic.drive(9, EDGE);
    assert!(!pic.interrupt_pending());
    pic.write(true, false, 0x20);
    assert!(
        !pic.interrupt_pending(),
        "the master still has its cascade input in service"
    );
    pic.write(false, false, 0x20);
    assert_eq!(pic.acknowledge(), 0x39);
}

#[test]
fn special_fully_nested_mode_lets_the_slave_nest() {
    let mut pic = pic(0x11);
    pic.drive(9, EDGE);
    assert_eq!(pic.acknowledge(), 0x39);
    pic.drive(8, EDGE);
    assert_eq!(pic.acknowledge(), 0x38);
}

#[test]
fn a_masked_request_waits_in_the_latch() {
    let mut pic = pic(1);
    pic.write(false, true, 0xff);
    assert!(!pic.would_notice(3));
    pic.drive(3, EDGE);
    assert!(!pic.interrupt_pending());
    pic.write(false, true, 0);
    assert!(pic.interrupt_pending());
    assert!(!pic.would_notice(3), "requested already");
    assert!(pic.would_notice(12));
    pic.write(false, true, 4);
    assert!(!pic.would_notice(12), "masked at the cascade");
}

#[test]
fn without_a_request_the_vector_is_the_spurious_one() {
    let mut pic = pic(1);
    assert_eq!(pic.acknowledge(), 0x37);
    assert_eq!(isr(&mut pic, false), 0, "no bit is set for it");
    pic.set_elcr(false, 0x20);
    pic.drive(5, HIGH);
    assert!(pic.interrupt_pending());
    pic.drive(5, LOW);
    assert_eq!(pic.acknowledge(), 0x37, "the request vanished");
}

#[test]
fn the_slave_has_a_spurious_vector_too() {
    let mut pic = pic(1);
    // As if the slave's request vanished between the two INTA cycles.
    pic.master.irr = 4;
    assert_eq!(pic.acknowledge(), 0x3f);
    assert_eq!((isr(&mut pic, false), isr(&mut pic, true)), (4, 0));
}

#[test]
fn a_level_is_no_edge() {
    let mut pic = pic(1);
    pic.drive(5, HIGH);
    assert!(!pic.interrupt_pending());
    pic.drive(5, EDGE);
    assert_eq!(pic.acknowledge(), 0x35);
    pic.write(false, false, 0x20);
    pic.drive(5, HIGH);
    pic.write(false, false, 0x11);
    assert!(!pic.interrupt_pending(), "nor does an initialization make it one");
}

#[test]
fn a_level_requests_until_it_falls() {
    let mut pic = pic(1);
    pic.set_elcr(false, 0xff);
    assert_eq!(pic.elcr(false), 0xf8);
    pic.drive(5, HIGH);
    for _ in 0..2 {
        assert_eq!(pic.acknowledge(), 0x35);
        pic.write(false, false, 0x20);
    }
    pic.drive(5, LOW);
    assert!(!pic.interrupt_pending());
}

#[test]
fn automatic_eoi_leaves_nothing_in_service() {
    let mut pic = pic(3);
    pic.drive(4, EDGE);
    assert_eq!(pic.acknowledge(), 0x34);
    assert_eq!(isr(&mut pic, false), 0);
    pic.write(false, false, 0x80);
    pic.drive(4, EDGE);
    pic.acknowledge();
    assert_eq!(pic.master.top, 5, "rotation in automatic EOI mode");
}

#[test]
fn rotation_moves_the_priorities() {
    let mut pic = pic(1);
    pic.write(false, false, 0xc4);
    pic.drive(4, EDGE);
    pic.drive(6, EDGE);
    assert_eq!(pic.acknowledge(), 0x36, "4 has become the lowest");
    pic.write(false, false, 0xa0);
    pic.drive(6, EDGE);
    assert_eq!(pic.acknowledge(), 0x34, "and now 6 has");
    pic.write(false, false, 0xe4);
    assert_eq!((isr(&mut pic, false), pic.master.top), (0, 5));
}

#[test]
fn special_mask_mode_lets_lower_ones_in() {
    let mut pic = pic(1);
    pic.drive(1, EDGE);
    pic.acknowledge();
    pic.drive(5, EDGE);
    assert!(!pic.interrupt_pending());
    pic.write(false, true, 2);
    pic.write(false, false, 0x68);
    assert!(pic.interrupt_pending());
    pic.write(false, false, 0x48);
    assert!(!pic.interrupt_pending());
}

#[test]
fn a_poll_acknowledges() {
    let mut pic = pic(1);
    pic.write(false, false, 0x0c);
    assert_eq!(pic.read(false, false), 0);
    pic.drive(6, EDGE);
    pic.write(false, false, 0x0c);
    assert_eq!(pic.read(false, false), 0x86);
    assert_eq!(isr(&mut pic, false), 0x40);
}

impl Pic {
    /// A state that no sequence of accesses leads to.
    pub(in crate::devices) fn unsound() -> Self {
        let mut pic = Self::new();
        pic.slave.top = 200;
        pic
    }
}

#[test]
fn impossible_states_are_known() {
    let changes: [fn(&mut Pic); 6] = [
        |pic| pic.master.top = 8,
        |pic| pic.slave.base = 0x31,
        |pic| pic.master.elcr = 1,
        |pic| pic.master.master = false,
        |pic| pic.slave.master = true,
        |pic| pic.master.irr = 4,
    ];
    assert!(pic(1).is_sound());
    for (index, change) in changes.iter().enumerate() {
        let mut pic = pic(1);
        change(&mut pic);
        assert!(!pic.is_sound(), "{index}");
    }
}
