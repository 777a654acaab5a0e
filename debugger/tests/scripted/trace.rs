//! `export-trace`: what the log has, in both formats, read back.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use lockstep_logcodec::batch::BatchBuilder;
use lockstep_logcodec::{LogWriter, WriterOptions};
use lockstep_proto::end::Reason;
use lockstep_proto::quantity::StopNumber;
use lockstep_proto::{DiskCompletion, End, Epoch, Forced, Frame, Identity, MachineConfig, TermBegun, Turn, VcpuState};
use lockstep_vmm::scripted::config;
use prost::Message;
use serde_json::Value;

use crate::guest::{LINE_STOPS, LINES, Recorded};
use crate::{debug, told};

/// The messages that the program writes.
#[allow(clippy::pedantic)]
mod perfetto {
    include!(concat!(env!("OUT_DIR"), "/lockstep.perfetto.rs"));
}

use perfetto::track_event::Type;
use perfetto::{Trace, TrackEvent};

/// 2026-11-28T14:03:00Z
const CREATED: i64 = 1_795_874_580;
/// Console bytes that are not to be shown as they are.
const TYPED: &[u8] = b"ls\x1b]0;x\x07\n";

/// What one log has of everything.
fn turns() -> Vec<(u64, Turn)> {
    let clock = |clock| Turn {
        clock: Some(clock),
        ..Turn::default()
    };
    let digest = || vec![3; 16].into();
    let epoch = |pages| Epoch {
        digest: digest(),
        pages,
        ..Epoch::default()
    };
    let frame = |bytes: usize| Frame {
        nic: 0,
        data: vec![0; bytes].into(),
    };
    let completion = |request| DiskCompletion {
        disk: 0,
        request,
        status: 0,
    };
    vec![
        (1, clock(1_000)),
        (
            2,
            Turn {
                random: Some(0xabc),
                epoch: Some(epoch(5)),
                ..clock(2_000)
            },
        ),
        (
            3,
            Turn {
                frames: vec![frame(60), frame(98)],
                console: TYPED.into(),
                ..clock(500)
            },
        ),
        (
            4,
            Turn {
                disks: vec![completion(0), completion(1)],
                entropy: vec![vec![1; 8].into()],
                ..clock(1)
            },
        ),
        (
            4,
            Turn {
                forced: Some(Forced {
                    vcpu: Some(VcpuState::default()),
                    pages: 0,
                    slice_ns: 123,
                }),
                ..clock(1_500_000)
            },
        ),
        (
            6,
            Turn {
                keyboard: vec![0x1c].into(),
                power_button: true,
                epoch: Some(epoch(7)),
                ..clock(10)
            },
        ),
        (7, clock(1)),
    ]
}

fn record(directory: &Path) {
    let identity = Identity {
        program: "a test".into(),
        created: CREATED,
        machine: Some(MachineConfig {
            rtc_base: CREATED,
            ..config()
        }),
        start_digest: vec![1; 16].into(),
        start_chain: vec![2; 16].into(),
        ..Identity::default()
    };
    let mut writer = LogWriter::create(directory, &identity, WriterOptions::default()).expect("a log");
    let mut builder = BatchBuilder::new(StopNumber::new(0));
    for (stop, turn) in turns() {
        builder.push(StopNumber::new(stop), turn).expect("a turn");
    }
    let mut batch = builder.close(StopNumber::new(9), [4; 16]).expect("a batch");
    batch.terms = vec![TermBegun {
        term: 2,
        why: "fencing (lost-connection)".into(),
        stop: 4,
        guest_ns: 3_501,
    }];
    writer.append_batch(&batch).expect("written");
    let end = End {
        reason: Reason::Quit.into(),
        last_stop: 9,
        digest: vec![4; 16].into(),
        ..End::default()
    };
    writer.finish(end).expect("finished");
}

fn export(log: &Path, file: &Path, more: &[&str]) -> Output {
    let mut words = vec!["export-trace"];
    words.extend(more);
    let output = debug(&words, &[log, file]);
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    output
}

/// An event as both formats tell it: category, name, from and to in nanoseconds, values.
type Told = (String, String, u64, u64, BTreeMap<String, String>);

fn of_perfetto(file: &Path) -> Vec<Told> {
    let trace = Trace::decode(&*fs::read(file).expect("a file")).expect("a trace");
    let mut tracks = BTreeMap::new();
    let mut open: BTreeMap<u64, (u64, TrackEvent)> = BTreeMap::new();
    let mut events = Vec::new();
    assert_eq!(trace.packet[0].sequence_flags, Some(1), "the stream begins");
    for packet in &trace.packet {
        assert_eq!(packet.trusted_packet_sequence_id, Some(1));
        if let Some(track) = &packet.track_descriptor {
            assert!(
                tracks.insert(track.uuid(), track.clone()).is_none(),
                "{track:?} is there twice"
            );
            assert!(track.parent_uuid.is_none_or(|parent| tracks.contains_key(&parent)));
        }
        let Some(event) = &packet.track_event else { continue };
        assert!(tracks.contains_key(&event.track_uuid()), "{event:?} is on no track");
        let at = packet.timestamp();
        let mut told = |from: u64, event: &TrackEvent| {
            let values = event.debug_annotations.iter().map(|value| {
                let number = value.uint_value.map(|number| number.to_string());
                (
                    value.name().to_owned(),
                    number.unwrap_or_else(|| value.string_value().to_owned()),
                )
            });
            events.push((
                event.categories[0].clone(),
                event.name().to_owned(),
                from,
                at,
                values.collect(),
            ));
        };
        match event.r#type() {
            Type::Instant => told(at, event),
            Type::SliceBegin => assert!(open.insert(event.track_uuid(), (at, event.clone())).is_none()),
            Type::SliceEnd => {
                let (from, begin) = open.remove(&event.track_uuid()).expect("it began");
                told(from, &begin);
            }
            Type::Unspecified => panic!("{event:?}"),
        }
    }
    assert!(open.is_empty(), "{open:?}");
    events
}

fn of_chrome(file: &Path) -> Vec<Told> {
    let trace: Value = serde_json::from_slice(&fs::read(file).expect("a file")).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("events");
    let told = |event: &Value| {
        let ns = |name: &str| (event[name].as_f64().unwrap_or(0.0) * 1000.0).round() as u64;
        let values = event["args"].as_object().into_iter().flatten();
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let values = values.map(|(name, value)| (name.clone(), text(value)));
        let named = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
        (
            named("cat"),
            named("name"),
            ns("ts"),
            ns("ts") + ns("dur"),
            values.collect(),
        )
    };
    events
        .iter()
        .filter(|event| ["X", "i"].map(Into::into).contains(&event["ph"]))
        .map(told)
        .collect()
}

#[test]
fn a_trace_has_what_the_log_has_in_both_formats() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("log");
    fs::create_dir(&log).expect("a directory");
    record(&log);
    let (own, json) = (dir.path().join("trace"), dir.path().join("trace.json"));
    let output = export(&log, &own, &[]);
    export(&log, &json, &[]);
    let events = of_perfetto(&own);
    assert_eq!(events, of_chrome(&json));
    let of = |category: &str| -> Vec<_> { events.iter().filter(|event| event.0 == category).collect() };
    for (category, count) in [
        ("recording", 3),
        ("random", 1),
        ("frame", 2),
        ("console", 1),
        ("disk", 2),
        ("entropy", 1),
        ("forced", 1),
        ("keyboard", 1),
        ("power-button", 1),
        ("epoch", 2),
    ] {
        assert_eq!(of(category).len(), count, "{category}: {events:?}");
        assert!(
            told(&output).contains(&format!("{category} {count}")),
            "{}",
            told(&output)
        );
    }
    // Guest time, from the turn before the delta to the one that carried it; and between the ends of epochs.
    assert_eq!((of("forced")[0].2, of("forced")[0].3), (3_501, 1_503_501));
    assert_eq!((of("epoch")[0].2, of("epoch")[0].3), (0, 3_000));
    assert_eq!((of("epoch")[1].2, of("epoch")[1].3), (3_000, 1_503_511));
    let value = |event: &Told, name: &str| event.4.get(name).cloned().unwrap_or_default();
    assert_eq!(value(of("epoch")[1], "pages"), "7");
    assert_eq!(value(of("frame")[1], "bytes"), "98");
    assert_eq!(value(of("disk")[1], "request"), "1");
    assert_eq!(value(of("forced")[0], "host_ns"), "123");
    assert_eq!(value(of("random")[0], "value"), "0x0000000000000abc");
    // What the guest's users type does nothing to who looks at it.
    let typed = value(of("console")[0], "text");
    assert!(typed.contains("ls\\u001b]0;x"), "{typed}");
    let notes: Vec<_> = of("recording")
        .iter()
        .map(|event| (event.1.as_str(), event.2))
        .collect();
    assert_eq!(notes[1], ("term 2: fencing (lost-connection)", 3_501));
    assert!(notes[2].0.contains("in order"), "{notes:?}");

    let trace = Trace::decode(&*fs::read(&own).expect("a file")).expect("a trace");
    let clocks = &trace.packet[0].clock_snapshot.as_ref().expect("clocks").clocks;
    let clocks: Vec<_> = clocks
        .iter()
        .map(|clock| (clock.clock_id(), clock.timestamp()))
        .collect();
    assert_eq!(clocks, [(6, 0), (1, CREATED as u64 * 1_000_000_000)]);
}

#[test]
fn a_part_of_the_time_is_exported() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("log");
    fs::create_dir(&log).expect("a directory");
    record(&log);
    let file = dir.path().join("trace");
    export(&log, &file, &["--from", "3us", "--to", "3502ns", "--format", "chrome"]);
    let events = of_chrome(&file);
    let categories: Vec<_> = events.iter().map(|event| event.0.as_str()).collect();
    assert_eq!(
        categories,
        [
            "recording",
            "epoch",
            "random",
            "frame",
            "frame",
            "console",
            "disk",
            "disk",
            "entropy"
        ]
    );
    // The epoch that ends there began before.
    let epoch = events.iter().find(|event| event.0 == "epoch").expect("an epoch");
    assert_eq!((epoch.2, epoch.3), (0, 3_000));
}

/// Over a ring's parts, and as many as `events` lists.
#[test]
fn a_trace_goes_over_parts_of_one_machine() {
    let dir = tempfile::tempdir().expect("a directory");
    let part = |number: u32| dir.path().join(format!("ring/part-{number:08}"));
    for (number, first, last) in [(1, 0, 20), (2, 15, LINES + 1)] {
        fs::create_dir_all(part(number)).expect("a directory");
        let recorded = Recorded {
            batch_stops: LINE_STOPS,
            part: number,
            stops: first * LINE_STOPS..=last * LINE_STOPS,
            ..Recorded::default()
        };
        recorded.write(&part(number)).expect("a recording");
    }
    let (ring, file) = (dir.path().join("ring"), dir.path().join("trace"));
    export(&ring, &file, &["--from", "10ms", "--to", "end"]);
    let listed = debug(
        &["events", "--kind", "random", "--from", "10ms", "--to", "end"],
        &[&ring],
    );
    let randoms = told(&listed).lines().filter(|line| line.contains("random")).count();
    let traced: Vec<_> = of_perfetto(&file)
        .into_iter()
        .filter(|event| event.0 == "random")
        .collect();
    assert_eq!((traced.len(), randoms), (31, 31));
    let stops: Vec<u64> = traced
        .iter()
        .map(|event| event.4["stop"].parse().expect("a stop"))
        .collect();
    assert!(
        stops.is_sorted() && stops.windows(2).all(|two| two[0] < two[1]),
        "{stops:?}"
    );

    // Another machine's guest time is another.
    fs::create_dir_all(part(3)).expect("a directory");
    let booted = Recorded {
        part: 3,
        created: 600,
        rtc_base: 600,
        ..Recorded::default()
    };
    booted.write(&part(3)).expect("a recording");
    let from = ["export-trace", "--from", "1970-01-01T00:00:00.01Z", "--to", "end"];
    let output = debug(&from, &[&ring, &file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).contains("another machine begins in"), "{}", told(&output));
}

/// What is good of a damaged log is there, and the file is whole.
#[test]
fn a_damaged_log_gives_a_whole_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let log = dir.path().join("log");
    fs::create_dir(&log).expect("a directory");
    Recorded::default().write(&log).expect("a recording");
    let segment = log.join("segment-00000000.lsl");
    let mut bytes = fs::read(&segment).expect("a segment");
    let middle = bytes.len() * 2 / 3;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes).expect("written");
    let file = dir.path().join("trace.json");
    let output = debug(&["export-trace"], &[&log, &file]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(told(&output).contains("segment"), "{}", told(&output));
    let randoms = of_chrome(&file).into_iter().filter(|event| event.0 == "random").count() as u64;
    assert!(randoms > 0 && randoms < LINES, "{randoms}");
}

#[test]
fn a_file_that_cannot_be_written_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    Recorded::default().write(dir.path()).expect("a recording");
    let words = ["export-trace", "--format", "perfetto"];
    let output = debug(&words, &[dir.path(), Path::new("/dev/full")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).contains("cannot write /dev/full"), "{}", told(&output));
    let out = Command::new(env!("CARGO_BIN_EXE_lockstep-debug"))
        .args(["export-trace", "--format", "chrome"])
        .args([dir.path(), Path::new("-")])
        .output()
        .expect("the program starts");
    assert!(serde_json::from_slice::<Value>(&out.stdout).is_ok(), "{}", told(&out));
}
