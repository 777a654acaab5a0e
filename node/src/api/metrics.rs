//! The status as Prometheus reads it. docs/metrics.md says what each metric means.
//!
//! prometheus-client writes OpenMetrics, whose counters have `_total` behind their family's name. What is written here has it
//! in the family's name too: that is Prometheus' older text format, which everything reads.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use lockstep_proto::program::newest_revision;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text::encode_registry};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::report::{ROLES, Report, STATES};
use crate::status::times::Times;
use crate::status::{RecordingState, Status};

/// What each name begins with.
const PREFIX: &str = "lockstep";
/// Ends of the buckets for held outputs, as powers of two of nanoseconds: 66 us to 9 s.
const HOLDS: [u32; 18] = [16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33];
/// The same for turns: 1 us to 1 s.
const EXITS: [u32; 11] = [10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30];

/// What a node tells at one moment; `not_after` is when its certificate ends, if it can be read.
pub(super) fn text(report: Report, status: &Status, not_after: Option<SystemTime>) -> String {
    let labels = [("machine", &report.machine), ("node", &report.node)];
    let labels = labels.map(|(name, value)| (name.into(), escaped(value).into()));
    let mut registry = Registry::with_prefix_and_labels(PREFIX, labels.into_iter());
    registry.register_collector(Box::new(Moment {
        report,
        status: status.clone(),
        not_after,
    }));
    let mut text = String::new();
    match encode_registry(&mut text, &registry) {
        Ok(()) => text,
        // A string takes all that is written, and numbers and labels can be written.
        Err(fmt::Error) => String::new(),
    }
}

/// A label's value as the format wants it; the library writes it as it is.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

struct Moment {
    report: Report,
    status: Status,
    not_after: Option<SystemTime>,
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report.fmt(f)
    }
}

impl Collector for Moment {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let to = &mut encoder;
        self.info(to)?;
        self.counters(to)?;
        self.gauges(to)?;
        let gauges = self.status.gauges();
        let help = "Time that outputs of a protected machine waited for the backup.";
        let mut family = to.encode_descriptor("output_held_seconds", help, None, MetricType::Histogram)?;
        let (ends, count) = buckets(&gauges.holds, HOLDS);
        family.encode_histogram::<NoLabelSet>(gauges.holds.sum(), count, &ends, None)?;
        let help = "Time from an exit of the vCPU to the effects of its turn, without idle time.";
        let mut family = to.encode_descriptor("exit_seconds", help, None, MetricType::Histogram)?;
        for (kind, times) in gauges.exits.iter() {
            let (ends, count) = buckets(times, EXITS);
            let labels = [("kind", kind)];
            let mut metric = family.encode_family(&labels)?;
            metric.encode_histogram::<NoLabelSet>(times.sum(), count, &ends, None)?;
        }
        Ok(())
    }
}

type Buckets = Vec<(f64, u64)>;

/// Ends of buckets, in seconds, with what is in each, and the number of all.
fn buckets<const N: usize>(times: &Times, exponents: [u32; N]) -> (Buckets, u64) {
    let (counts, others) = times.by_doubling(exponents);
    let last = |exponent: u32| ((1_u64 << exponent) - 1) as f64 / 1e9;
    let mut buckets: Buckets = exponents.into_iter().map(last).zip(counts).collect();
    buckets.push((f64::MAX, others));
    (buckets, counts.iter().sum::<u64>() + others)
}

/// One gauge for each word, 1 for the one that holds.
fn one_of<'a>(
    to: &mut DescriptorEncoder,
    (name, help, label): (&str, &str, &str),
    words: impl Iterator<Item = &'a str>,
    now: &str,
) -> fmt::Result {
    let mut family = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for word in words {
        let labels = [(label, word)];
        family.encode_family(&labels)?.encode_gauge(&i64::from(word == now))?;
    }
    Ok(())
}

impl Moment {
    fn info(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        let report = &self.report;
        let help = "The program: its version, and the newest device model that it has.";
        let mut family = to.encode_descriptor("build_info", help, None, MetricType::Gauge)?;
        let newest = newest_revision().to_string();
        let labels = [("version", report.version.as_str()), ("model_revision", &newest)];
        family.encode_family(&labels)?.encode_gauge(&1_i64)?;
        let (help, states) = ("The state without its reason: 1 for the one that holds.", STATES);
        one_of(to, ("state", help, "state"), states.into_iter(), &report.state)?;
        let help = "Whether the node runs the machine or stands by: 1 for the one that holds.";
        one_of(to, ("role", help, "role"), ROLES.into_iter(), &report.role)?;
        let help = "What becomes of the recording: 1 for the one that holds.";
        let (words, now) = (RecordingState::ALL, report.recording.state);
        one_of(
            to,
            ("recording_state", help, "state"),
            words.map(RecordingState::word).into_iter(),
            now.word(),
        )
    }

    fn counters(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        let report = &self.report;
        for (name, help, value) in [
            ("stops_total", "Natural stops of the machine.", report.stop as f64),
            ("guest_seconds_total", "Guest time.", report.guest_seconds),
            (
                "forced_stops_total",
                "Stops by force: deltas, where somebody gets the log.",
                report.forced_stops as f64,
            ),
            (
                "carried_pages_total",
                "Pages that deltas carried.",
                report.carried_pages as f64,
            ),
            (
                "modules_total",
                "Kernel modules of the guest that were looked through.",
                report.modules as f64,
            ),
            (
                "module_instructions_total",
                "Instructions in modules that were rewritten.",
                report.module_instructions as f64,
            ),
            (
                "modules_left_total",
                "What in modules could not be rewritten or read.",
                report.modules_left as f64,
            ),
            ("log_bytes_total", "Log for the backup.", report.log_bytes as f64),
            (
                "output_bytes_total",
                "Frames and console that the guest sent.",
                report.output_bytes as f64,
            ),
            ("divergences_total", "Divergences found.", report.divergences as f64),
            (
                "stalls_total",
                "Times that the guest did not move though something was due, here or right before it came here.",
                self.status.gauges().stalls.load(Ordering::Relaxed) as f64,
            ),
            (
                "restarts_total",
                "Times that the machine was booted anew here after its guest's reset.",
                self.status.gauges().restarts.load(Ordering::Relaxed) as f64,
            ),
            (
                "heartbeats_missed_total",
                "Heartbeats that did not come, or were not answered before the next.",
                report.heartbeats_missed as f64,
            ),
            (
                "throttled_seconds_total",
                "Time that the vCPU was held back for a backup that lags.",
                report.throttled_seconds,
            ),
        ] {
            to.encode_descriptor(name, help, None, MetricType::Counter)?
                .encode_gauge(&value)?;
        }
        let gauges = self.status.gauges();
        let help = "Console output that was dropped: who reads it is too slow, or gone.";
        let dropped = gauges.console_dropped.load(Ordering::Relaxed) as f64;
        to.encode_descriptor("console_dropped_bytes_total", help, None, MetricType::Counter)?
            .encode_gauge(&dropped)?;
        let help = "Frames that were dropped: for the guest, larger than its buffers or without one; of the guest, no frames, or \
                    not taken by the host's tap device.";
        let mut family = to.encode_descriptor("frames_dropped_total", help, None, MetricType::Counter)?;
        for (why, frames) in [
            ("too-large", gauges.frames_too_large.load(Ordering::Relaxed)),
            ("no-buffer", gauges.frames_unwanted.load(Ordering::Relaxed)),
            ("malformed", gauges.frames_malformed.load(Ordering::Relaxed)),
            ("not-taken", self.status.taps().dropped()),
        ] {
            family.encode_family(&[("why", why)])?.encode_gauge(&(frames as f64))?;
        }
        let ran = gauges.run_ns.load(Ordering::Relaxed);
        let carried = gauges.carried_ns.load(Ordering::Relaxed).min(ran);
        let help = "Running time of the guest that a backup executes itself, and that deltas carry.";
        let mut family = to.encode_descriptor("run_seconds_total", help, None, MetricType::Counter)?;
        for (by, ns) in [("executed", ran - carried), ("carried", carried)] {
            family.encode_family(&[("by", by)])?.encode_gauge(&(ns as f64 / 1e9))?;
        }
        Ok(())
    }

    fn gauges(&self, to: &mut DescriptorEncoder) -> fmt::Result {
        let report = &self.report;
        let since = self
            .not_after
            .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let ends = since.map_or(0.0, |since| since.as_secs_f64());
        for (name, help, value) in [
            ("term", "The term held; of a backup, its primary's.", report.term as f64),
            (
                "peer_connected",
                "Whether the other node is connected.",
                f64::from(u8::from(report.peer.is_some())),
            ),
            (
                "cut_off",
                "Whether clients would not reach the machine on this host: a tap device or the uplink is gone or down.",
                f64::from(u8::from(self.status.get().cut_off.is_some())),
            ),
            (
                "lag_seconds",
                "Age of the oldest log that the backup has not executed.",
                report.lag_ms / 1e3,
            ),
            (
                "held_outputs",
                "Turns whose output waits for the backup.",
                report.held as f64,
            ),
            (
                "recording_bytes",
                "Size of the recording's log; of a ring, of all its parts.",
                report.recording.bytes as f64,
            ),
            (
                "recording_parts",
                "Parts of the recording's ring; 0: it is none.",
                report.recording.parts as f64,
            ),
            (
                "clock_behind_seconds",
                "How far the machine's clock is behind this host's calendar; less than 0: ahead.",
                self.status.gauges().behind_ns.load(Ordering::Relaxed) as f64 / 1e9,
            ),
            (
                "certificate_expiry_timestamp_seconds",
                "When this node's certificate ends; 0: it cannot be read.",
                ends,
            ),
        ] {
            to.encode_descriptor(name, help, None, MetricType::Gauge)?
                .encode_gauge(&value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Identity;
    use crate::api::report::{Rates, Sample};
    use crate::status::StatusInner;
    use crate::status::count;
    use std::time::{Duration, Instant};

    fn told(status: &Status, machine: &str) -> String {
        let now = Instant::now();
        let rates = Rates::since(Sample::of(status.gauges(), now));
        let identity = Identity {
            machine: machine.into(),
            node: "a".into(),
            pki: "/nowhere".into(),
        };
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(12);
        text(Report::of(&identity, status, &rates, now), status, Some(not_after))
    }

    #[test]
    fn the_text_says_what_the_status_says() {
        let status = Status::default();
        status.set(StatusInner {
            state: "protected, failover blocked (no-arbiter)".into(),
            cut_off: Some("tap vm0 is gone".into()),
            ..StatusInner::default()
        });
        count(&status.gauges().log_bytes, 1000);
        count(&status.gauges().run_ns, 4_000_000_000);
        count(&status.gauges().carried_ns, 1_000_000_000);
        count(&status.gauges().recording_parts, 3);
        count(&status.gauges().stalls, 2);
        count(&status.gauges().frames_too_large, 7);
        status.gauges().holds.add(Duration::from_micros(70));
        status
            .gauges()
            .exits
            .add_ns(lockstep_vmm::machine::StopKind::Halt, 5000);
        let text = told(&status, "m");
        let node = r#"machine="m",node="a""#;
        for line in [
            "# TYPE lockstep_log_bytes_total counter".to_owned(),
            format!("lockstep_log_bytes_total{{{node}}} 1000.0"),
            format!(r#"lockstep_state{{{node},state="protected, failover blocked"}} 1"#),
            format!(r#"lockstep_state{{{node},state="protected"}} 0"#),
            format!(r#"lockstep_run_seconds_total{{{node},by="executed"}} 3.0"#),
            format!("lockstep_output_held_seconds_count{{{node}}} 1"),
            format!(r#"lockstep_output_held_seconds_bucket{{{node},le="0.000065535"}} 0"#),
            format!(r#"lockstep_output_held_seconds_bucket{{{node},le="0.000131071"}} 1"#),
            format!(r#"lockstep_output_held_seconds_bucket{{{node},le="+Inf"}} 1"#),
            format!(r#"lockstep_exit_seconds_count{{{node},kind="halt"}} 1"#),
            format!(r#"lockstep_recording_state{{{node},state="off"}} 1"#),
            format!("lockstep_recording_parts{{{node}}} 3.0"),
            format!("lockstep_cut_off{{{node}}} 1.0"),
            format!(r#"lockstep_frames_dropped_total{{{node},why="too-large"}} 7.0"#),
            format!(r#"lockstep_frames_dropped_total{{{node},why="not-taken"}} 0.0"#),
            format!("lockstep_stalls_total{{{node}}} 2.0"),
            format!(r#"lockstep_state{{{node},state="stalled"}} 0"#),
            format!("lockstep_certificate_expiry_timestamp_seconds{{{node}}} 12.0"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}:\n{text}");
        }
    }

    #[test]
    fn a_name_cannot_break_out_of_its_label() {
        let text = told(&Status::default(), "x\"} 1\n\\");
        assert!(text.contains(r#"machine="x\"} 1\n\\","#), "{text}");
    }
}
