//! Positions by the calendar: of a recording, over a ring's parts, and where a clock shows a time twice.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::guest::{LINE_STOPS, Recorded};
use crate::{json, told};

const SECOND: u64 = 1_000_000_000;
/// 2026-11-28T14:03:00Z
const NOVEMBER: i64 = 1_795_874_580;
/// 2026-10-25T00:10:00Z: 50 minutes before clocks in Berlin are set back from 03:00 to 02:00.
const OCTOBER: i64 = 1_792_887_000;
/// Berlin's rules, as POSIX writes them: no host's database is needed.
const BERLIN: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

fn debug_in(zone: &str, words: &[&str], log: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockstep-debug"));
    command.args(&words[..1]).arg(log).args(&words[1..]);
    command.env("TZ", zone).output().expect("the program starts")
}

/// The stops of the random numbers that are listed: one for each second of guest time.
fn listed(zone: &str, log: &Path, range: &[&str]) -> Vec<u64> {
    let mut words = vec!["events", "--json", "--kind", "random"];
    words.extend(range);
    let output = debug_in(zone, &words, log);
    assert_eq!(output.status.code(), Some(0), "{range:?}: {}", told(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    let stop = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["stop"].as_u64();
    text.lines().map(|line| stop(line).expect("a stop")).collect()
}

fn refused(zone: &str, log: &Path, range: &[&str], why: &str) {
    let mut words = vec!["events"];
    words.extend(range);
    let output = debug_in(zone, &words, log);
    assert_eq!(output.status.code(), Some(1), "{range:?}: {}", told(&output));
    assert!(
        told(&output).contains(why),
        "{range:?} must say `{why}`: {}",
        told(&output)
    );
}

/// The stops of the lines after these seconds.
fn lines(seconds: impl IntoIterator<Item = u64>) -> Vec<u64> {
    seconds.into_iter().map(|second| second * LINE_STOPS).collect()
}

fn record(directory: &Path, recorded: &Recorded) {
    std::fs::create_dir_all(directory).expect("a directory");
    recorded.write(directory).expect("a recording");
}

/// 40 seconds, of which the first line is one.
fn seconds(created: i64) -> Recorded {
    Recorded {
        tick: SECOND,
        created,
        rtc_base: created,
        ..Recorded::default()
    }
}

#[test]
fn a_time_of_the_calendar_is_the_guest_time_that_it_was() {
    let log = tempfile::tempdir().expect("a directory");
    record(log.path(), &seconds(NOVEMBER));
    let wanted = lines(20..=25);
    for (zone, from, to) in [
        ("UTC", "20s", "25s"),
        ("UTC", "2026-11-28T14:03:20Z", "2026-11-28T14:03:25.5Z"),
        ("UTC", "2026-11-28T15:03:20+01:00", "2026-11-28T08:33:25-05:30"),
        ("UTC", "14:03:20", "14:03:25.999"),
        ("UTC", "2026-11-28T14:03:19.000000001", "14:03:25"),
        (BERLIN, "15:03:20", "2026-11-28T15:03:25"),
        ("UTC", "-20s", "-15s"),
        (BERLIN, "-20.5s", "-14.5s"),
    ] {
        assert_eq!(
            listed(zone, log.path(), &["--from", from, "--to", to]),
            wanted,
            "{zone} {from} {to}"
        );
    }
    assert_eq!(listed("UTC", log.path(), &["--from", "-2s"]), lines(38..=40));
    // As for any position: what is after the end is all that there is.
    assert_eq!(
        listed("UTC", log.path(), &["--from", "39s", "--to", "2026-11-28T15:00:00Z"]),
        lines(39..=40)
    );
    for (place, why) in [
        ("2026-11-28T14:02:59Z", "is not in"),
        ("15:03:20", "goes from 2026-11-28T14:03:00Z to 2026-11-28T14:03:40Z"),
        ("-41s", "is not in"),
    ] {
        refused("UTC", log.path(), &["--from", place], why);
    }
    refused(
        BERLIN,
        log.path(),
        &["--from", "14:03:20"],
        "from 2026-11-28T15:03:00+01:00",
    );

    let info = debug_in(BERLIN, &["info", "--json"], log.path());
    let info = json(&info);
    assert_eq!(info["from"], "2026-11-28T14:03:00Z", "{info}");
    assert_eq!(info["to"], "2026-11-28T14:03:40Z", "{info}");
    assert_eq!(info["guest_clock_behind_seconds"], 0.0, "{info}");
    let text = told(&debug_in(BERLIN, &["info"], log.path()));
    assert!(
        text.contains("from 2026-11-28T15:03:00+01:00 to 2026-11-28T15:03:40+01:00"),
        "{text}"
    );
}

/// A machine from a snapshot of the day before.
#[test]
fn the_calendar_is_the_hosts_where_the_guests_is_another() {
    let log = tempfile::tempdir().expect("a directory");
    let recorded = Recorded {
        rtc_base: NOVEMBER - 86_400,
        ..seconds(NOVEMBER)
    };
    record(log.path(), &recorded);
    assert_eq!(
        listed("UTC", log.path(), &["--from", "14:03:38", "--to", "14:03:39"]),
        lines(38..=39)
    );
    let info = debug_in("UTC", &["info"], log.path());
    assert!(
        told(&info).contains("the guest's clock was 86400 s behind it"),
        "{}",
        told(&info)
    );
    assert_eq!(
        json(&debug_in("UTC", &["info", "--json"], log.path()))["guest_clock_behind_seconds"],
        86400.0
    );
}

#[test]
fn a_time_that_clocks_showed_twice_is_told() {
    let log = tempfile::tempdir().expect("a directory");
    // 40 times 3 minutes: from 02:10 summer time to 03:10.
    let recorded = Recorded {
        tick: 180 * SECOND,
        ..seconds(OCTOBER)
    };
    record(log.path(), &recorded);
    for place in ["02:40:00", "2026-10-25T02:40:00"] {
        refused(
            BERLIN,
            log.path(),
            &["--from", place],
            "2 times, first at 2026-10-25T02:40:00+02:00 and last at 2026-10-25T02:40:00+01:00",
        );
    }
    assert_eq!(
        listed(
            BERLIN,
            log.path(),
            &[
                "--from",
                "2026-10-25T02:40:00+02:00",
                "--to",
                "2026-10-25T02:40:00+02:00"
            ]
        ),
        lines([10])
    );
    assert_eq!(
        listed(BERLIN, log.path(), &["--to", "2026-10-25T02:40:00+02:00"]).len(),
        10
    );
    assert_eq!(
        listed(BERLIN, log.path(), &["--to", "2026-10-25T02:40:00+01:00"]).len(),
        30
    );
    // Of these, one was before the recording, or none was a second one.
    assert_eq!(listed(BERLIN, log.path(), &["--to", "02:09:59"]).len(), 19);
    assert_eq!(listed(BERLIN, log.path(), &["--to", "03:01:00"]).len(), 37);
    refused(
        BERLIN,
        log.path(),
        &["--from", "2026-03-29T02:30:00"],
        "the clock is set forward over it",
    );
}

#[test]
fn a_time_of_the_day_of_several_days_is_told() {
    let log = tempfile::tempdir().expect("a directory");
    let recorded = Recorded {
        tick: 3600 * SECOND,
        ..seconds(NOVEMBER)
    };
    record(log.path(), &recorded);
    refused(
        "UTC",
        log.path(),
        &["--from", "20:00:00"],
        "there 2 times, first at 2026-11-28T20:00:00Z and last at 2026-11-29T20:00:00Z",
    );
    // 40 hours have 10 o'clock once.
    assert_eq!(listed("UTC", log.path(), &["--to", "10:00:00"]).len(), 19);
}

/// Three parts of one machine that overlap, and one of a machine that was booted after it.
fn ring(directory: &Path, booted: Option<i64>) {
    let part = |number: u32| directory.join(format!("part-{number:08}"));
    for (number, first, last) in [(1, 0, 15), (2, 10, 25), (3, 20, 41)] {
        let recorded = Recorded {
            batch_stops: LINE_STOPS,
            part: number,
            created: NOVEMBER + first as i64,
            rtc_base: NOVEMBER,
            stops: first * LINE_STOPS..=last * LINE_STOPS,
            ..seconds(0)
        };
        record(&part(number), &recorded);
    }
    if let Some(booted) = booted {
        let recorded = Recorded {
            part: 4,
            ..seconds(booted)
        };
        record(&part(4), &recorded);
    }
}

#[test]
fn a_position_is_found_in_the_part_that_has_it() {
    let ring_of = tempfile::tempdir().expect("a directory");
    ring(ring_of.path(), Some(NOVEMBER + 600));
    let ring = ring_of.path();
    // Each turn once, though the parts overlap.
    let range = ["--from", "2026-11-28T14:03:05Z", "--to", "2026-11-28T14:03:35Z"];
    assert_eq!(listed("UTC", ring, &range), lines(5..=35));
    assert_eq!(
        listed("UTC", ring, &["--from", "14:03:12", "--to", "14:03:14"]),
        lines(12..=14)
    );
    let both = [lines(39..=40), lines(1..=2)].concat();
    assert_eq!(listed("UTC", ring, &["--from", "14:03:39", "--to", "14:13:02"]), both);
    assert_eq!(listed("UTC", ring, &["--from", "-1s"]), lines(39..=40));
    let json = debug_in(
        "UTC",
        &[
            "events", "--json", "--kind", "random", "--from", "14:03:10", "--to", "14:03:11",
        ],
        ring,
    );
    let parts: Vec<_> = String::from_utf8_lossy(&json.stdout)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["part"].to_string())
        .collect();
    assert_eq!(parts, ["\"part-00000001\"", "\"part-00000002\""]);

    refused(
        "UTC",
        ring,
        &["--from", "2026-11-28T14:05:00Z"],
        "nothing was recorded at 2026-11-28T14:05:00Z",
    );
    refused("UTC", ring, &["--from", "14:05:00"], "is not in");
    refused("UTC", ring, &["--from", "12s"], "there more than once");
    refused("UTC", ring, &["--from", "60"], "part-00000002 and in");
    refused("UTC", ring, &["--from", "1000"], "in no part");
    refused(
        "UTC",
        ring,
        &["--from", "14:13:02", "--to", "14:03:02"],
        "ends before it begins",
    );
    refused("UTC", ring, &[], "is a ring of 4 recordings");
    // What replays takes one part; here it gets as far as to see that it cannot.
    let output = debug_in("UTC", &["show", "--at", "14:03:12", "--at", "14:13:02"], ring);
    assert!(told(&output).contains("a replay is of one part"), "{}", told(&output));
    let output = debug_in("UTC", &["show", "--at", "14:03:12"], ring);
    assert!(!told(&output).contains("ring"), "{}", told(&output));

    let info = told(&debug_in("UTC", &["info"], ring));
    assert!(
        info.contains("2026-11-28T14:03:10Z") && info.contains("2026-11-28T14:13:00Z"),
        "{info}"
    );
}

#[test]
fn of_parts_that_overlap_the_one_with_the_least_to_replay_is_taken() {
    let ring_of = tempfile::tempdir().expect("a directory");
    ring(ring_of.path(), None);
    for (from, part) in [
        ("10s", 1),
        ("50", 1),
        ("12s", 2),
        ("60", 2),
        ("25s", 3),
        ("14:03:25", 3),
        ("end", 3),
    ] {
        let output = debug_in(
            "UTC",
            &["events", "--json", "--from", from, "--to", "end"],
            ring_of.path(),
        );
        let first = String::from_utf8_lossy(&output.stdout)
            .lines()
            .next()
            .map(str::to_owned);
        let value: Option<Value> = first.and_then(|line| serde_json::from_str(&line).ok());
        let name = value.map(|value| value["part"].clone());
        match part {
            // One part is no ring's any more.
            3 => assert!(name.is_none_or(|name| name.is_null()), "{from}"),
            _ => assert_eq!(
                name,
                Some(format!("part-{part:08}").into()),
                "{from}: {}",
                told(&output)
            ),
        }
    }
}

/// The host's clock was set back before the machine was booted anew.
#[test]
fn a_time_of_the_calendar_in_two_parts_is_told() {
    let ring_of = tempfile::tempdir().expect("a directory");
    ring(ring_of.path(), Some(NOVEMBER + 30));
    let twice = "as the calendar was set back: in";
    refused("UTC", ring_of.path(), &["--from", "2026-11-28T14:03:35Z"], twice);
    refused("UTC", ring_of.path(), &["--from", "14:03:35"], twice);
    assert_eq!(listed("UTC", ring_of.path(), &["--from", "14:03:41"]), lines(11..=40));
}
