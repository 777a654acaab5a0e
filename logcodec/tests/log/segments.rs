//! Segments: in order, whole, compressed, of a known version.

use std::fs;

use lockstep_logcodec::record::{LOG_VERSION, MIN_LOG_VERSION};
use lockstep_logcodec::segment::{compressed_name, plain_name};
use lockstep_logcodec::{LogError, LogReader, LogWriter, WriterOptions};
use lockstep_proto::Batch;
use lockstep_proto::quantity::StopNumber;

use crate::SMALL;
use crate::common::{START, count_files, digest, fill, identity, options, read, write};

#[test]
fn a_segment_never_ends_between_pages_and_their_batch() {
    let dir = tempfile::tempdir().unwrap();
    // Each batch gets a segment of its own.
    let records = write(dir.path(), 9, options(1));
    let (got, _) = read(dir.path()).unwrap();
    assert_eq!(got, records);
    assert!(dir.path().join(plain_name(8)).exists());
    assert!(!dir.path().join(plain_name(9)).exists());
}

#[test]
fn compressed_segments_are_read_and_sought_in() {
    let dir = tempfile::tempdir().unwrap();
    let compressed = WriterOptions {
        compress: true,
        ..options(SMALL)
    };
    let records = write(dir.path(), 100, compressed);
    assert!(count_files(dir.path(), ".lsl.zst") > 1);
    assert_eq!(count_files(dir.path(), ".lsl") + count_files(dir.path(), ".tmp"), 0);
    assert_eq!(read(dir.path()).unwrap().0, records);
    let mut log = LogReader::open(dir.path()).unwrap();
    assert!(log.seek(StopNumber::new(START + 555)).unwrap());
    assert_eq!(log.stop(), StopNumber::new(START + 550));
}

#[test]
fn a_crash_while_compressing_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let records = write(dir.path(), 100, options(SMALL));
    // After the rename and before the plain file was removed; and a half-written temporary file.
    let plain = fs::read(dir.path().join(plain_name(1))).unwrap();
    let path = dir.path().join(compressed_name(1));
    fs::write(&path, zstd::encode_all(&plain[..], 1).unwrap()).unwrap();
    fs::write(dir.path().join(compressed_name(2) + ".tmp"), [1, 2, 3]).unwrap();
    assert_eq!(read(dir.path()).unwrap().0, records);
    fs::remove_file(dir.path().join(plain_name(1))).unwrap();
    assert_eq!(read(dir.path()).unwrap().0, records);

    // Compressed segments are whole: damage in them is never a torn tail.
    let last = compressed_name(records.len() as u32); // not one of the log's
    assert!(!dir.path().join(last).exists());
    let good = fs::read(&path).unwrap();
    for length in [0, 3, good.len() / 2, good.len() - 1] {
        fs::write(&path, &good[..length]).unwrap();
        assert!(
            matches!(read(dir.path()), Err(LogError::Corrupt { .. })),
            "cut to {length}"
        );
    }
}

#[test]
fn a_cut_compressed_last_segment_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        20,
        WriterOptions {
            compress: true,
            ..WriterOptions::default()
        },
    );
    let path = dir.path().join(compressed_name(0));
    let plain = zstd::decode_all(&fs::read(&path).unwrap()[..]).unwrap();
    fs::write(&path, zstd::encode_all(&plain[..plain.len() - 1], 1).unwrap()).unwrap();
    assert!(matches!(read(dir.path()), Err(LogError::Corrupt { .. })));
    let mut log = LogReader::open(dir.path()).unwrap();
    assert!(log.seek(StopNumber::new(START + 15)).unwrap());
    let error = loop {
        match log.next_record() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("taken for {:?}", log.ending()),
            Err(e) => break e,
        }
    };
    assert!(matches!(error, LogError::Corrupt { .. }), "also after a seek");
}

/// Every segment but the last is whole: what would be a torn tail there is damage.
#[test]
fn a_torn_segment_before_the_last_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 100, options(SMALL));
    let path = dir.path().join(plain_name(1));
    let good = fs::read(&path).unwrap();
    for length in [0, 10, 40, good.len() / 2, good.len() - 1] {
        fs::write(&path, &good[..length]).unwrap();
        assert!(
            matches!(read(dir.path()), Err(LogError::Corrupt { .. })),
            "cut to {length}"
        );
    }
    let mut zeroes = good.clone();
    zeroes[good.len() - 30..].fill(0);
    fs::write(&path, zeroes).unwrap();
    assert!(matches!(read(dir.path()), Err(LogError::Corrupt { .. })), "zeroed");
}

#[test]
fn segments_have_to_follow_each_other() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 100, options(SMALL));
    let path = |number| dir.path().join(plain_name(number));
    let original: Vec<_> = (0..4).map(|number| fs::read(path(number)).unwrap()).collect();

    fs::write(path(1), &original[2]).unwrap();
    assert!(
        read(dir.path())
            .unwrap_err()
            .to_string()
            .contains("number of another segment")
    );

    let other = tempfile::tempdir().unwrap();
    let who = lockstep_proto::Identity {
        created: 5,
        ..identity()
    };
    let mut log = LogWriter::create(other.path(), &who, options(SMALL)).unwrap();
    fill(&mut log, 100);
    drop(log);
    fs::copy(other.path().join(plain_name(1)), path(1)).unwrap();
    assert!(read(dir.path()).unwrap_err().to_string().contains("another recording"));

    // The same recorder, another run: segment 1 begins elsewhere, or with another digest.
    for (stops, digests, what) in [(1, 0, "at the stop"), (0, 1, "with the digest")] {
        let other = tempfile::tempdir().unwrap();
        let mut log = LogWriter::create(other.path(), &identity(), options(1)).unwrap();
        let at = START + 1000 + stops;
        let batch = Batch {
            first_stop: START,
            last_stop: at,
            digest: digest(at + digests),
            turns: vec![],
            ..Batch::default()
        };
        log.append_batch(&batch).unwrap();
        log.append_batch(&Batch {
            first_stop: at,
            last_stop: at,
            ..batch
        })
        .unwrap();
        drop(log);
        let mut log = LogWriter::create(&other.path().join("b"), &identity(), options(1)).unwrap();
        let at = START + 1000;
        let batch = Batch {
            first_stop: START,
            last_stop: at,
            digest: digest(at),
            turns: vec![],
            ..Batch::default()
        };
        log.append_batch(&batch).unwrap();
        log.append_batch(&Batch {
            first_stop: at,
            last_stop: at,
            ..batch
        })
        .unwrap();
        drop(log);
        let b = other.path().join("b");
        assert!(read(&b).is_ok());
        fs::copy(other.path().join(plain_name(1)), b.join(plain_name(1))).unwrap();
        let error = read(&b).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }

    fs::remove_file(path(1)).unwrap();
    assert!(matches!(
        read(dir.path()),
        Err(LogError::MissingSegment { number: 1, .. })
    ));
}

#[test]
fn nothing_comes_after_the_end() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 3, WriterOptions::default());
    let path = dir.path().join(plain_name(0));
    let good = fs::read(&path).unwrap();
    fs::write(&path, [&good[..], &[0; 5]].concat()).unwrap();
    assert!(matches!(read(dir.path()), Err(LogError::Corrupt { .. })));
    fs::write(&path, &good).unwrap();
    fs::write(dir.path().join(plain_name(1)), &good).unwrap();
    assert!(matches!(read(dir.path()), Err(LogError::Corrupt { .. })));
}

#[test]
fn versions_n_and_n_minus_1_are_read() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 1, WriterOptions::default());
    let path = dir.path().join(plain_name(0));
    let good = fs::read(&path).unwrap();
    let doctored = |version: u32| {
        let mut bytes = good.clone();
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..12]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        read(dir.path()).map(|_| ()).map_err(|e| e.to_string())
    };
    assert!((MIN_LOG_VERSION..=LOG_VERSION).count() <= 2, "N and N-1 only");
    for version in MIN_LOG_VERSION..=LOG_VERSION {
        assert_eq!(doctored(version), Ok(()));
    }
    for version in [0, LOG_VERSION + 1, u32::MAX] {
        let error = doctored(version).unwrap_err();
        assert!(error.contains("format version"), "{error}");
    }
}

#[test]
fn what_is_no_log_says_so() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(LogReader::open(dir.path()), Err(LogError::NoLog { .. })));
    let path = dir.path().join(plain_name(0));
    fs::write(&path, "").unwrap();
    assert!(matches!(
        LogReader::open(dir.path()),
        Err(LogError::NoHeader { bytes: 0, .. })
    ));
    fs::write(&path, "#!/bin/sh\nexit 0\n").unwrap();
    let error = LogReader::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("starts with ") && error.contains("#!/bin/s"), "{error}");
}

#[test]
fn a_failed_compression_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    // What opens and does not read.
    fs::create_dir(dir.path().join(plain_name(0))).unwrap();
    assert!(lockstep_logcodec::compress::compress_segment(dir.path(), 0).is_err());
    assert_eq!(crate::common::files(dir.path()), [plain_name(0)]);
}
