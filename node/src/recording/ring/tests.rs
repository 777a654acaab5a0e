use super::*;

const MB: u64 = 1_000_000;

fn part(number: u32, bytes: u64, begun: i64) -> Part {
    Part {
        number,
        directory: PathBuf::new(),
        bytes,
        start_bytes: 0,
        begun: Some(begun),
    }
}

fn ring(max_bytes: Option<u64>, max_age: Option<u64>) -> Limits {
    Limits {
        max_bytes,
        max_age: max_age.map(Duration::from_secs),
    }
}

#[test]
fn the_oldest_parts_go_where_there_is_no_room() {
    let parts = [part(4, 30, 0), part(5, 30, 100), part(6, 30, 200)];
    let surplus = |max, more| ring(Some(max), None).surplus(&parts, 6, more, i64::MAX);
    assert_eq!(surplus(90, 0), 0);
    assert_eq!(surplus(89, 0), 1);
    assert_eq!(surplus(90, 1), 1);
    assert_eq!(surplus(90, 31), 2);
    // The one that is written stays, whatever that means for the limit.
    assert_eq!(surplus(1, u64::MAX), 2);
    assert_eq!(ring(Some(1), None).surplus(&parts, 5, 0, 0), 1);
    assert_eq!(ring(None, None).surplus(&parts, 6, u64::MAX, i64::MAX), 0);
}

#[test]
fn a_part_goes_when_all_of_it_is_too_old() {
    // What is recorded in a part ends where the next one begins.
    let parts = [part(1, 1, 0), part(2, 1, 100), part(3, 1, 200)];
    let surplus = |now| ring(None, Some(60)).surplus(&parts, 3, 0, now);
    assert_eq!(surplus(159), 0);
    assert_eq!(surplus(160), 1);
    assert_eq!(surplus(259), 1);
    assert_eq!(surplus(260), 2);
    assert_eq!(surplus(i64::MAX), 2);
    // A clock that was set back makes nothing old.
    assert_eq!(surplus(-1_000_000), 0);
    // One whose successor is not whole yet is not over.
    let mut preparing = parts.to_vec();
    preparing[2].begun = None;
    assert_eq!(ring(None, Some(60)).surplus(&preparing, 3, 0, i64::MAX), 1);
    // Both limits bound.
    assert_eq!(ring(Some(1), Some(60)).surplus(&parts, 3, 0, 0), 2);
    assert_eq!(ring(Some(3), Some(60)).surplus(&parts, 3, 0, 160), 1);
}

#[test]
fn a_part_has_a_quarter_and_its_log_never_nothing() {
    let limits = ring(Some(100 * MB), Some(3600));
    assert_eq!(limits.log_share(5 * MB), Some(20 * MB));
    assert_eq!(limits.log_share(40 * MB), Some(6_250_000));
    assert_eq!(limits.part_age(), Some(Duration::from_secs(900)));
    let none = ring(None, None);
    assert_eq!(
        (none.log_share(1), none.part_age(), none.are_given()),
        (None, None, false)
    );
}

fn make(directory: &Path, number: u32, whole: bool) {
    let part = directory.join(name_of(number));
    fs::create_dir_all(&part).unwrap();
    fs::write(part.join("segment-00000000.lsl"), [1; 5000]).unwrap();
    if whole {
        fs::write(start_snapshot(&part), [1; 9000]).unwrap();
    }
}

#[test]
fn what_is_whole_outlives_the_process_and_numbers_go_on() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("lost+found")).unwrap();
    for (number, whole) in [(7, true), (9, true), (10, false)] {
        make(home.path(), number, whole);
    }
    let ring = Ring::open(home.path(), Limits::default()).unwrap();
    let parts = ring.parts().unwrap();
    let numbers: Vec<_> = parts.iter().map(|part| part.number).collect();
    assert_eq!(numbers, [7, 9]);
    assert!(parts[0].start_bytes >= 9000 && parts[0].bytes >= parts[0].start_bytes + 5000);
    assert_eq!(ring.make_next().unwrap().0, 10);
    ring.remove(&parts[0]).unwrap();
    assert_eq!(ring.parts().unwrap().len(), 2);
}

#[test]
fn one_process_records_into_a_ring_and_into_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let ring = Ring::open(home.path(), Limits::default()).unwrap();
    let refused = Ring::open(home.path(), Limits::default()).unwrap_err().to_string();
    assert!(refused.contains("another process"), "{refused}");
    drop(ring);
    fs::write(home.path().join("segment-00000000.lsl"), []).unwrap();
    let refused = Ring::open(home.path(), Limits::default()).unwrap_err().to_string();
    assert!(refused.contains("no ring"), "{refused}");
}

#[test]
fn room_is_made_before_a_start_state_comes() {
    let home = tempfile::tempdir().unwrap();
    for number in 1..=4 {
        make(home.path(), number, true);
    }
    let open = |max_bytes| {
        Ring::open(
            home.path(),
            Limits {
                max_bytes: Some(max_bytes),
                max_age: None,
            },
        )
        .unwrap()
    };
    let numbers = |ring: &Ring| ring.parts().unwrap().iter().map(|part| part.number).collect::<Vec<_>>();
    let bytes: u64 = parts(home.path()).unwrap().iter().map(|part| part.bytes).sum();
    // The memory of the last one twice, and a 32nd of it all.
    let enough = (bytes + 2 * 9000) * 32 / 31 + 1;
    let ring = open(enough);
    ring.make_room(0, None).unwrap();
    assert_eq!(numbers(&ring), [1, 2, 3, 4]);
    ring.make_room(1000, None).unwrap();
    assert_eq!(numbers(&ring), [2, 3, 4]);
    ring.make_room(u64::MAX, None).unwrap();
    assert_eq!(numbers(&ring), [4], "the one that is written stays");
    ring.make_room(u64::MAX, Some(u32::MAX)).unwrap();
    assert!(numbers(&ring).is_empty());
}
