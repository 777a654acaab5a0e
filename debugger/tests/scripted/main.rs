//! `lockstep-debug` on recordings of a scripted machine: what it says of logs, on a host without KVM too.

mod calendar;
mod guest;
mod trace;

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use guest::{LINE_STOPS, LINES, Recorded};

/// A recording in a directory of its own.
fn record(recorded: &Recorded) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    recorded.write(directory.path()).expect("a recording");
    directory
}

fn debug(words: &[&str], logs: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lockstep-debug"))
        .args(words)
        .args(logs)
        .output()
        .expect("the program starts")
}

fn told(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|bytes| String::from_utf8_lossy(bytes))
        .concat()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", told(output)))
}

/// The file of a recording's only segment.
fn segment(log: &Path) -> PathBuf {
    log.join("segment-00000000.lsl")
}

#[test]
fn two_recordings_of_one_run_are_equal_wherever_their_batches_end() {
    let one = record(&Recorded::default());
    let two = record(&Recorded {
        batch_stops: 7,
        ..Recorded::default()
    });
    let output = debug(&["diff", "--json"], &[one.path(), two.path()]);
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert_eq!(json(&output)["same"], true);
}

#[test]
fn the_first_difference_is_told_by_stop_and_value() {
    let one = record(&Recorded::default());
    for line in [0, 11, LINES - 1] {
        let two = record(&Recorded {
            batch_stops: 9,
            other_random: Some(line),
            ..Recorded::default()
        });
        let output = debug(&["diff", "--json"], &[one.path(), two.path()]);
        assert_eq!(output.status.code(), Some(1), "{}", told(&output));
        let found = json(&output);
        assert_eq!(found["stop"], (line + 1) * LINE_STOPS, "{found}");
        let values = found["values"].as_array().expect("values");
        assert!(
            values
                .iter()
                .any(|value| value["expected"] != value["actual"] && value["name"].as_str() == Some("random")),
            "{found}"
        );
    }
}

#[test]
fn recordings_of_different_starts_are_not_compared() {
    let one = record(&Recorded::default());
    let two = record(&Recorded {
        start: 8,
        ..Recorded::default()
    });
    let output = debug(&["diff"], &[one.path(), two.path()]);
    assert_eq!(output.status.code(), Some(2), "{}", told(&output));
    assert!(told(&output).contains("different start states"), "{}", told(&output));
}

#[test]
fn events_are_found_by_kind_and_place() {
    let log = record(&Recorded::default());
    let (from, to) = (3 * LINE_STOPS, 9 * LINE_STOPS);
    let range = [from.to_string(), to.to_string()];
    let words = [
        "events", "--json", "--kind", "random", "--from", &range[0], "--to", &range[1],
    ];
    let output = debug(&words, &[log.path()]);
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    let stops: Vec<u64> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).expect("JSON")["stop"].as_u64())
        .collect();
    assert_eq!(
        stops,
        (3..=9).map(|line| line * LINE_STOPS).collect::<Vec<_>>(),
        "{text}"
    );
}

#[test]
fn a_damaged_recording_is_not_verified() {
    let log = record(&Recorded::default());
    let path = segment(log.path());
    let mut bytes = fs::read(&path).expect("a segment");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&path, bytes).expect("written");
    let other = record(&Recorded::default());
    for (words, logs, code) in [
        (&["verify"][..], &[log.path()][..], 1),
        (&["events"], &[log.path()], 1),
        (&["diff"], &[other.path(), log.path()], 2),
    ] {
        let output = debug(words, logs);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", told(&output));
        assert!(told(&output).contains("segment"), "{words:?}: {}", told(&output));
    }
}

#[test]
fn what_is_whole_of_a_recording_that_was_cut_off_is_told() {
    let log = record(&Recorded::default());
    let path = segment(log.path());
    let file = OpenOptions::new().write(true).open(&path).expect("a segment");
    let length = file.metadata().expect("metadata").len();
    file.set_len(length * 2 / 3).expect("cut");
    let output = debug(&["events", "--kind", "random"], &[log.path()]);
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let lines = told(&output).lines().filter(|line| line.contains("random")).count() as u64;
    assert!(lines > 0 && lines < LINES, "{lines}");
    let whole = record(&Recorded::default());
    let output = debug(&["diff", "--json"], &[whole.path(), log.path()]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let what = json(&output)["what"].to_string();
    assert!(what.contains("goes on where the other has no more"), "{what}");
}
