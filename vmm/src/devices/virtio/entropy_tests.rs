use super::*;
use crate::devices::testing::{BUFFERS, ENTROPY, Rig};

fn answer(rig: &mut Rig, bytes: &[u8]) -> Result<(), DeviceError> {
    rig.devices.entropy_input(bytes, &rig.ram, &mut rig.effects)
}

#[test]
fn fills_buffers_in_order() {
    let mut rig = Rig::new();
    rig.init_pic();
    let [mut ring] = rig.start(ENTROPY);
    let first = ring.send(&mut rig, &[(BUFFERS, 4, true), (BUFFERS + 16, 4, true)]);
    let second = ring.send(&mut rig, &[(BUFFERS + 32, 4096, true)]);
    assert_eq!(
        rig.take_effects(),
        [Effect::Entropy { bytes: 8 }, Effect::Entropy { bytes: 256 }]
    );
    rig.reload();
    assert_eq!(rig.devices.outstanding_entropy_requests().collect::<Vec<_>>(), [8, 256]);
    answer(&mut rig, b"abcdefgh").unwrap();
    assert_eq!(
        (rig.peek(BUFFERS, 4), rig.peek(BUFFERS + 16, 4)),
        (b"abcd".to_vec(), b"efgh".to_vec())
    );
    answer(&mut rig, &[7; 256]).unwrap();
    assert_eq!(rig.peek(BUFFERS + 32, 257), [&[7; 256][..], &[0]].concat());
    assert_eq!(ring.used(&rig), [(u32::from(first), 8), (u32::from(second), 256)]);
    assert_eq!(rig.service(), Some(9));
}

#[test]
fn answers_that_cannot_be_are_refused() {
    let mut rig = Rig::new();
    let [mut ring] = rig.start(ENTROPY);
    assert_eq!(answer(&mut rig, b""), Err(DeviceError::NoEntropyRequest));
    ring.send(&mut rig, &[(BUFFERS, 4, true)]);
    for bytes in [&b""[..], b"abc", b"abcde"] {
        let refused = DeviceError::WrongLength {
            what: "entropy",
            expected: 4,
            got: bytes.len(),
        };
        assert_eq!(answer(&mut rig, bytes), Err(refused));
    }
    assert_eq!(ring.used(&rig), []);
}

#[test]
fn a_buffer_without_room_comes_back() {
    let mut rig = Rig::new();
    let [mut ring] = rig.start(ENTROPY);
    let head = ring.send(&mut rig, &[(BUFFERS, 4, false)]);
    assert_eq!(
        (rig.take_effects(), ring.used(&rig)),
        (vec![], vec![(u32::from(head), 0)])
    );
}

#[test]
fn requests_beyond_the_limit_wait_and_resets_make_no_room() {
    let mut rig = Rig::new();
    let [mut ring] = rig.start(ENTROPY);
    for _ in 0..MAX_OUTSTANDING {
        ring.send(&mut rig, &[(BUFFERS, 4, true)]);
    }
    assert_eq!(rig.take_effects().len(), MAX_OUTSTANDING);
    let [mut ring] = rig.start(ENTROPY);
    ring.send(&mut rig, &[(BUFFERS, 8, true)]);
    assert_eq!(rig.take_effects(), []);
    answer(&mut rig, b"abcd").unwrap();
    assert_eq!(rig.take_effects(), [Effect::Entropy { bytes: 8 }]);
    assert_eq!(
        (rig.peek(BUFFERS, 4), ring.used(&rig)),
        (vec![0; 4], vec![]),
        "that one's buffer is gone"
    );
}

#[test]
fn an_impossible_state_is_refused() {
    let mut entropy = Entropy::default();
    let it = |bytes, target| Outstanding { bytes, target };
    let target = Some(Target {
        head: 0,
        data: vec![Piece { address: 0, bytes: 3 }],
    });
    for outstanding in [
        vec![it(0, None)],
        vec![it(257, None)],
        vec![it(4, target)],
        vec![it(4, None); 17],
    ] {
        assert!(
            entropy
                .set_state(EntropyState {
                    outstanding: outstanding.into()
                })
                .is_err()
        );
    }
}
