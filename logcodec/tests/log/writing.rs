//! What is written comes back, and what may not be written is refused.

use std::fs;

use lockstep_logcodec::segment::plain_name;
use lockstep_logcodec::{Ending, LogError, LogWriter, Record, Violation, WriterOptions};
use lockstep_proto::quantity::PageNumber;
use lockstep_proto::{Batch, Turn};

use crate::SMALL;
use crate::common::{
    START, append, batches, count_files, digest, end, files, fill, identity, options, read, sample, write,
};

#[test]
fn a_log_comes_back_from_one_segment_and_from_many() {
    for (segment_bytes, many) in [(64 << 20, false), (SMALL, true)] {
        let dir = tempfile::tempdir().unwrap();
        let records = write(dir.path(), 100, options(segment_bytes));
        let (got, ending) = read(dir.path()).unwrap();
        assert_eq!(got, records);
        let Some(Record::End(end)) = records.last() else {
            panic!()
        };
        assert_eq!(ending, Ending::Clean(end.clone()));
        assert_eq!(dir.path().join(plain_name(3)).exists(), many);
        assert_eq!(count_files(dir.path(), ".tmp"), 0);
    }
}

#[test]
fn counts_add_up_to_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogWriter::create(dir.path(), &identity(), options(SMALL)).unwrap();
    let records = fill(&mut log, 200);
    let end = end(log.stop().get());
    let summary = log.finish(end).unwrap();
    let on_disk: u64 = (0..summary.segments)
        .map(|number| fs::metadata(dir.path().join(plain_name(number))).unwrap().len())
        .sum();
    assert!(summary.segments > 3);
    assert_eq!(summary.counts.bytes(), on_disk);
    assert_eq!(summary.counts.batches.records, 200);
    assert_eq!(summary.counts.pages.records, records.len() as u64 - 200);
    assert_eq!(
        summary.counts.turns,
        batches(&records).map(|b| b.turns.len() as u64).sum::<u64>()
    );
}

#[test]
fn a_directory_with_a_log_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        1,
        WriterOptions {
            compress: true,
            ..WriterOptions::default()
        },
    );
    let error = LogWriter::create(dir.path(), &identity(), WriterOptions::default()).unwrap_err();
    assert!(matches!(error, LogError::LogExists { .. }), "{error}");
}

fn refused(log: &mut LogWriter, batch: &Batch) -> Violation {
    match log.append_batch(batch) {
        Err(LogError::Refused(violation)) => violation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_refused_leaves_the_log_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogWriter::create(dir.path(), &identity(), WriterOptions::default()).unwrap();
    let mut records = fill(&mut log, 2);
    let batch = |first_stop, last_stop, turns| Batch {
        first_stop,
        last_stop,
        digest: digest(last_stop),
        turns,
        ..Batch::default()
    };
    let at = log.stop().get();
    refused(&mut log, &batch(at + 1, at + 2, vec![]));
    refused(&mut log, &batch(at - 1, at + 2, vec![]));
    refused(&mut log, &batch(at, at - 1, vec![]));
    refused(
        &mut log,
        &Batch {
            digest: vec![1; 15].into(),
            ..batch(at, at, vec![])
        },
    );
    refused(
        &mut log,
        &batch(
            at,
            at + 2,
            vec![Turn {
                gap: 3,
                ..Turn::default()
            }],
        ),
    );
    refused(
        &mut log,
        &batch(
            at,
            at,
            vec![Turn {
                console: vec![1; 65_537].into(),
                ..Turn::default()
            }],
        ),
    );
    let turn = Turn {
        console: vec![1; 65_536].into(),
        ..Turn::default()
    };
    let error = refused(&mut log, &batch(at, at, vec![turn; 65]));
    assert!(
        matches!(
            error,
            Violation::TooMuch {
                what: "encoded bytes of a batch",
                ..
            }
        ),
        "{error}"
    );
    records.extend({
        let more = sample(1, at);
        append(&mut log, &more);
        more
    });
    assert!(matches!(
        log.append_pages(&lockstep_proto::PageChunk::default()),
        Err(LogError::Refused(_))
    ));
    drop(log);
    assert_eq!(read(dir.path()).unwrap(), (records, Ending::Unfinished));
}

#[test]
fn an_identity_is_checked_at_both_ends() {
    let dir = tempfile::tempdir().unwrap();
    let bad = lockstep_proto::Identity {
        machine: None,
        ..identity()
    };
    assert!(matches!(
        LogWriter::create(dir.path(), &bad, WriterOptions::default()),
        Err(LogError::Refused(_))
    ));
    assert!(files(dir.path()).is_empty());
}

#[test]
fn an_end_has_to_fit_the_log() {
    for bad in [
        end(START + 1),
        lockstep_proto::End {
            digest: digest(7),
            ..end(START)
        },
    ] {
        let dir = tempfile::tempdir().unwrap();
        let log = LogWriter::create(dir.path(), &identity(), WriterOptions::default()).unwrap();
        assert!(matches!(log.finish(bad), Err(LogError::Refused(_))));
    }
}

#[test]
fn after_a_failure_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogWriter::create(dir.path(), &identity(), options(1)).unwrap();
    let records = fill(&mut log, 1);
    log.flush().unwrap();
    // The next segment cannot be created: a directory has its temporary name.
    fs::create_dir(dir.path().join(plain_name(1) + ".tmp")).unwrap();
    let more = sample(1, log.stop().get());
    let Record::Batch(batch) = &more[0] else { panic!() };
    assert!(matches!(log.append_batch(batch), Err(LogError::Io { .. })));
    assert!(matches!(log.append_batch(batch), Err(LogError::Stopped { .. })));
    assert!(matches!(log.flush(), Err(LogError::Stopped { .. })));
    assert!(matches!(log.sync(), Err(LogError::Stopped { .. })));
    let chunk = lockstep_logcodec::pack_pages([(PageNumber::new(1), &[0; 4096][..])]).unwrap();
    assert!(matches!(log.append_pages(&chunk), Err(LogError::Stopped { .. })));
    let end = end(log.stop().get());
    assert!(matches!(log.finish(end), Err(LogError::Stopped { .. })));
    assert_eq!(read(dir.path()).unwrap(), (records, Ending::Unfinished));
}
