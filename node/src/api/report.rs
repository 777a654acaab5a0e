//! The status as operators read it. docs/operations.md says what each field means.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockstep_proto::program::version;
use serde::{Deserialize, Serialize};

use super::identity::Identity;
use crate::status::{Card, Gauges, Recording, Role, Status};

/// Every state, without its reason.
pub const STATES: [&str; 14] = [
    "starting",
    "syncing",
    "protected",
    "protected, failover blocked",
    "switching-over",
    "cut-off",
    "stalled",
    "stalled, also after a handover",
    "not-protected",
    "fencing",
    "failing-over",
    "live",
    "frozen",
    "stopped",
];
/// Both roles.
pub const ROLES: [&str; 2] = ["primary", "backup"];

/// What one node tells at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The machine's name.
    pub machine: String,
    /// This node's name.
    pub node: String,
    /// `primary`: runs the machine; `backup`: stands by for it.
    pub role: String,
    /// The state, without its reason.
    pub state: String,
    /// What stands in parentheses behind the state.
    pub reason: Option<String>,
    /// The term held; of a backup, the primary's.
    pub term: u64,
    /// The other node, if it is connected.
    pub peer: Option<String>,
    /// The last natural stop.
    pub stop: u64,
    /// Guest time.
    pub guest_seconds: f64,
    /// How old the oldest part of the log is that the backup has not executed yet.
    pub lag_ms: f64,
    /// Turns whose effects wait for the backup.
    pub held: u64,
    /// How long half of the outputs were held at most while the machine was protected; none before there were any.
    pub held_p50_ms: Option<f64>,
    /// The same for 99 of 100.
    pub held_p99_ms: Option<f64>,
    /// Position of the log that the backup has received.
    pub received: u64,
    /// Position that it has verified.
    pub verified: u64,
    /// Position up to which effects have left.
    pub released: u64,
    /// Log for the backup.
    pub log_bytes: u64,
    /// The same for each second, over the last one or two.
    pub log_bytes_per_second: f64,
    /// What the guest sent.
    pub output_bytes: u64,
    /// The same for each second, over the last one or two.
    pub output_bytes_per_second: f64,
    /// Frames for the guest that were larger than its buffers.
    #[serde(default)]
    pub frames_too_large: u64,
    /// Frames of the guest's that the tap devices did not take.
    #[serde(default)]
    pub frames_not_taken: u64,
    /// Network cards.
    #[serde(default)]
    pub cards: Vec<Card>,
    /// Forced stops.
    pub forced_stops: u64,
    /// Pages that deltas carried.
    pub carried_pages: u64,
    /// Kernel modules of the guest that were looked through.
    #[serde(default)]
    pub modules: u64,
    /// Instructions in them that were rewritten.
    #[serde(default)]
    pub module_instructions: u64,
    /// What in modules could not be.
    #[serde(default)]
    pub modules_left: u64,
    /// Share of the guest's running time that a backup executes itself, 0 to 1; none before it ran.
    pub executed_share: Option<f64>,
    /// Share that deltas carry.
    pub carried_share: Option<f64>,
    /// Time that the vCPU was held back for a backup that lags.
    pub throttled_seconds: f64,
    /// Divergences found.
    pub divergences: u64,
    /// Heartbeats that did not come or were not answered before the next.
    pub heartbeats_missed: u64,
    /// What becomes of the recording.
    pub recording: Recording,
    /// The guest was asked to shut down, and is ended by force after so many seconds.
    pub shutdown_seconds: Option<f64>,
    /// The process.
    pub pid: u32,
    /// Of the program.
    pub version: String,
}

impl Report {
    /// What `status` says now, without rates.
    pub(crate) fn now(identity: &Identity, status: &Status) -> Self {
        let now = Instant::now();
        let rates = Rates::since(Sample::of(status.gauges(), now));
        Self::of(identity, status, &rates, now)
    }

    /// What `status` says now.
    pub(super) fn of(identity: &Identity, status: &Status, rates: &Rates, now: Instant) -> Self {
        let inner = status.get();
        let gauges = status.gauges();
        let (state, reason) = split(&inner.state);
        let per_second = rates.per_second(Sample::of(gauges, now));
        let (run, carried) = (get(&gauges.run_ns), get(&gauges.carried_ns));
        let held = |share| gauges.holds.quantile(share).map(|time| time.as_nanos() as f64 / 1e6);
        let carried_share = (run > 0).then(|| (carried as f64 / run as f64).min(1.0));
        Self {
            machine: identity.machine.clone(),
            node: identity.node.clone(),
            role: match inner.role {
                Role::Primary => "primary".into(),
                Role::Backup => "backup".into(),
            },
            state,
            reason,
            term: inner.term.get(),
            peer: Some(inner.peer).filter(|peer| !peer.is_empty()),
            stop: get(&gauges.stop),
            guest_seconds: get(&gauges.guest_ns) as f64 / 1e9,
            lag_ms: inner.lag_ns as f64 / 1e6,
            held: inner.held,
            held_p50_ms: held(0.5),
            held_p99_ms: held(0.99),
            received: inner.received,
            verified: inner.verified,
            released: inner.released,
            log_bytes: get(&gauges.log_bytes),
            log_bytes_per_second: per_second.0,
            output_bytes: get(&gauges.output_bytes),
            output_bytes_per_second: per_second.1,
            frames_too_large: get(&gauges.frames_too_large),
            frames_not_taken: status.taps().dropped(),
            cards: status.cards(),
            forced_stops: get(&gauges.forced),
            carried_pages: get(&gauges.carried_pages),
            modules: get(&gauges.modules),
            module_instructions: get(&gauges.module_instructions),
            modules_left: get(&gauges.modules_left),
            executed_share: carried_share.map(|share| 1.0 - share),
            carried_share,
            throttled_seconds: get(&gauges.throttled_ns) as f64 / 1e9,
            divergences: get(&gauges.divergences),
            heartbeats_missed: get(&gauges.heartbeats_missed),
            recording: status.recording(),
            shutdown_seconds: inner.ends_at.map(|at| at.saturating_duration_since(now).as_secs_f64()),
            pid: std::process::id(),
            version: version().into(),
        }
    }

    /// The state with its reason, as the programs' messages have it.
    pub fn words(&self) -> String {
        match &self.reason {
            Some(reason) => format!("{} ({reason})", self.state),
            None => self.state.clone(),
        }
    }

    /// Whether these words are its state, with or without the reason.
    pub fn is_in(&self, words: &str) -> bool {
        self.state == words || self.words() == words
    }

    /// Whether the death of either host would go unnoticed by the machine's clients.
    pub fn is_protected(&self) -> bool {
        self.state == "protected"
    }
}

fn get(gauge: &AtomicU64) -> u64 {
    gauge.load(Ordering::Relaxed)
}

/// A state and the reason in parentheses behind it. A node that has said nothing yet is starting.
fn split(words: &str) -> (String, Option<String>) {
    if words.is_empty() {
        return ("starting".into(), None);
    }
    let parts = words.strip_suffix(')').and_then(|rest| rest.split_once(" ("));
    parts.map_or((words.into(), None), |(state, reason)| {
        (state.into(), Some(reason.into()))
    })
}

/// Whether `words` are one of [`STATES`], with or without a reason.
pub fn is_a_state(words: &str) -> bool {
    !words.is_empty() && STATES.contains(&split(words).0.as_str())
}

/// From one sample to the next.
pub(super) const SAMPLING: Duration = Duration::from_secs(1);

/// What grows, at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    at: Instant,
    log: u64,
    output: u64,
}

impl Sample {
    pub(super) fn of(gauges: &Gauges, at: Instant) -> Self {
        Self {
            at,
            log: get(&gauges.log_bytes),
            output: get(&gauges.output_bytes),
        }
    }
}

/// The last two samples: rates are taken since the older one, so over one to two times [`SAMPLING`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    older: Sample,
    newer: Sample,
}

impl Rates {
    pub(super) fn since(sample: Sample) -> Self {
        Self {
            older: sample,
            newer: sample,
        }
    }

    pub(super) fn sample(&mut self, sample: Sample) {
        self.older = self.newer;
        self.newer = sample;
    }

    /// Bytes of log and of output for each second.
    fn per_second(&self, now: Sample) -> (f64, f64) {
        let seconds = now.at.saturating_duration_since(self.older.at).as_secs_f64();
        if seconds <= 0.0 {
            return (0.0, 0.0);
        }
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        (rate(now.log, self.older.log), rate(now.output, self.older.output))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::StatusInner;
    use crate::status::count;

    #[test]
    fn states_are_split_from_their_reasons() {
        assert_eq!(split("protected"), ("protected".into(), None));
        assert_eq!(
            split("not-protected (refused: host class (a) is not (b))"),
            (
                "not-protected".into(),
                Some("refused: host class (a) is not (b)".into())
            )
        );
        assert_eq!(split(""), ("starting".into(), None));
        for (words, is_one) in [
            ("protected", true),
            ("protected, failover blocked (no-arbiter)", true),
            ("frozen (lost-term)", true),
            ("cut-off (tap vm0 is gone)", true),
            ("stalled, also after a handover (no-stop)", true),
            ("protectd", false),
            ("(lost-term)", false),
            ("", false),
        ] {
            assert_eq!(is_a_state(words), is_one, "{words}");
        }
    }

    #[test]
    fn all_states_are_known() {
        use crate::status::describe;
        use lockstep_proto::quantity::LogPosition;
        use lockstep_proto::session::{Freeze, PrimaryState, Unprotected};
        let start = LogPosition::START;
        for state in [
            PrimaryState::Alone(Unprotected::Refused("a (b)".into())),
            PrimaryState::Greeting,
            PrimaryState::Syncing { state_sent: false },
            PrimaryState::Naming { catch_up: start },
            PrimaryState::Protected,
            PrimaryState::HandingOver {
                at: start,
                stalled: false,
                told: false,
            },
            PrimaryState::Fencing {
                why: Unprotected::Divergence,
                still: false,
            },
            PrimaryState::Frozen(Freeze::LostTerm),
        ] {
            let (words, _) = split(&describe(&state));
            assert!(STATES.contains(&words.as_str()), "{words}");
        }
    }

    #[test]
    fn a_report_says_what_the_status_and_the_gauges_say() {
        let identity = Identity {
            machine: "m".into(),
            node: "a".into(),
            pki: "/nowhere".into(),
        };
        let (status, begin) = (Status::default(), Instant::now());
        let rates = Rates::since(Sample::of(status.gauges(), begin));
        let empty = Report::of(&identity, &status, &rates, begin);
        assert_eq!(
            (empty.executed_share, empty.peer, empty.log_bytes_per_second),
            (None, None, 0.0)
        );
        status.set(StatusInner {
            role: Role::Primary,
            state: "not-protected (lost-connection)".into(),
            lag_ns: 1_500_000,
            ends_at: Some(begin + Duration::from_secs(5)),
            ..StatusInner::default()
        });
        count(&status.gauges().run_ns, 400);
        count(&status.gauges().carried_ns, 100);
        count(&status.gauges().log_bytes, 3000);
        status.gauges().holds.add(Duration::from_millis(2));
        let report = Report::of(&identity, &status, &rates, begin + Duration::from_millis(1500));
        assert_eq!((report.carried_share, report.executed_share), (Some(0.25), Some(0.75)));
        assert_eq!((report.lag_ms, report.log_bytes_per_second), (1.5, 2000.0));
        assert_eq!((empty.shutdown_seconds, report.shutdown_seconds), (None, Some(3.5)));
        assert_eq!(empty.held_p50_ms, None);
        assert!(report.held_p99_ms.is_some_and(|ms| (2.0..=2.25).contains(&ms)));
        assert!(report.is_in("not-protected") && report.is_in("not-protected (lost-connection)"));
        assert!(!report.is_in("not-protected (need-backup)") && !report.is_protected());
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }

    #[test]
    fn a_rate_is_over_the_last_second_or_two() {
        let (status, begin) = (Status::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut rates = Rates::since(Sample::of(status.gauges(), begin));
        count(&status.gauges().output_bytes, 1_000_000);
        for second in 1..=3 {
            rates.sample(Sample::of(status.gauges(), at(second)));
        }
        count(&status.gauges().output_bytes, 500);
        assert_eq!(rates.per_second(Sample::of(status.gauges(), at(4))), (0.0, 250.0));
    }
}
