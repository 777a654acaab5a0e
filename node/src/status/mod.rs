//! What a node tells about itself: the pair's state in the words that operators know, and what the vCPU thread counts.

pub mod pulse;
pub mod times;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use self::pulse::Pulse;
use self::times::{Exits, Times};
use crate::history::History;
use crate::host::tap::Taps;
use crate::out::one_line;
use lockstep_proto::quantity::Term;
use lockstep_proto::session::{Freeze, PrimaryState, Unprotected};

/// Target of the messages that tell the pair's state, the same in both programs.
pub const STATE_MESSAGES: &str = "lockstep::state";

/// What a node tells about itself.
#[derive(Clone, Default)]
pub struct Status(Arc<Shared>);

#[derive(Default)]
struct Shared {
    inner: Mutex<StatusInner>,
    recording: Mutex<Recording>,
    changed: Condvar,
    gauges: Gauges,
    history: History,
    pulses: Pulses,
    taps: OnceLock<Taps>,
    cards: OnceLock<Vec<Card>>,
}

/// The threads that must not stand still.
#[derive(Default)]
pub struct Pulses {
    /// Of either end of the link.
    pub link: Pulse,
    /// The vCPU's, where the machine runs.
    pub vcpu: Pulse,
}

/// Whether a node runs the machine or stands by for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It stands by.
    #[default]
    Backup,
    /// It runs the machine.
    Primary,
}

/// A moment's status, as the link knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusInner {
    /// Whether it runs the machine.
    pub role: Role,
    /// The session's state in words: `protected`, `not-protected (need-backup)` and so on.
    pub state: String,
    /// The term held; of a backup, the primary's.
    pub term: Term,
    /// The peer, if it is connected.
    pub peer: String,
    /// Position of the log that the backup has received.
    pub received: u64,
    /// Position that it has verified.
    pub verified: u64,
    /// Effects' position that left last.
    pub released: u64,
    /// Turns whose effects wait for the backup.
    pub held: u64,
    /// How old the oldest part of the log is that the backup has not executed yet, in nanoseconds.
    pub lag_ns: u64,
    /// The guest was asked to shut down, and is ended by force then.
    pub ends_at: Option<Instant>,
    /// Why clients would not reach the machine on this host, if that is so.
    pub cut_off: Option<String>,
    /// The machine does not move, whatever the state says: its thread hears nothing.
    pub stalled: bool,
}

/// Whether the machine is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordingState {
    /// Nobody wants it to be.
    #[default]
    Off,
    /// It is.
    On,
    /// It was, and cannot be any more: the machine goes on without.
    Stopped,
}

impl RecordingState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Off, Self::On, Self::Stopped];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Stopped => "stopped",
        }
    }
}

/// What becomes of the recording.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Recording {
    /// Whether there is one.
    pub state: RecordingState,
    /// Why it was stopped.
    pub reason: Option<String>,
    /// Bytes of its log so far; of a ring, those of all its parts on the disk.
    pub bytes: u64,
    /// Parts of a ring that are there; 0: it is none.
    #[serde(default)]
    pub parts: u64,
}

/// A network card of the machine's.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Card {
    /// Its tap device on this host.
    pub tap: String,
    /// The guest's address.
    pub mac: String,
}

/// What the vCPU thread counts, from the process' start on; the other threads read it.
#[derive(Default)]
pub struct Gauges {
    /// The last natural stop.
    pub stop: AtomicU64,
    /// Guest time, in nanoseconds.
    pub guest_ns: AtomicU64,
    /// Forced stops.
    pub forced: AtomicU64,
    /// Pages that deltas carried.
    pub carried_pages: AtomicU64,
    /// Kernel modules of the guest that were looked through.
    pub modules: AtomicU64,
    /// Instructions in them that were rewritten.
    pub module_instructions: AtomicU64,
    /// What in modules could not be.
    pub modules_left: AtomicU64,
    /// Time in slices that were carried by a delta, in nanoseconds.
    pub carried_ns: AtomicU64,
    /// Time in all slices, in nanoseconds.
    pub run_ns: AtomicU64,
    /// Bytes of log for the backup.
    pub log_bytes: AtomicU64,
    /// Bytes that the guest sent: frames and console.
    pub output_bytes: AtomicU64,
    /// Frames for the guest that were larger than its buffers.
    pub frames_too_large: AtomicU64,
    /// Frames for the guest that found no buffer, or no driver; since the machine was booted.
    pub frames_unwanted: AtomicU64,
    /// Frames of the guest's that were none; since the machine was booted.
    pub frames_malformed: AtomicU64,
    /// Console bytes that a reader who was too slow did not get.
    pub console_dropped: AtomicU64,
    /// Time that the vCPU was held back for a backup that lags, in nanoseconds.
    pub throttled_ns: AtomicU64,
    /// Since when something has been due that no stop has served, host time; 0: nothing is.
    pub due_since: AtomicU64,
    /// How far guest time, counted from the machine's calendar at its start, is behind this host's calendar, in nanoseconds.
    pub behind_ns: AtomicI64,
    /// How often the guest was found not to move though something was due; the first may be the other node's.
    pub stalls: AtomicU64,
    /// Times that the machine was booted anew here after a reset, also by processes that this one has taken the place of.
    pub restarts: AtomicU64,
    /// Divergences found.
    pub divergences: AtomicU64,
    /// Heartbeats that did not come or were not answered in time.
    pub heartbeats_missed: AtomicU64,
    /// Bytes of the recording.
    pub recording_bytes: AtomicU64,
    /// Its parts, where it is a ring.
    pub recording_parts: AtomicU64,
    /// How long outputs of a protected machine were held.
    pub holds: Times,
    /// How long turns took.
    pub exits: Exits,
}

/// Adds to a gauge.
pub fn count(gauge: &AtomicU64, more: u64) {
    gauge.fetch_add(more, Ordering::Relaxed);
}

impl Status {
    /// The status now.
    pub fn get(&self) -> StatusInner {
        self.lock().clone()
    }

    /// Changes it. True when the state's words are new.
    pub fn set(&self, new: StatusInner) -> bool {
        let mut inner = self.lock();
        let changed = inner.state != new.state;
        let told = changed || (inner.role, inner.term) != (new.role, new.term);
        *inner = new;
        if told {
            self.0.changed.notify_all();
        }
        changed
    }

    /// Whether an operator has suspended the protection of the machine that this node runs.
    pub fn is_suspended(&self) -> bool {
        self.lock().state.contains(&format!("({SUSPENDED})"))
    }

    /// Waits until state, role and term fulfil `wanted`; false when the time is over before.
    pub fn wait_for(&self, wanted: impl Fn(&StatusInner) -> bool, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut inner = self.lock();
        while !wanted(&inner) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.0.changed.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// What becomes of the recording.
    pub fn recording(&self) -> Recording {
        let gauges = self.gauges();
        let recording = self.0.recording.lock().unwrap_or_else(PoisonError::into_inner);
        Recording {
            bytes: gauges.recording_bytes.load(Ordering::Relaxed),
            parts: gauges.recording_parts.load(Ordering::Relaxed),
            ..recording.clone()
        }
    }

    /// Tells that the recording begins.
    pub fn record(&self) {
        self.set_recording(RecordingState::On, None);
    }

    /// Tells that it cannot go on, though the machine does.
    pub fn stop_recording(&self, reason: &str) {
        tracing::error!(
            "the recording stops, and the machine goes on: cannot write the log: {reason}; what was written before is whole \
             and can be replayed"
        );
        self.set_recording(RecordingState::Stopped, Some(reason.into()));
    }

    fn set_recording(&self, state: RecordingState, reason: Option<String>) {
        let mut recording = self.0.recording.lock().unwrap_or_else(PoisonError::into_inner);
        (recording.state, recording.reason) = (state, reason);
    }

    /// What the vCPU thread counts.
    pub fn gauges(&self) -> &Gauges {
        &self.0.gauges
    }

    /// Whether the threads live.
    pub fn pulses(&self) -> &Pulses {
        &self.0.pulses
    }

    /// From now on it tells of these tap devices, which are the machine's.
    pub fn look_at(&self, taps: Taps) {
        // A node that goes live has the same as when it stood by.
        let _ = self.0.taps.set(taps);
    }

    /// The machine's tap devices on this host, once there are any.
    pub fn taps(&self) -> Taps {
        self.0.taps.get().cloned().unwrap_or_default()
    }

    /// From now on it tells of these cards.
    pub fn tell_cards(&self, cards: Vec<Card>) {
        let _ = self.0.cards.set(cards);
    }

    /// The machine's network cards.
    pub fn cards(&self) -> Vec<Card> {
        self.0.cards.get().cloned().unwrap_or_default()
    }

    /// The vCPU thread's registers at the last stops.
    pub fn history(&self) -> &History {
        &self.0.history
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, StatusInner> {
        // Plain values: whole whenever the lock is free.
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a machine is not protected whose protection an operator has suspended.
const SUSPENDED: &str = "suspended-by-user";

/// The state in the words that operators know (docs/protocol.md).
pub fn describe(state: &PrimaryState) -> String {
    let reason = |why: &Unprotected| match why {
        Unprotected::NeedBackup => "need-backup".to_owned(),
        Unprotected::LostConnection => "lost-connection".into(),
        Unprotected::Divergence => "divergence".into(),
        // It may be the other node's words.
        Unprotected::Refused(reason) => format!("refused: {}", one_line(reason)),
        Unprotected::Suspended => SUSPENDED.into(),
        Unprotected::Stalled => "stalled-there".into(),
    };
    match state {
        PrimaryState::Alone(why) => format!("not-protected ({})", reason(why)),
        PrimaryState::Greeting | PrimaryState::Syncing { .. } | PrimaryState::Naming { .. } => "syncing".into(),
        PrimaryState::Protected => "protected".into(),
        PrimaryState::HandingOver { .. } => "switching-over".into(),
        PrimaryState::Fencing { why, .. } => format!("fencing ({})", reason(why)),
        PrimaryState::Frozen(Freeze::LostTerm) => "frozen (lost-term)".into(),
        PrimaryState::Frozen(Freeze::NoArbiter) => "frozen (no-arbiter)".into(),
        PrimaryState::Frozen(Freeze::Handover) => "frozen (handover)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiter_hears_of_a_change() {
        let status = Status::default();
        let protected = |inner: &StatusInner| inner.state == "protected";
        assert!(!status.wait_for(protected, Duration::ZERO));
        let waiter = status.clone();
        let waiting = std::thread::spawn(move || waiter.wait_for(protected, Duration::from_secs(60)));
        let new = StatusInner {
            state: "protected".into(),
            ..StatusInner::default()
        };
        assert!(status.set(new.clone()));
        assert!(waiting.join().unwrap());
        assert!(!status.set(new));
    }
}
