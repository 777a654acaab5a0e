//! What the primary's end looks at every second, and what it tells.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lockstep_node::host::clock::boottime;
use lockstep_node::status::{Role, STATE_MESSAGES, StatusInner, count, describe};
use lockstep_proto::session::{PrimaryInput, PrimaryState};

use super::super::port::Command;
use super::super::stall;
use super::{Event, Loop};

impl Loop {
    /// Looks at the guest, the ways to it, and now and then at the arbiter. True where the machine can be reached again that
    /// could not be.
    pub(super) fn look(&mut self) -> bool {
        self.look_at_guest();
        let was_cut_off = self.watch.cut_off().is_some();
        if self.watch.look() {
            let events = self.events.clone();
            (self.arbiter.look)(Box::new(move |answers| {
                let _ = events.send(Event::Arbiter(answers));
            }));
        }
        if let Some(why) = self.watch.cut_off_for_long()
            && self.session.peer_has_uplink()
            && self.link_state.is_protected()
        {
            let why = why.to_owned();
            // Refused where it would not help; the next look asks again.
            let _ = self.switch_over(&why);
        }
        was_cut_off && self.watch.cut_off().is_none()
    }

    /// Looks whether the guest moves. One that does not is given to a backup that is well, once.
    fn look_at_guest(&mut self) {
        let due_since = self.status.gauges().due_since.load(Ordering::Acquire);
        let was = self.stalls.now();
        if self.stalls.look(Instant::now(), due_since) {
            count(&self.status.gauges().stalls, 1);
        }
        let stall = self.stalls.now();
        match (was, stall) {
            (None, Some(stall)) => {
                tracing::error!("the guest does not move though something is due: {}", stall.words());
            }
            (Some(_), None) => tracing::warn!("the guest moves again"),
            _ => {}
        }
        self.session.set_machine_stalled(stall.is_some());
        let is_well = self.session.peer_has_uplink() && !self.watch.is_blocked();
        if stall.is_some_and(|stall| !stall.stays) && is_well {
            // Refused where it would not help, as while the backup is far behind; the next look asks again.
            let _ = self.switch_over("the guest does not move here");
        }
    }

    /// Has the backup go on with a machine that cannot be made to stand still.
    pub(super) fn give_away(&mut self, why: &str) {
        if self.session.state() == PrimaryState::Protected {
            tracing::warn!("handing the machine over as the log ends: {why}");
            self.session.handle(boottime(), PrimaryInput::GiveAway);
        }
    }

    /// Tells the recording of a term that was won, and why it had to be.
    fn tell_term(&mut self) {
        let term = self.session.record().term;
        let state = self.session.state();
        if term > self.told_term {
            self.told_term = term;
            let PrimaryState::Alone(why) = state else {
                return self.command(Command::Term(term, String::new()));
            };
            let mut why = describe(&PrimaryState::Fencing { why, still: false });
            if self.handing_over {
                why.push_str(" after a handover that the backup did not take");
            }
            self.handing_over = false;
            self.command(Command::Term(term, why));
        } else if !matches!(state, PrimaryState::Fencing { .. } | PrimaryState::Frozen(_)) {
            self.handing_over = matches!(state, PrimaryState::HandingOver { .. });
        }
    }

    /// The state in the words that operators know: never better than what the machine's clients see.
    fn words(&self) -> String {
        let state = self.session.state();
        if let Some(words) = stall::words_instead(self.stalls.now(), &state) {
            return words;
        }
        let is_where_it_is = !matches!(
            state,
            PrimaryState::HandingOver { .. } | PrimaryState::Fencing { .. } | PrimaryState::Frozen(_)
        );
        match self.watch.cut_off() {
            Some(why) if is_where_it_is => return format!("cut-off ({why})"),
            _ => {}
        }
        let words = describe(&state);
        if state != PrimaryState::Protected {
            words
        } else if self.watch.is_blocked() {
            format!("{words}, failover blocked (no-arbiter)")
        } else if !self.session.peer_has_uplink() {
            format!("{words}, failover blocked (cut-off-there)")
        } else {
            words
        }
    }

    pub(super) fn tell(&mut self) {
        // Before the status has the term: whoever reads it there finds it among the commands.
        self.tell_term();
        count(
            &self.status.gauges().heartbeats_missed,
            self.session.take_missed_heartbeats(),
        );
        let session = &self.session;
        let is_protected = session.state() == PrimaryState::Protected;
        let state = self.words();
        let stall = self.stalls.now();
        let lag_ns = if session.peer().is_none() {
            0
        } else {
            session.ack().lag_ns
        };
        if is_protected {
            self.joins = 0;
        }
        self.link_state.protected.store(is_protected, Ordering::Release);
        self.link_state.lag_ns.store(lag_ns, Ordering::Relaxed);
        let (now, later) = (boottime(), Instant::now());
        let left = self.ending.force_at().map(|at| Duration::from_nanos(at.ns_since(now)));
        let ends_at = left.and_then(|left| later.checked_add(left));
        let changed = self.status.set(StatusInner {
            role: Role::Primary,
            state: state.clone(),
            term: session.record().term,
            held: self.gate.len() as u64,
            lag_ns,
            received: session.ack().received,
            verified: session.ack().verified,
            released: self.gate.released().get(),
            peer: session.peer().unwrap_or_default().into(),
            ends_at,
            cut_off: self.watch.cut_off().map(str::to_owned),
            stalled: stall.is_some(),
        });
        if changed {
            tracing::info!(target: STATE_MESSAGES, term = session.record().term.get(), "{state}");
        }
    }
}
