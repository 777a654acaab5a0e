//! Logs to test with.
#![allow(dead_code, missing_docs)] // each test uses its part

use std::fs;
use std::path::Path;

use bytes::Bytes;
use lockstep_logcodec::{BatchBuilder, Ending, LogReader, LogWriter, Record, Result, WriterOptions, pack_pages};
use lockstep_proto::quantity::{PageNumber, StopNumber};
use lockstep_proto::{
    Batch, DiskCompletion, DiskConfig, End, Epoch, Forced, Frame, Identity, MachineConfig, NicConfig, Turn, VcpuState,
    end,
};

pub const START: u64 = 1000;

pub fn identity() -> Identity {
    Identity {
        program: "test".into(),
        machine: Some(MachineConfig {
            memory_bytes: 1 << 30,
            cmdline: "console=ttyS0".into(),
            disks: vec![DiskConfig {
                bytes: 512,
                ..Default::default()
            }],
            nics: vec![NicConfig {
                mac: vec![2, 0, 0, 0, 0, 1].into(),
                ..Default::default()
            }],
            model_revision: 4,
            ..Default::default()
        }),
        start_stop: START,
        start_chain: digest(START),
        ..Default::default()
    }
}

pub fn digest(stop: u64) -> Bytes {
    Bytes::from(
        u128::from(stop)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
            .to_be_bytes()
            .to_vec(),
    )
}

pub fn digest_array(stop: u64) -> [u8; 16] {
    digest(stop)[..].try_into().unwrap()
}

pub fn end(last_stop: u64) -> End {
    let digest = digest(last_stop);
    End {
        reason: end::Reason::Quit.into(),
        last_stop,
        digest,
        memory_digest: vec![3; 16].into(),
        ..Default::default()
    }
}

pub fn options(segment_bytes: u64) -> WriterOptions {
    WriterOptions {
        segment_bytes,
        ..WriterOptions::default()
    }
}

/// Batch number `i` of a log, from its first stop: ten stops, with all that a turn can hold now and then. And its pages.
pub fn sample(i: u64, first_stop: u64) -> Vec<Record> {
    let mut records = Vec::new();
    let mut builder = BatchBuilder::new(StopNumber::new(first_stop));
    for stop in first_stop + 1..=first_stop + 10 {
        builder
            .push(
                StopNumber::new(stop),
                Turn {
                    clock: Some(stop * 7),
                    ..Turn::default()
                },
            )
            .unwrap();
    }
    let last = first_stop + 10;
    if i.is_multiple_of(3) {
        let turn = Turn {
            random: Some(i),
            frames: vec![Frame {
                nic: 0,
                data: vec![i as u8; 100].into(),
            }],
            console: vec![b'x'; 3].into(),
            keyboard: vec![0x1c; 2].into(),
            disks: vec![DiskCompletion {
                disk: 0,
                request: i,
                status: 0,
            }],
            entropy: vec![vec![1; 8].into()],
            epoch: Some(Epoch {
                digest: digest(i),
                pages: 1,
                frame_gaps: vec![i],
                page_hashes: vec![7],
                settled_digest: digest(i + 1),
                parts: vec![1, 2, 3, 4].into(),
            }),
            ..Turn::default()
        };
        builder.push(StopNumber::new(last), turn).unwrap();
    }
    if i.is_multiple_of(4) {
        let pages: Vec<[u8; 4096]> = (0..3).map(|n| [n ^ i as u8; 4096]).collect();
        let numbered = |from: usize| {
            pages[from..]
                .iter()
                .map(move |page| (i + u64::from(page[0]), &page[..]))
        };
        let mut sorted: Vec<_> = numbered(0).collect();
        sorted.sort_unstable();
        sorted.dedup_by_key(|(frame, _)| *frame);
        let vcpu = Some(VcpuState {
            regs: vec![1; 144].into(),
            ..VcpuState::default()
        });
        let forced = Some(Forced {
            vcpu,
            pages: sorted.len() as u32,
            slice_ns: 5,
        });
        for (frame, page) in sorted {
            records.push(Record::Pages(pack_pages([(PageNumber::new(frame), page)]).unwrap()));
        }
        builder
            .push(
                StopNumber::new(last),
                Turn {
                    forced,
                    ..Turn::default()
                },
            )
            .unwrap();
    }
    records.push(Record::Batch(
        builder.close(StopNumber::new(last), digest_array(last)).unwrap(),
    ));
    records
}

pub fn last_stop(records: &[Record]) -> u64 {
    records
        .iter()
        .rev()
        .find_map(|r| {
            if let Record::Batch(b) = r {
                Some(b.last_stop)
            } else {
                None
            }
        })
        .unwrap_or(START)
}

pub fn append(log: &mut LogWriter, records: &[Record]) {
    for record in records {
        match record {
            Record::Pages(chunk) => log.append_pages(chunk).unwrap(),
            Record::Batch(batch) => log.append_batch(batch).unwrap(),
            Record::End(_) => panic!("finish it"),
        }
    }
}

/// Appends `batches` batches to a log that has none.
pub fn fill(log: &mut LogWriter, batches: u64) -> Vec<Record> {
    let mut records = Vec::new();
    for i in 0..batches {
        let more = sample(i, log.stop().get());
        append(log, &more);
        records.extend(more);
    }
    records
}

/// Writes a log with an end. Returns its records, the end among them.
pub fn write(dir: &Path, batches: u64, options: WriterOptions) -> Vec<Record> {
    let mut log = LogWriter::create(dir, &identity(), options).unwrap();
    let mut records = fill(&mut log, batches);
    let end = end(log.stop().get());
    let summary = log.finish(end.clone()).unwrap();
    assert!(summary.compression.is_none(), "{:?}", summary.compression);
    records.push(Record::End(end));
    records
}

/// Reads a log to its ending.
pub fn read(dir: &Path) -> Result<(Vec<Record>, Ending)> {
    let mut log = LogReader::open(dir)?;
    let mut records = Vec::new();
    while let Some(record) = log.next_record()? {
        records.push(record);
    }
    let ending = log.ending();
    Ok((records, ending))
}

pub fn batches(records: &[Record]) -> impl Iterator<Item = &Batch> {
    records
        .iter()
        .filter_map(|r| if let Record::Batch(b) = r { Some(b) } else { None })
}

pub fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// How many files of a directory have names that end so.
pub fn count_files(dir: &Path, ending: &str) -> usize {
    files(dir).iter().filter(|name| name.ends_with(ending)).count()
}
