//! Following, torn tails and cutting them.

use std::fs;
use std::path::Path;

use lockstep_logcodec::segment::plain_name;
use lockstep_logcodec::{Cut, Ending, LogError, LogReader, LogWriter, Record, WriterOptions, cut_torn_tail};
use lockstep_proto::quantity::StopNumber;

use crate::SMALL;
use crate::common::{append, count_files, end, fill, identity, last_stop, options, read, sample, write};

#[test]
fn a_log_is_followed_while_it_is_written() {
    for compress in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let writer = WriterOptions {
            compress,
            ..options(SMALL)
        };
        let mut log = LogWriter::create(dir.path(), &identity(), writer).unwrap();
        let mut reader = LogReader::open(dir.path()).unwrap();
        let mut written = Vec::new();
        let mut got = Vec::new();
        for i in 0..60 {
            let more = sample(i, log.stop().get());
            append(&mut log, &more);
            written.extend(more);
            if i % 7 == 0 {
                log.flush().unwrap();
                while let Some(record) = reader.next_record().unwrap() {
                    got.push(record);
                }
                assert_eq!(reader.ending(), Ending::Unfinished);
                assert_eq!(got, written);
            }
        }
        let end = end(log.stop().get());
        log.finish(end.clone()).unwrap();
        written.push(Record::End(end.clone()));
        while let Some(record) = reader.next_record().unwrap() {
            got.push(record);
        }
        assert_eq!(reader.ending(), Ending::Clean(end));
        assert_eq!(got, written);
    }
}

#[test]
fn a_record_that_arrives_in_parts_is_delivered_when_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let records = write(dir.path(), 4, WriterOptions::default());
    let path = dir.path().join(plain_name(0));
    let bytes = fs::read(&path).unwrap();
    let start = (0..bytes.len()).find(|&n| write_prefix(&path, &bytes, n) && LogReader::open(dir.path()).is_ok());
    let start = start.unwrap();
    let mut reader = LogReader::open(dir.path()).unwrap();
    let mut got = Vec::new();
    for length in start..=bytes.len() {
        write_prefix(&path, &bytes, length);
        while let Some(record) = reader.next_record().unwrap() {
            got.push(record);
        }
    }
    assert_eq!(got, records);
    assert!(matches!(reader.ending(), Ending::Clean(_)));
}

/// Makes the file `length` bytes long without truncating it in between.
fn write_prefix(path: &Path, bytes: &[u8], length: usize) -> bool {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&bytes[..length], 0).unwrap();
    file.set_len(length as u64).unwrap();
    true
}

#[test]
fn a_follower_gets_over_a_tail_that_was_not_yet_right() {
    // A page of zeroes that the system shows before the data: not seen on Linux, but it must not end a follower.
    let dir = tempfile::tempdir().unwrap();
    let records = write(dir.path(), 4, WriterOptions::default());
    let path = dir.path().join(plain_name(0));
    let bytes = fs::read(&path).unwrap();
    let mut zeroes = bytes.clone();
    let from = bytes.len() - 200;
    zeroes[from..].fill(0);
    fs::write(&path, &zeroes).unwrap();
    let mut reader = LogReader::open(dir.path()).unwrap();
    let mut got = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        got.push(record);
    }
    assert!(matches!(reader.ending(), Ending::Torn { .. }));
    assert!(reader.next_record().unwrap().is_none(), "still torn");
    write_prefix(&path, &bytes, bytes.len());
    while let Some(record) = reader.next_record().unwrap() {
        got.push(record);
    }
    assert_eq!(got, records);
}

#[test]
fn a_torn_tail_is_reported_and_cut() {
    let dir = tempfile::tempdir().unwrap();
    let records = write(dir.path(), 100, options(SMALL));
    let last = count_files(dir.path(), ".lsl") as u32 - 1;
    let path = dir.path().join(plain_name(last));
    let bytes = fs::read(&path).unwrap();
    assert_eq!(cut_torn_tail(dir.path()).unwrap(), None);

    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let (got, ending) = read(dir.path()).unwrap();
    assert_eq!(got, records[..records.len() - 1], "all but the end");
    let Ending::Torn {
        segment,
        offset,
        bytes_lost,
    } = ending
    else {
        panic!("{ending:?}")
    };
    assert_eq!((segment, offset + bytes_lost), (last, bytes.len() as u64 - 1));

    let cut = cut_torn_tail(dir.path()).unwrap().unwrap();
    let stop = last_stop(&records);
    assert_eq!(
        cut,
        Cut {
            path: path.clone(),
            length: offset,
            bytes_cut: bytes_lost,
            stop: StopNumber::new(stop)
        }
    );
    assert_eq!(read(dir.path()).unwrap(), (got, Ending::Unfinished));
    assert_eq!(cut_torn_tail(dir.path()).unwrap(), None, "nothing more to cut");

    // A last segment that has not even its header.
    fs::write(dir.path().join(plain_name(last + 1)), &bytes[..20]).unwrap();
    let (_, ending) = read(dir.path()).unwrap();
    assert_eq!(
        ending,
        Ending::Torn {
            segment: last + 1,
            offset: 0,
            bytes_lost: 20
        }
    );
    let cut = cut_torn_tail(dir.path()).unwrap().unwrap();
    assert_eq!((cut.length, cut.bytes_cut, cut.stop.get()), (0, 20, stop));
    assert_eq!(read(dir.path()).unwrap().1, Ending::Unfinished);
}

#[test]
fn a_log_that_is_being_written_is_not_cut() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogWriter::create(dir.path(), &identity(), WriterOptions::default()).unwrap();
    fill(&mut log, 3);
    log.flush().unwrap();
    let path = dir.path().join(plain_name(0));
    let bytes = fs::read(&path).unwrap();
    write_prefix(&path, &bytes, bytes.len() - 1);
    assert!(matches!(cut_torn_tail(dir.path()), Err(LogError::InUse { .. })));
}

#[test]
fn damage_in_the_middle_is_not_cut() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), 20, WriterOptions::default());
    let path = dir.path().join(plain_name(0));
    let good = fs::read(&path).unwrap();
    let mut bytes = good.clone();
    bytes[good.len() / 2] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = cut_torn_tail(dir.path()).unwrap_err();
    assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), bytes);
}
