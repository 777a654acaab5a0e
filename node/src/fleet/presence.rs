//! The thread by which a node tells how its machine is.
//!
//! Invariants:
//! - It changes nothing but its own key. What etcd does not take is told later; a process' end waits for one request that is under
//!   way and one that takes back what was told, each of which is bounded.
//! - Requests are few: a change of the state is told within [`LOOK`] where etcd answers, all else waits for the next beat or longer.
//! - Each beat finds out whether what stands under the key is what was told, and under this process' lease: others may have written
//!   there, or older data were restored.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::TTL;
use super::told::{self, Told};
use crate::api::{Identity, Report};
use crate::arbiter::{ArbiterError, Gateway};
use crate::sandbox::{self, Kind};
use crate::status::Status;

/// From one look at the status to the next.
const LOOK: Duration = Duration::from_secs(1);
/// From one sign of life to the next, and to the next try after a refusal.
const BEAT: Duration = Duration::from_secs(5);
/// To the next try where etcd did not answer.
const AGAIN: Duration = Duration::from_secs(2);
/// From one text that differs by its lag alone to the next: each is a revision that etcd keeps until it is compacted.
const LAG: Duration = Duration::from_secs(60);

/// The thread. Dropping it takes back what was told, if etcd answers.
pub struct Presence {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Presence {
    /// Tells by `gateway` how this machine is, until it is dropped.
    pub fn start(gateway: Gateway, identity: Identity, status: Status) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let mut teller = Teller {
            gateway,
            identity,
            last: None,
            trouble: None,
            course: Course::default(),
        };
        let thread = sandbox::spawn(Kind::Network, "presence", move || {
            while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                // A panic ends this one look: a name is looked up in a thread of its own, of which there may be too many just now.
                if catch_unwind(AssertUnwindSafe(|| teller.look(&status, &stopped))).is_err() {
                    teller.course.lost();
                }
            }
            teller.leave();
        })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is to be asked of etcd next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// A lease.
    Grant,
    /// To keep this text.
    Put(Box<Told>),
    /// To begin the lease anew, and to keep this text if it is not there.
    Beat(Box<Told>),
}

/// What was asked so far, and what follows.
#[derive(Debug, Default)]
struct Course {
    lease: Option<String>,
    told: Option<Told>,
    /// When the text was put.
    put: Option<Instant>,
    /// When the lease began last.
    beat: Option<Instant>,
    /// Nothing is asked before: etcd did not answer, or refused.
    not_before: Option<Instant>,
}

impl Course {
    /// What to ask at `now`, where this is to be told.
    fn next(&self, told: &Told, now: Instant) -> Option<Step> {
        if self.not_before.is_some_and(|then| now < then) {
            return None;
        }
        let is_older = |than: Option<Instant>, age| than.is_none_or(|then| now.saturating_duration_since(then) >= age);
        // A lease that nobody has heard of for its whole time has ended.
        if self.lease.is_none() || is_older(self.beat, TTL) {
            return Some(Step::Grant);
        }
        match &self.told {
            Some(before) if before == told || before.differs_by_lag_alone(told) && !is_older(self.put, LAG) => {
                is_older(self.beat, BEAT).then(|| Step::Beat(Box::new(before.clone())))
            }
            _ => Some(Step::Put(Box::new(told.clone()))),
        }
    }

    /// The lease has ended, and with it what was told.
    fn lost(&mut self) {
        *self = Self::default();
    }
}

struct Teller {
    gateway: Gateway,
    identity: Identity,
    /// What there was to tell at the last look.
    last: Option<Told>,
    /// Why etcd refuses, so that it is said once.
    trouble: Option<String>,
    course: Course,
}

impl Teller {
    fn look(&mut self, status: &Status, stopped: &Receiver<()>) {
        let report = Report::now(&self.identity, status);
        let now = OffsetDateTime::now_utc().replace_nanosecond(0);
        let now = now.ok().and_then(|now| now.format(&Rfc3339).ok()).unwrap_or_default();
        let mut told = Told::of(&report, now);
        if let Some(before) = self.last.take().filter(|before| told.is_in_the_state_of(before)) {
            told.since = before.since;
        }
        self.last = Some(told.clone());
        // A lease, its text and its first beat are three.
        for _ in 0..3 {
            let at = Instant::now();
            let Some(step) = self.course.next(&told, at) else {
                return;
            };
            // The process ends: nothing more is told.
            if stopped.try_recv() == Err(TryRecvError::Disconnected) {
                return;
            }
            self.course.not_before = None;
            match self.ask(step, at) {
                Ok(()) => self.trouble = None,
                Err(error) => {
                    let pause = if error.is_unreachable() { AGAIN } else { BEAT };
                    self.course.not_before = Some(Instant::now() + pause);
                    return self.tell(&error);
                }
            }
        }
    }

    /// Whoever asks the arbiter for the record says that it does not answer.
    fn tell(&mut self, error: &ArbiterError) {
        if error.is_unreachable() {
            return tracing::debug!("how the machine is cannot be told: {error}");
        }
        let trouble = error.to_string();
        if self.trouble.as_ref() != Some(&trouble) {
            tracing::warn!("`fleet` does not know how this machine is: {trouble}");
        }
        self.trouble = Some(trouble);
    }

    fn ask(&mut self, step: Step, at: Instant) -> Result<(), ArbiterError> {
        match step {
            Step::Grant => {
                self.course.lost();
                let body = json!({ "TTL": TTL.as_secs().to_string() });
                self.course.lease = Some(self.gateway.post("/v3/lease/grant", &body, granted)?);
                self.course.beat = Some(at);
            }
            Step::Put(told) => {
                // Whether it is there after a request without an answer, nobody knows.
                self.course.told = None;
                let put = self.put(&told);
                if self.keep("/v3/kv/put", &put)? {
                    (self.course.told, self.course.put) = (Some(*told), Some(at));
                }
            }
            Step::Beat(told) => {
                let body = json!({ "ID": self.course.lease });
                if !self
                    .gateway
                    .post("/v3/lease/keepalive", &body, |answer| Some(lives(answer)))?
                {
                    self.course.lost();
                    return Ok(());
                }
                self.course.beat = Some(at);
                let put = self.put(&told);
                // No revision of etcd's where all is as it should be.
                let same = json!({
                    "compare": [
                        { "key": put["key"], "target": "VALUE", "result": "EQUAL", "value": put["value"] },
                        { "key": put["key"], "target": "LEASE", "result": "EQUAL", "lease": put["lease"] },
                    ],
                    "failure": [{ "request_put": put }],
                });
                self.keep("/v3/kv/txn", &same)?;
            }
        }
        Ok(())
    }

    /// To keep a text under this node's key and its lease.
    fn put(&self, told: &Told) -> Value {
        let text = serde_json::to_string(told).unwrap_or_default();
        let key = told::key(&self.identity.machine, &self.identity.node);
        json!({ "key": BASE64.encode(key), "value": BASE64.encode(text), "lease": self.course.lease })
    }

    /// Whether it was done; not if the lease has ended.
    fn keep(&mut self, path: &str, body: &Value) -> Result<bool, ArbiterError> {
        let kept = self.gateway.post(path, body, |_| Some(()));
        if kept.as_ref().is_err_and(is_without_lease) {
            self.course.lost();
            return Ok(false);
        }
        kept.map(|()| true)
    }

    fn leave(&mut self) {
        // An etcd that did not answer just now is not waited for.
        if let Some(lease) = self.course.lease.take()
            && self.course.not_before.is_none()
            && let Err(error) = self
                .gateway
                .post("/v3/lease/revoke", &json!({ "ID": lease }), |_| Some(()))
        {
            tracing::debug!("what was told stays for {TTL:?}: {error}");
        }
    }
}

/// The lease of a grant's answer.
fn granted(answer: &Value) -> Option<String> {
    answer["ID"].as_str().filter(|id| !id.is_empty()).map(Into::into)
}

/// Whether there is such a lease yet; a time of 0 is left out.
fn lives(answer: &Value) -> bool {
    answer["TTL"].as_str().is_some_and(|seconds| seconds != "0")
}

/// etcd's words for a key that is to be put under a lease that has ended.
fn is_without_lease(error: &ArbiterError) -> bool {
    matches!(error, ArbiterError::Refused { reason, .. } if reason.contains("requested lease not found"))
}

#[cfg(test)]
mod tests {
    use super::super::told::tests::told;
    use super::*;

    #[test]
    fn a_change_is_told_at_once_and_all_else_with_the_next_beat() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let first = told("a", "primary", "protected", 3, Some("b"));
        let mut course = Course::default();
        assert_eq!(course.next(&first, at(0)), Some(Step::Grant));
        course.lease = Some("7".into());
        course.beat = Some(at(0));
        assert_eq!(course.next(&first, at(0)), Some(Step::Put(Box::new(first.clone()))));
        (course.told, course.put) = (Some(first.clone()), Some(at(0)));
        assert_eq!(course.next(&first, at(1)), None);
        let lagging = Told {
            lag_at_most_ms: 500,
            ..first.clone()
        };
        assert_eq!(course.next(&lagging, at(1)), None);
        let other = told("a", "primary", "not-protected", 3, None);
        assert_eq!(course.next(&other, at(1)), Some(Step::Put(Box::new(other))));
        let beat = Some(Step::Beat(Box::new(first.clone())));
        assert_eq!(course.next(&first, at(5)), beat);
        // A lag alone waits for a minute: what is there stays.
        assert_eq!(course.next(&lagging, at(5)), beat);
        course.beat = Some(at(59));
        assert_eq!(course.next(&lagging, at(60)), Some(Step::Put(Box::new(lagging))));
        course.not_before = Some(at(70));
        assert_eq!(course.next(&first, at(69)), None);
        assert_eq!(course.next(&first, at(70)), beat);
        // Nothing was heard of the lease for as long as it lasts.
        assert_eq!(course.next(&first, at(74)), Some(Step::Grant));
        course.lost();
        assert_eq!(course.next(&first, at(10)), Some(Step::Grant));
    }

    #[test]
    fn etcds_answers_are_understood() {
        assert_eq!(granted(&json!({ "ID": "7", "TTL": "15" })), Some("7".into()));
        assert_eq!(granted(&json!({ "TTL": "15" })), None);
        assert!(lives(&json!({ "ID": "7", "TTL": "15" })));
        assert!(!lives(&json!({ "ID": "7" })) && !lives(&json!({ "ID": "7", "TTL": "0" })));
    }
}
