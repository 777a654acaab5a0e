use lockstep_proto::quantity::StopNumber;
use lockstep_proto::{Forced, Turn, VcpuState};

use super::*;

fn start() -> Continuity {
    Continuity::new(Devices::ANY, StopNumber::new(100), Some(digest(0)))
}

fn digest(fill: u8) -> Bytes {
    vec![fill; 16].into()
}

/// A batch whose forced turns have so many pages.
fn batch(first_stop: u64, last_stop: u64, deltas: &[u32]) -> Batch {
    let forced = |pages| {
        Some(Forced {
            vcpu: Some(VcpuState::default()),
            pages,
            slice_ns: 0,
        })
    };
    let turns = deltas
        .iter()
        .map(|&pages| Turn {
            forced: forced(pages),
            ..Turn::default()
        })
        .collect();
    Batch {
        first_stop,
        last_stop,
        digest: digest(last_stop as u8),
        turns,
        ..Batch::default()
    }
}

/// A chunk of pages from a frame number on.
fn chunk(first: u64, pages: usize) -> PageChunk {
    let mut frame_gaps = vec![1; pages];
    frame_gaps[0] = first;
    PageChunk {
        frame_gaps,
        data: Bytes::new(),
    }
}

fn end(last_stop: u64) -> End {
    End {
        reason: end::Reason::Halted.into(),
        last_stop,
        digest: digest(last_stop as u8),
        ..End::default()
    }
}

#[test]
fn batches_begin_where_the_one_before_ends() {
    let mut log = start();
    assert!(log.batch(&batch(99, 105, &[])).is_err());
    assert!(log.batch(&batch(101, 105, &[])).is_err());
    log.batch(&batch(100, 105, &[])).unwrap();
    assert!(log.batch(&batch(100, 105, &[])).is_err(), "again");
    log.batch(&batch(105, 105, &[])).unwrap();
    assert_eq!((log.stop(), log.digest()), (StopNumber::new(105), Some(&digest(105))));
}

#[test]
fn a_bad_batch_changes_nothing() {
    let mut log = start();
    log.pages(&chunk(1, 2)).unwrap();
    assert!(
        log.batch(&Batch {
            digest: Bytes::new(),
            ..batch(100, 105, &[2])
        })
        .is_err()
    );
    assert!(log.batch(&batch(100, 105, &[3])).is_err());
    assert_eq!(
        (log.stop(), log.digest(), log.at_boundary()),
        (StopNumber::new(100), Some(&digest(0)), false)
    );
    log.batch(&batch(100, 105, &[2])).unwrap();
}

#[test]
fn chunks_are_the_pages_of_the_forced_turns_in_order() {
    let accepts = |chunks: &[(u64, usize)], deltas: &[u32]| {
        let mut log = start();
        for &(first, pages) in chunks {
            log.pages(&chunk(first, pages)).unwrap();
            assert!(!log.at_boundary());
        }
        let result = log.batch(&batch(100, 101, deltas));
        assert!(log.at_boundary() || result.is_err());
        result.is_ok()
    };
    assert!(accepts(&[], &[]));
    assert!(accepts(&[], &[0, 0]));
    assert!(accepts(&[(7, 3)], &[3]));
    assert!(accepts(&[(7, 3)], &[0, 3, 0]));
    assert!(accepts(&[(7, 256), (263, 44)], &[300]));
    assert!(accepts(&[(7, 3), (7, 2)], &[3, 2]), "each turn begins anew");
    assert!(!accepts(&[(7, 3)], &[]), "pages for nobody");
    assert!(!accepts(&[(7, 3), (20, 1)], &[3]), "a chunk for nobody");
    assert!(!accepts(&[], &[1]), "no pages");
    assert!(!accepts(&[(7, 3)], &[4]), "too few");
    assert!(!accepts(&[(7, 3)], &[2]), "too many");
    assert!(!accepts(&[(7, 5)], &[3, 2]), "one chunk for two turns");
    assert!(!accepts(&[(7, 3), (9, 3)], &[6]), "chunks that overlap");
    assert!(!accepts(&[(17, 3), (7, 3)], &[6]), "chunks out of order");
}

#[test]
fn chunks_are_checked_and_limited() {
    let mut log = start();
    assert!(log.pages(&PageChunk::default()).is_err());
    for _ in 0..MAX_CHUNKS {
        log.pages(&chunk(1, 1)).unwrap();
    }
    assert!(matches!(
        log.pages(&chunk(1, 1)),
        Err(Violation::TooMuch {
            what: "chunks before a batch",
            ..
        })
    ));
}

#[test]
fn an_end_is_at_the_end() {
    let mut log = start();
    log.batch(&batch(100, 105, &[])).unwrap();
    assert!(log.end(&end(104)).is_err());
    assert!(
        log.end(&End {
            digest: digest(1),
            ..end(105)
        })
        .is_err()
    );
    assert!(log.end(&End { reason: 0, ..end(105) }).is_err());
    log.pages(&chunk(1, 1)).unwrap();
    assert!(log.end(&end(105)).is_err(), "chunks without their batch");

    let mut log = start();
    log.batch(&batch(100, 105, &[])).unwrap();
    log.end(&end(105)).unwrap();
    assert!(log.batch(&batch(105, 106, &[])).is_err());
    assert!(log.pages(&chunk(1, 1)).is_err());
    assert!(log.end(&end(105)).is_err());
}

#[test]
fn a_failed_recorder_may_have_stood_between_two_stops() {
    let mut log = start();
    let failed = End {
        reason: end::Reason::Failed.into(),
        digest: digest(1),
        ..end(100)
    };
    assert!(
        log.end(&End {
            last_stop: 101,
            ..failed.clone()
        })
        .is_err()
    );
    log.end(&failed).unwrap();
}

#[test]
fn after_a_seek_the_digest_is_not_known_until_the_next_batch() {
    let mut log = Continuity::new(Devices::ANY, StopNumber::new(100), None);
    log.batch(&batch(100, 105, &[])).unwrap();
    assert!(
        log.end(&End {
            digest: digest(1),
            ..end(105)
        })
        .is_err()
    );
    let mut log = Continuity::new(Devices::ANY, StopNumber::new(100), None);
    log.end(&End {
        digest: digest(1),
        ..end(100)
    })
    .unwrap();
}
