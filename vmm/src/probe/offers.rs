//! What the host takes and what it offers besides, in words.

use super::capabilities::Capabilities;
use super::msrs::Outcome;
use super::rows::{Rows, needed};
use super::timing::Timing;

fn micros(time: &Result<u64, String>) -> String {
    match time {
        Ok(ns) => format!("{:.1} us", *ns as f64 / 1e3),
        Err(why) => why.clone(),
    }
}

pub(super) fn timing(rows: &mut Rows, timing: &Timing) {
    for (name, fact, time, consequence) in [
        ("pio", "port write, round trip", &timing.pio_ns, "what a stop costs"),
        (
            "mmio-kernel",
            "device store in ring 0, round trip",
            &timing.mmio_ns,
            "what a stop costs",
        ),
        (
            "mmio-user",
            "device store in ring 3, round trip",
            &timing.mmio_user_ns,
            "rare: programs seldom map devices",
        ),
        (
            "kick-kernel",
            "kick to return, ring 0 (longest)",
            &timing.kick_ns,
            "how late a forced stop is",
        ),
        (
            "kick-user",
            "kick to return, ring 3 (longest)",
            &timing.kick_user_ns,
            "how late a forced stop is",
        ),
    ] {
        rows.add(name, fact, micros(time), consequence);
    }
}

pub(super) fn capabilities(rows: &mut Rows, found: &Capabilities) {
    rows.add(
        "tsc-control",
        "TSC scaling (KVM_CAP_TSC_CONTROL)",
        if found.tsc_control { "offered" } else { "not offered" },
        if found.tsc_control {
            "could freeze the TSC of programs; not verified, so off"
        } else {
            "the TSC cannot be frozen"
        },
    );
    for (name, ring, outcome) in [
        ("tsc-frozen-kernel", "ring 0", &found.tsc_frozen[0]),
        ("tsc-frozen-user", "ring 3", &found.tsc_frozen[1]),
    ] {
        let result = if *outcome == Outcome::Works {
            "it stands still".to_owned()
        } else {
            outcome.to_string()
        };
        rows.add(name, format!("guest TSC at 1 kHz, {ring}"), result, "not used so far");
    }
    rows.add(
        "dirty-log",
        "dirty log",
        &found.dirty_log,
        needed(&found.dirty_log, "names what deltas and epochs carry"),
    );
    rows.add(
        "dirty-ring",
        "dirty ring",
        if found.dirty_ring_bytes == 0 {
            "not offered".to_owned()
        } else {
            format!("offered, {} KiB", found.dirty_ring_bytes / 1024)
        },
        "not used: the dirty log serves",
    );
    rows.add(
        "pmu",
        "counter of retired instructions",
        &found.pmu,
        if found.pmu == Outcome::Works {
            "could name positions between exits; not verified, so off"
        } else {
            "positions between exits have no names: forced stops need deltas"
        },
    );
}
