//! What is printed at the end of a run.

use lockstep_node::tell;
use lockstep_proto::end::Reason;

use crate::session::Report;

/// Prints the report on standard error.
pub fn print_report(report: &Report, kicks: Option<u64>, json: bool) {
    let counters = report.counters;
    let ended = match report.ended {
        None => "ended from outside",
        Some(Reason::Reset) => "the guest reset",
        Some(Reason::PoweredOff) => "the guest powered off",
        Some(Reason::Halted) => "the guest halted with interrupts off",
        Some(_) => "ended",
    };
    let log = report.log.unwrap_or_default();
    if json {
        let value = serde_json::json!({
            "ended": ended,
            "stops": report.stops,
            "interrupts": counters.interrupts,
            "forced_stops": counters.forced,
            "delta_pages": counters.carried_pages,
            "kicks": kicks,
            "epochs": counters.epochs,
            "epoch_pages": counters.epoch_pages,
            "assists": counters.assists,
            "msr_faults": counters.msr_faults,
            "modules": counters.modules,
            "module_instructions": counters.module_instructions,
            "modules_left": counters.modules_left,
            "guest_seconds": report.guest_ns as f64 / 1e9,
            "wall_seconds": report.wall.as_secs_f64(),
            "log_bytes": log.total_bytes,
            "log_batch_bytes": log.batch_bytes,
            "log_delta_bytes": log.page_bytes,
            "recording_stopped": report.unrecorded,
        });
        tell!("{value}");
        return;
    }
    tell!(
        "lockstep-primary: {ended} after {} stops, {:.1} s of guest time, {:.1} s here",
        report.stops,
        report.guest_ns as f64 / 1e9,
        report.wall.as_secs_f64()
    );
    tell!(
        "lockstep-primary: {} interrupts, {} forced stops, {} instructions assisted, {} MSR faults",
        counters.interrupts,
        counters.forced,
        counters.assists,
        counters.msr_faults
    );
    if counters.modules + counters.modules_left > 0 {
        tell!(
            "lockstep-primary: {} kernel modules looked through: {} instructions rewritten, {} left",
            counters.modules,
            counters.module_instructions,
            counters.modules_left
        );
    }
    if let Some(kicks) = kicks {
        tell!("lockstep-primary: {kicks} random kicks");
    }
    if let Some(reason) = &report.unrecorded {
        tell!("lockstep-primary: not recorded to the end: {reason}");
    }
    if report.log.is_some() {
        tell!(
            "lockstep-primary: log of {} bytes: turns {}, delta pages {} ({} pages); {} epochs over {} dirty pages",
            log.total_bytes,
            log.batch_bytes,
            log.page_bytes,
            counters.carried_pages,
            counters.epochs,
            counters.epoch_pages
        );
    }
}
