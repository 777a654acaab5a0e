//! Whatever a guest, a log or a snapshot does: no panic, and the same again gives the same bytes.

use proptest::prelude::*;

use super::testing::{BUFFERS, DISK, ENTROPY, NIC, RAM_BYTES, READ_ONLY_DISK, Rig, Ring, config};
use super::*;

/// Something that happens to the devices.
#[derive(Debug, Clone)]
enum Event {
    Pio {
        port: u16,
        write: bool,
        width: usize,
        value: u32,
        later: u64,
    },
    Mmio {
        address: u64,
        write: bool,
        width: usize,
        value: u64,
    },
    /// A register of a slot, aligned.
    Register {
        slot: usize,
        offset: u64,
        write: bool,
        value: u32,
    },
    Advance {
        later: u64,
    },
    Acknowledge,
    Console {
        bytes: Vec<u8>,
    },
    Keyboard {
        codes: Vec<u8>,
    },
    PowerButton,
    Frame {
        len: usize,
    },
    Complete {
        disk: usize,
        nth: usize,
        status: u8,
        exact: bool,
    },
    Entropy {
        exact: bool,
        len: usize,
    },
    /// A descriptor, an available entry with its index, and a notification.
    Descriptor {
        ring: usize,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    },
    Offer {
        ring: usize,
        head: u16,
    },
    Scribble {
        address: u64,
        value: u64,
    },
    Restart {
        ring: usize,
    },
}

fn port() -> impl Strategy<Value = u16> {
    let known = [
        0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x60, 0x61, 0x64, 0x70, 0x71, 0x71, 0x92, 0xcf8, 0xcf9,
        0x4d0, 0x4d1, 0x600, 0x601, 0x602, 0x603, 0x604, 0x605, 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd,
    ];
    prop_oneof![9 => prop::sample::select(known.to_vec()), 1 => any::<u16>()]
}

fn width() -> impl Strategy<Value = usize> {
    prop_oneof![6 => Just(1), 1 => Just(2), 1 => Just(4)]
}

fn later() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..20_000_u64, 3 => 0..30_000_000_u64, 1 => 0..100_000_000_000_u64]
}

fn guest_address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..0x400_u64).prop_map(|at| BUFFERS + at * 8),
        2 => 0x1_0000..0x3_0000_u64,
        1 => RAM_BYTES - 64..RAM_BYTES + 64,
        1 => any::<u64>(),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let pio = (port(), any::<bool>(), width(), any::<u32>(), later()).prop_map(|(port, write, width, value, later)| {
        Event::Pio {
            port,
            write,
            width,
            value,
            later,
        }
    });
    let mmio = (
        0..0x8000_u64,
        any::<bool>(),
        prop::sample::select(vec![1_usize, 2, 4, 8]),
        any::<u64>(),
    )
        .prop_map(|(at, write, width, value)| Event::Mmio {
            address: 0xd000_0000 + at,
            write,
            width,
            value,
        });
    let small = prop_oneof![4 => 0..20_u32, 1 => any::<u32>()];
    let register =
        (0..5_usize, 0..0x48_u64, any::<bool>(), small).prop_map(|(slot, word, write, value)| Event::Register {
            slot,
            offset: word * 4,
            write,
            value,
        });
    let len = prop_oneof![4 => prop::sample::select(vec![1_u32, 12, 16, 512, 1024, 1_526]), 1 => 0..2_000_u32, 1 => any::<u32>()];
    let descriptor = (0..5_usize, 0..16_u16, guest_address(), len, 0..8_u16, 0..17_u16).prop_map(
        |(ring, index, address, len, flags, next)| Event::Descriptor {
            ring,
            index,
            address,
            len,
            flags,
            next,
        },
    );
    // Requests' headers are scribbled where descriptors point to.
    let value = prop_oneof![4 => 0..16_u64, 1 => any::<u64>()];
    prop_oneof![
        12 => pio,
        2 => mmio,
        4 => register,
        3 => later().prop_map(|later| Event::Advance { later }),
        3 => Just(Event::Acknowledge),
        1 => prop::collection::vec(any::<u8>(), 0..70).prop_map(|bytes| Event::Console { bytes }),
        2 => prop::collection::vec(any::<u8>(), 0..18).prop_map(|codes| Event::Keyboard { codes }),
        1 => Just(Event::PowerButton),
        3 => (0..1_600_usize).prop_map(|len| Event::Frame { len }),
        3 => (0..2_usize, 0..4_usize, 0..4_u8, any::<bool>())
            .prop_map(|(disk, nth, status, exact)| Event::Complete { disk, nth, status, exact }),
        2 => (any::<bool>(), 0..300_usize).prop_map(|(exact, len)| Event::Entropy { exact, len }),
        10 => descriptor,
        10 => (0..5_usize, 0..17_u16).prop_map(|(ring, head)| Event::Offer { ring, head }),
        6 => (guest_address(), value).prop_map(|(address, value)| Event::Scribble { address, value }),
        2 => (0..5_usize).prop_map(|ring| Event::Restart { ring }),
    ]
}

/// A machine whose drivers are up, and everything that it lets out.
struct World {
    rig: Rig,
    rings: Vec<Ring>,
    now: u64,
    seen: Vec<u8>,
}

impl World {
    fn new() -> Self {
        let mut rig = Rig::new();
        rig.init_pic();
        let [disk] = rig.start(DISK);
        let [read_only] = rig.start(READ_ONLY_DISK);
        let [receive, transmit] = rig.start(NIC);
        let [entropy] = rig.start(ENTROPY);
        Self {
            rig,
            rings: vec![disk, read_only, receive, transmit, entropy],
            now: 0,
            seen: Vec::new(),
        }
    }

    fn apply(&mut self, event: &Event) {
        let Self { rig, rings, now, seen } = self;
        match event {
            Event::Pio {
                port,
                write,
                width,
                value,
                later,
            } => {
                *now += later;
                let mut data = value.to_le_bytes();
                if *write {
                    rig.devices.pio_write(*port, &data[..*width], *now, &mut rig.effects);
                } else {
                    rig.devices.pio_read(*port, &mut data[..*width], *now);
                    seen.extend(data);
                }
            }
            Event::Mmio {
                address,
                write,
                width,
                value,
            } => {
                let mut data = value.to_le_bytes();
                if *write {
                    rig.devices
                        .mmio_write(*address, &data[..*width], &rig.ram, &mut rig.effects);
                } else {
                    rig.devices.mmio_read(*address, &mut data[..*width]);
                    seen.extend(data);
                }
            }
            Event::Register {
                slot,
                offset,
                write: true,
                value,
            } => rig.write(*slot, *offset, *value),
            Event::Register {
                slot,
                offset,
                write: false,
                ..
            } => {
                let value = rig.read(*slot, *offset);
                seen.extend(value.to_le_bytes());
            }
            Event::Advance { later } => {
                *now += later;
                rig.devices.advance(*now);
            }
            Event::Acknowledge => seen.push(rig.devices.acknowledge()),
            Event::Console { bytes } => seen.push(u8::from(rig.devices.console_input(bytes).is_ok())),
            Event::Keyboard { codes } => {
                let room = rig.devices.keyboard_room();
                let taken = rig.devices.keyboard_input(codes).is_ok();
                assert_eq!(taken, codes.len() <= room);
                seen.extend([room as u8, u8::from(taken)]);
            }
            Event::PowerButton => {
                seen.push(u8::from(rig.devices.hears_power_button()));
                rig.devices.press_power_button().unwrap();
            }
            Event::Frame { len } => {
                seen.push(rig.devices.frame_room(0, &rig.ram) as u8);
                seen.push(u8::from(rig.devices.frame_input(0, &vec![7; *len], &rig.ram).is_ok()));
            }
            Event::Complete {
                disk,
                nth,
                status,
                exact,
            } => {
                let request = rig
                    .devices
                    .outstanding_disk_requests()
                    .filter(|it| it.disk == *disk as u32)
                    .nth(*nth);
                let Some(request) = request else { return };
                let bytes = match request.op {
                    DiskOp::Read { bytes, .. } if *status == 0 => Some(bytes as usize - usize::from(!exact)),
                    _ => None,
                };
                let data = bytes.map(|bytes| vec![5; bytes]);
                let (rig_ram, effects) = (&rig.ram, &mut rig.effects);
                let done = rig.devices.disk_completion(
                    *disk as u32,
                    request.request,
                    *status,
                    data.as_deref(),
                    rig_ram,
                    effects,
                );
                assert_eq!(done.is_ok(), *status < 3 && (*exact || bytes.is_none()));
            }
            Event::Entropy { exact, len } => {
                let wanted = rig.devices.outstanding_entropy_requests().next();
                let len = wanted.filter(|_| *exact).map_or(*len, |bytes| bytes as usize);
                let done = rig.devices.entropy_input(&vec![3; len], &rig.ram, &mut rig.effects);
                assert_eq!(done.is_ok(), wanted == Some(len as u32));
            }
            Event::Descriptor {
                ring,
                index,
                address,
                len,
                flags,
                next,
            } => {
                rings[*ring].set_descriptor(rig, *index, *address, *len, *flags, *next);
            }
            Event::Offer { ring, head } => {
                rings[*ring].offer(rig, *head);
                rings[*ring].kick(rig);
            }
            Event::Scribble { address, value } => {
                if address.checked_add(8).is_some_and(|end| end <= RAM_BYTES) {
                    rig.poke(*address, &value.to_le_bytes());
                }
            }
            Event::Restart { ring } => {
                let slot = rings[*ring].slot;
                match slot {
                    NIC => {
                        let [receive, transmit] = rig.start(NIC);
                        rings[2] = receive;
                        rings[3] = transmit;
                    }
                    slot => [rings[*ring]] = rig.start(slot),
                }
            }
        }
        seen.extend(postcard::to_stdvec(&rig.take_effects()).unwrap());
        seen.push(u8::from(rig.devices.interrupt_pending()));
        seen.extend(postcard::to_stdvec(&rig.devices.deadline()).unwrap());
    }

    fn memory(&self) -> Vec<u8> {
        self.rig.peek(0, 0x20_0000)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    /// Whatever happens, nothing panics; the same again gives the same bytes, and so does a machine that was saved and
    /// restored after every event.
    #[test]
    fn whatever_happens_is_deterministic(events in prop::collection::vec(event(), 1..250)) {
        let [mut first, mut second, mut third] = [World::new(), World::new(), World::new()];
        for event in &events {
            first.apply(event);
            second.apply(event);
            third.apply(event);
            third.rig.reload();
        }
        prop_assert_eq!(first.rig.devices.save(), second.rig.devices.save());
        prop_assert_eq!(first.rig.devices.save(), third.rig.devices.save());
        prop_assert_eq!(&first.seen, &second.seen);
        prop_assert_eq!(&first.seen, &third.seen);
        prop_assert!(first.memory() == second.memory() && first.memory() == third.memory());
    }

    /// `advance` may be called as often as one likes: what the guest sees does not depend on it, as long as it is called
    /// at the deadlines and before interrupts are acknowledged.
    #[test]
    fn idle_calls_of_advance_change_nothing(
        count in 2..5_000_u16, mode in prop::sample::select(vec![0_u8, 2, 3, 4]), rate in 0..16_u8, b in any::<u8>(),
        steps in prop::collection::vec(1..3_000_000_u64, 1..50),
    ) {
        let setup = || {
            let mut rig = Rig::new();
            rig.init_pic();
            rig.out(0x43, 0x30 | mode << 1, 0);
            let [low, high] = count.to_le_bytes();
            rig.out(0x40, low, 0);
            rig.out(0x40, high, 0);
            for (register, value) in [(0x0b, b & 0x7f), (0x0a, 0x20 | rate)] {
                rig.out(0x70, register, 0);
                rig.out(0x71, value, 0);
            }
            rig.out(0x70, 0x0c, 0);
            rig
        };
        let (mut lazy, mut eager) = (setup(), setup());
        let mut now = 0;
        for step in steps {
            let until = now + step;
            for part in 1..=4 {
                eager.devices.advance(now + step * part / 4);
            }
            // The lazy one is called at the deadlines only.
            while let Some(at) = lazy.devices.deadline().filter(|&at| at <= until) {
                lazy.devices.advance(at);
                prop_assert!(lazy.devices.deadline() != Some(at));
            }
            now = until;
            lazy.devices.advance(now);
            let serve = |rig: &mut Rig| (rig.service(), rig.service(), rig.inb(0x71, now), rig.service());
            prop_assert_eq!(serve(&mut lazy), serve(&mut eager));
        }
    }

    #[test]
    fn bytes_that_are_no_state_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = 1;
        }
        if let Ok(devices) = Devices::restore(&config(), &bytes) {
            prop_assert_eq!(devices.save(), bytes);
        }
    }
}
