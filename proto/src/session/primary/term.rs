//! What the primary's end asks the arbiter: to name the backup, and for the next term when that is lost.

use super::state::{Connection, Fence, Phase, State, next_term};
use super::{Primary, PrimaryAction};
use crate::quantity::SessionTime;
use crate::session::question::Question;
use crate::session::{Freeze, Unprotected, Verdict};
use crate::{Named, to_backup};

impl Primary {
    /// Asks what is to be asked at `now`.
    pub(super) fn ask(&mut self, now: SessionTime) {
        if let Some(question) = self.state.question_mut()
            && question.ask(now)
        {
            self.actions.push_back(PrimaryAction::Arbitrate {
                expected: question.expected.clone(),
                new: question.new.clone(),
            });
        }
    }

    /// Has the backup named as soon as it has the log behind all that may have left.
    pub(super) fn ask_to_name(&mut self, now: SessionTime) {
        let received = self.received();
        if let State::Connected(Connection {
            peer,
            phase: Phase::Naming { catch_up, question },
            ..
        }) = &mut self.state
            && question.is_none()
            && self.record.peer.is_none()
            && received >= *catch_up
        {
            let new = self.record.with_peer(peer);
            *question = Some(Question::new(self.record.clone(), new, now));
        }
    }

    pub(super) fn verdict(&mut self, now: SessionTime, verdict: &Verdict) {
        let Some(question) = self.state.question_mut().filter(|question| question.is_asked()) else {
            return;
        };
        match verdict {
            Verdict::Won => {
                self.record = question.new.clone();
                self.won(now);
            }
            Verdict::Lost => {
                self.part("lost the term");
                self.state = State::LostTerm;
                self.actions.push_back(PrimaryAction::Freeze(Freeze::LostTerm));
            }
            Verdict::Unknown => {
                question.put_off(now.plus_ns(self.timing.heartbeat_ns));
                if let State::Fencing(fence) = &mut self.state
                    && !fence.frozen
                {
                    fence.frozen = true;
                    self.actions.push_back(PrimaryAction::Freeze(Freeze::NoArbiter));
                }
            }
        }
    }

    /// The record is what was asked for.
    fn won(&mut self, now: SessionTime) {
        if let Some(Phase::Naming { question, .. }) = self.state.phase_mut() {
            *question = None;
            self.send(to_backup::Kind::Named(Named {
                term: self.record.term.get(),
            }));
        } else if let State::Fencing(fence) = &mut self.state {
            if self.record.peer.is_some() {
                // The naming was on its way as the backup was lost: the term after it is what is needed.
                fence.question = next_term(&self.record, now);
                return;
            }
            if fence.frozen || fence.still {
                self.actions.push_back(PrimaryAction::Thaw);
            }
            self.state = State::Alone(fence.why.clone());
        }
    }

    /// The connection is over. Goes on alone at once where the record cannot name the backup, and asks for the next term where
    /// it can.
    pub(super) fn lost_peer(&mut self, now: SessionTime, why: Unprotected) {
        let Some(phase) = self.state.phase_mut() else { return };
        let fence = match phase {
            // The naming is on its way: its answer decides what to ask next.
            Phase::Naming { question, .. } if question.is_some() => question.take().map(|question| Fence {
                why: why.clone(),
                still: false,
                frozen: false,
                question,
            }),
            Phase::HandingOver { told, .. } => {
                // A backup that was told to claim is given the time to.
                let grace_ns = if *told { self.timing.deadline_ns } else { 0 };
                let at = now.plus_ns(grace_ns);
                Some(Fence::new(&self.record, why.clone(), true, at))
            }
            Phase::Naming { .. } | Phase::Protected if self.record.peer.is_some() => {
                Some(Fence::new(&self.record, why.clone(), false, now))
            }
            Phase::Greeting | Phase::Syncing { .. } | Phase::Naming { .. } | Phase::Protected => None,
        };
        self.state = fence.map_or(State::Alone(why), State::Fencing);
    }
}
