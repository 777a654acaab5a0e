//! What a service manager is told where one has started this process (sd_notify(3)): ready, how it is, that it lives, and
//! that it ends.
//!
//! Invariant: the watchdog is fed only after every thread that must not stand still has beaten since it was fed last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lockstep_proto::quantity::Term;
use sd_notify::NotifyState;

use crate::sandbox::{self, Kind};
use crate::status::pulse::Doctor;
use crate::status::{Role, Status, StatusInner};

/// The pulses are felt so often until the watchdog has to be fed.
const LOOKS: u32 = 4;
/// A thread that has not beaten at so many looks, one after the other, is told of, and again after as many.
const STILL: u32 = 2;
/// How often the status is looked at without a watchdog.
const LOOK: Duration = Duration::from_secs(10);

/// Tells the service manager about this process, from a thread of its own. Dropping it says that the process ends.
pub struct Service(Arc<AtomicBool>);

impl Service {
    /// Tells about `status`. `None`: no service manager has asked (there is no NOTIFY_SOCKET).
    pub fn start(status: &Status) -> Result<Option<Self>> {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(None);
        }
        let watchdog = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
        let mut teller = Teller {
            status: status.clone(),
            doctors: [
                ("link", Doctor::of(&status.pulses().link)),
                ("vCPU", Doctor::of(&status.pulses().vcpu)),
            ],
            feed: watchdog.map(|limit| limit / LOOKS),
            is_ready: false,
            told: None,
            ended: Arc::default(),
        };
        let service = Self(teller.ended.clone());
        sandbox::spawn(Kind::Network, "service", move || teller.run()).context("the service's thread")?;
        Ok(Some(service))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        // The thread that ran the machine makes no sockets.
        if let Err(error) = sandbox::aside("stopping", || tell(&[NotifyState::Stopping])) {
            tracing::debug!("the service manager cannot be told: {error}");
        }
    }
}

struct Teller {
    status: Status,
    doctors: [(&'static str, Doctor); 2],
    /// How often the pulses are felt; the watchdog is fed then.
    feed: Option<Duration>,
    is_ready: bool,
    told: Option<String>,
    ended: Arc<AtomicBool>,
}

impl Teller {
    fn run(&mut self) {
        let every = self.feed.unwrap_or(LOOK);
        let mut next = Instant::now();
        loop {
            let told = &self.told;
            let is_new = |now: &StatusInner| told.as_ref() != Some(&words(now));
            let changed = self
                .status
                .wait_for(is_new, next.saturating_duration_since(Instant::now()));
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            if changed {
                self.tell();
            }
            if Instant::now() >= next {
                next = Instant::now() + every;
                if self.feed.is_some() {
                    self.feed();
                }
            }
        }
    }

    fn feed(&mut self) {
        let mut all_live = true;
        for (name, doctor) in &mut self.doctors {
            all_live &= doctor.feels();
            let still = doctor.still();
            if still > 0 && still.is_multiple_of(STILL) {
                tracing::error!("the {name} thread did not come by at {still} looks: the watchdog is not fed");
            }
        }
        if all_live {
            self.doctors.iter_mut().for_each(|(_, doctor)| doctor.tell());
            tell(&[NotifyState::Watchdog]);
        }
    }

    fn tell(&mut self) {
        let now = self.status.get();
        let words = words(&now);
        let mut states = vec![NotifyState::Status(&words)];
        // It serves as soon as there is an end of the link, whichever: what is before that waits for the arbiter.
        if !self.is_ready && self.status.pulses().link.is_begun() && !now.state.is_empty() {
            self.is_ready = true;
            states.push(NotifyState::Ready);
        }
        tell(&states);
        self.told = Some(words);
    }
}

/// The status in a line, as `systemctl status` shows it.
fn words(now: &StatusInner) -> String {
    let role = match now.role {
        Role::Primary => "primary",
        Role::Backup => "backup",
    };
    // Some of it may be the other node's words; a line break would begin another field.
    let state = now.state.replace(|letter: char| letter.is_control(), " ");
    match (state.as_str(), now.term) {
        ("", _) => "starting".into(),
        (state, Term::NONE) => format!("{state}, {role}"),
        (state, term) => format!("{state}, term {term}, {role}"),
    }
}

fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager cannot be told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_one_line() {
        let mut now = StatusInner::default();
        assert_eq!(words(&now), "starting");
        now.state = "starting (no-arbiter)".into();
        assert_eq!(words(&now), "starting (no-arbiter), backup");
        now.role = Role::Primary;
        now.term = Term::new(3);
        now.state = "not-protected (refused: no\nREADY=1)".into();
        assert_eq!(words(&now), "not-protected (refused: no READY=1), term 3, primary");
    }
}
