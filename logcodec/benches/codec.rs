//! How fast the log is written and read. Prints a table and, on the last line, the same as JSON.
//!
//! `cargo bench -p lockstep-logcodec [--bench codec]`. Each figure is the best of several runs: what the code needs, not
//! what else the machine does. LOCKSTEP_BENCH_MS is the time for each, in milliseconds (default 1000).

use std::hint::black_box;
use std::io::sink;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lockstep_logcodec::frame::{FrameReader, FrameWriter, Next};
use lockstep_logcodec::record::{LOG_FORMAT, kind};
use lockstep_logcodec::{BatchBuilder, LogReader, LogWriter, PagePacker, Record, WriterOptions, unpack_pages};
use lockstep_proto::quantity::{PageNumber, StopNumber};
use lockstep_proto::{Batch, End, Identity, MachineConfig, PageChunk, Turn, end};

/// Encoded bytes at which a batch is closed.
const BATCH_BYTES: usize = 64 << 10;
/// Turns in a run.
const TURNS: u64 = 1_000_000;
/// Pages in a run.
const PAGES: u64 = 4096;

struct Figure {
    name: &'static str,
    unit: &'static str,
    value: f64,
}

fn main() {
    let time = std::env::var("LOCKSTEP_BENCH_MS")
        .ok()
        .and_then(|ms| ms.parse().ok())
        .unwrap_or(1000);
    let time = Duration::from_millis(time);
    let mut figures = Vec::new();
    let mut figure = |name, unit, value| figures.push(Figure { name, unit, value });

    let mut encoded = Vec::new();
    let encode = best(time, || encoded = encode(Vec::new()));
    figure(
        "encode: turns into frames in memory",
        "M turns/s",
        TURNS as f64 / encode / 1e6,
    );
    figure(
        "size of a turn with gap and clock",
        "bytes",
        encoded.len() as f64 / TURNS as f64,
    );
    let decode = best(time, || assert_eq!(decode(&encoded), TURNS));
    figure(
        "decode: frames in memory into turns",
        "M turns/s",
        TURNS as f64 / decode / 1e6,
    );

    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut run = 0;
    let write = best(time, || {
        run += 1;
        write_log(&dir.path().join(run.to_string()));
    });
    figure(
        "write a log to files, synced at its end",
        "M turns/s",
        TURNS as f64 / write / 1e6,
    );
    let read = best(time, || assert_eq!(read_log(&dir.path().join("1")), TURNS));
    figure("read a log from files, checked", "M turns/s", TURNS as f64 / read / 1e6);

    let megabytes = PAGES as f64 * 4096.0 / 1e6;
    for (name, unpack_name, entropy) in [
        ("pack pages, three quarters zero", "unpack the same", 1024),
        ("pack pages of noise", "unpack the same noise", 4096),
    ] {
        let pages = pages(entropy);
        let mut chunks = Vec::new();
        let pack = best(time, || chunks = pack(&pages));
        figure(name, "MB/s", megabytes / pack);
        let unpack = best(time, || {
            for chunk in &chunks {
                black_box(unpack_pages(chunk, PageNumber::new(PAGES)).expect("pages"));
            }
        });
        figure(unpack_name, "MB/s", megabytes / unpack);
    }

    print(&figures);
}

/// The shortest run within the time, in seconds; three at least.
fn best(time: Duration, mut run: impl FnMut()) -> f64 {
    let begun = Instant::now();
    let mut best = f64::INFINITY;
    let mut runs = 0;
    while runs < 3 || begun.elapsed() < time {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

/// Batches of small turns: one in three stops has one, with a clock step of some microseconds.
fn batches(mut each: impl FnMut(Batch)) {
    let mut builder = BatchBuilder::new(StopNumber::START);
    for i in 1..=TURNS {
        let turn = Turn {
            clock: Some(1000 + (i * 7919) % 30_000),
            ..Turn::default()
        };
        builder.push(StopNumber::new(i * 3), turn).expect("a turn");
        if builder.encoded_len() >= BATCH_BYTES {
            each(builder.close(StopNumber::new(i * 3), [7; 16]).expect("a batch"));
        }
    }
    each(builder.close(StopNumber::new(TURNS * 3), [7; 16]).expect("a batch"));
}

fn encode(out: Vec<u8>) -> Vec<u8> {
    let mut frames = FrameWriter::create(out, LOG_FORMAT).expect("memory");
    batches(|batch| {
        frames
            .write_message(kind::BATCH, &lockstep_logcodec::packed::pack(&batch))
            .expect("memory");
    });
    frames.into_inner()
}

fn decode(encoded: &[u8]) -> u64 {
    let mut frames = FrameReader::open(encoded, LOG_FORMAT).expect("a header");
    let mut turns = 0;
    while let Next::Frame(frame) = frames.next().expect("a frame") {
        if let Record::Batch(batch) = Record::decode(frame.kind, frame.payload).expect("a record") {
            turns += black_box(batch).turns.len() as u64;
        }
    }
    turns
}

fn write_log(dir: &Path) {
    let chain = Bytes::from(vec![7; 16]);
    let identity = Identity {
        machine: Some(MachineConfig::default()),
        start_chain: chain.clone(),
        ..Identity::default()
    };
    let mut log = LogWriter::create(dir, &identity, WriterOptions::default()).expect("a log");
    batches(|batch| log.append_batch(&batch).expect("room"));
    let last_stop = log.stop();
    let end = End {
        reason: end::Reason::Quit.into(),
        last_stop: last_stop.get(),
        digest: chain,
        ..End::default()
    };
    black_box(log.finish(end).expect("room"));
}

fn read_log(dir: &Path) -> u64 {
    let mut log = LogReader::open(dir).expect("a log");
    let mut turns = 0;
    while let Some(record) = log.next_record().expect("a record") {
        if let Record::Batch(batch) = record {
            turns += batch.turns.len() as u64;
        }
    }
    turns
}

/// Pages whose first `entropy` bytes are noise.
fn pages(entropy: usize) -> Vec<[u8; 4096]> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut page = || {
        let mut page = [0; 4096];
        for byte in &mut page[..entropy] {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
        page
    };
    (0..PAGES).map(|_| page()).collect()
}

fn pack(pages: &[[u8; 4096]]) -> Vec<PageChunk> {
    let mut packer = PagePacker::new().expect("memory");
    let mut frames = FrameWriter::create(sink(), LOG_FORMAT).expect("a sink");
    let mut first = 0;
    let chunks = pages.chunks(256).map(|pages| {
        let chunk = packer
            .pack(
                (first..)
                    .map(PageNumber::new)
                    .zip(pages.iter().map(<[u8; 4096]>::as_slice)),
            )
            .expect("pages");
        first += 256;
        frames.write_message(kind::PAGES, &chunk).expect("a sink");
        chunk
    });
    chunks.collect()
}

fn print(figures: &[Figure]) {
    for Figure { name, unit, value } in figures {
        println!("{name:<42} {value:>10.2} {unit}");
    }
    let json: Vec<String> = figures
        .iter()
        .map(|Figure { name, unit, value }| format!(r#"{{"name":"{name}","value":{value:.3},"unit":"{unit}"}}"#))
        .collect();
    println!(r#"{{"bench":"codec","figures":[{}]}}"#, json.join(","));
}
