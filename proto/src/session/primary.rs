//! The primary's end of a session.

mod invariants;
mod io;

use std::collections::VecDeque;

pub use io::{PrimaryAction, PrimaryInput, PrimaryState};

use super::greeting::{check_welcome, is_name};
use super::lease::Lease;
use super::limits::{PROTOCOL_VERSION, bounded, reason_of};
use super::question::Question;
use super::{Commit, Freeze, Nanos, Record, Timing, Unprotected, Verdict};
use crate::quantity::LogPosition;
use crate::{Ack, Diverged, Goodbye, Handover, Heartbeat, Hello, Named, ToBackup, ToPrimary, to_backup, to_primary};

/// The primary's end.
#[derive(Debug)]
pub struct Primary {
    hello: Hello,
    timing: Timing,
    record: Record,
    state: PrimaryState,
    /// Why there is no backup, for when the term is won.
    why: Unprotected,
    peer: Option<String>,
    question: Option<Question>,
    lease: Lease,
    last_heard: Nanos,
    /// Where the log for the backup ends.
    logged: LogPosition,
    ack: Ack,
    released: LogPosition,
    commit: Commit,
    /// Since when the backup acknowledges nothing of what waits for it.
    stalled: Option<Nanos>,
    /// Something is due, and the machine does not move.
    machine_stalled: bool,
    peer_uplink_down: bool,
    actions: VecDeque<PrimaryAction>,
}

impl Primary {
    /// A primary that holds `record`, alone; if that names a peer, it asks for the next term first. `hello` has everything
    /// but term and timing.
    pub fn new(hello: Hello, record: Record, timing: Timing, why: Unprotected) -> Self {
        let (state, question) = if record.peer.is_some() {
            let question = Question::new(record.clone(), record.alone(&record.owner), 0);
            (
                PrimaryState::Fencing {
                    why: why.clone(),
                    still: false,
                },
                Some(question),
            )
        } else {
            (PrimaryState::Alone(why.clone()), None)
        };
        Self {
            hello,
            timing,
            record,
            state,
            why,
            peer: None,
            question,
            lease: Lease::new(timing),
            last_heard: 0,
            logged: LogPosition::START,
            ack: Ack::default(),
            released: LogPosition::START,
            commit: Commit::default(),
            stalled: None,
            machine_stalled: false,
            peer_uplink_down: false,
            actions: VecDeque::new(),
        }
    }

    /// Which acknowledgement lets effects go; [`Commit::Received`] if this is not called.
    pub fn set_commit(&mut self, commit: Commit) {
        self.commit = commit;
    }

    /// Whether the backup's service uplink has a carrier, as far as it said.
    pub fn peer_has_uplink(&self) -> bool {
        !self.peer_uplink_down
    }

    /// Where it stands.
    pub fn state(&self) -> &PrimaryState {
        &self.state
    }

    /// The record that it holds.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The backup's name, as long as there is a connection to it.
    pub fn peer(&self) -> Option<&str> {
        self.peer.as_deref()
    }

    /// What the backup has.
    pub fn ack(&self) -> &Ack {
        &self.ack
    }

    /// Position of the log up to which effects may leave at `now`. Ask before each one.
    pub fn release_limit(&self, now: Nanos) -> LogPosition {
        match self.state {
            PrimaryState::Alone(_) | PrimaryState::Greeting | PrimaryState::Syncing { .. } => LogPosition::NO_LIMIT,
            PrimaryState::HandingOver { told: true, .. } => LogPosition::START,
            PrimaryState::Naming { .. } | PrimaryState::Protected | PrimaryState::HandingOver { .. }
                if self.lease.holds(now) =>
            {
                match self.commit {
                    Commit::Received => self.received(),
                    Commit::Replayed => self.verified(),
                }
            }
            _ => LogPosition::START,
        }
    }

    /// The log for the backup goes up to `position` now. To be said before that part of it is handed to the transport,
    /// and before an effect at that position is offered to the gate; at [`PrimaryInput::StateSent`], with the position of
    /// the state.
    pub fn note_logged(&mut self, position: LogPosition) {
        self.logged = self.logged.max(position);
    }

    /// Effects up to `position` have left: the next heartbeat says so.
    pub fn note_released(&mut self, position: LogPosition) {
        self.released = self.released.max(position);
    }

    /// Whether something is due and the machine does not move: the heartbeats say so.
    pub fn set_machine_stalled(&mut self, stalled: bool) {
        self.machine_stalled = stalled;
    }

    /// The machine has ended, and what it gave has left: the backup need not go on with it.
    pub fn finish(&mut self, reason: &str, shut_down: bool) {
        if self.peer.is_some() {
            self.send(to_backup::Kind::Goodbye(Goodbye {
                reason: bounded(reason),
                shut_down,
            }));
        }
    }

    /// Heartbeats that the backup did not answer before the next one was sent, since the last call.
    pub fn take_missed_heartbeats(&mut self) -> u64 {
        self.lease.take_missed()
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<PrimaryAction> {
        self.actions.pop_front()
    }

    /// When it wants [`PrimaryInput::Tick`] at the latest.
    pub fn wake(&self) -> Option<Nanos> {
        let beat = self.peer.as_ref().map(|_| {
            let stall = self.stalled.map_or(Nanos::MAX, |since| self.stalls_at(since));
            self.lease.next().min(self.suspects_at()).min(stall)
        });
        let ask = self.question.as_ref().and_then(Question::at);
        [beat, ask].into_iter().flatten().min()
    }

    fn suspects_at(&self) -> Nanos {
        self.last_heard.saturating_add(self.timing.suspicion())
    }

    fn stalls_at(&self, since: Nanos) -> Nanos {
        since.saturating_add(self.timing.stall())
    }

    /// Takes in what happened at `now`.
    pub fn handle(&mut self, now: Nanos, input: PrimaryInput) {
        match input {
            PrimaryInput::Connected(name) => self.connected(now, name),
            PrimaryInput::Disconnected => self.lost(now, Unprotected::LostConnection),
            PrimaryInput::Message(message) => self.message(now, message),
            PrimaryInput::Reply(reply) => {
                if self.peer.is_some() {
                    self.last_heard = now;
                    self.peer_uplink_down = reply.uplink_down;
                    self.lease.answered(reply.number);
                }
            }
            PrimaryInput::StateSent => {
                if let PrimaryState::Syncing { state_sent } = &mut self.state {
                    *state_sent = true;
                }
            }
            PrimaryInput::HandOver(position) => self.hand_over(position),
            PrimaryInput::GiveAway => self.give_away(),
            PrimaryInput::Suspend => self.suspend(now),
            PrimaryInput::Resume => self.resume(),
            PrimaryInput::Arbiter(verdict) => self.verdict(now, &verdict),
            PrimaryInput::Tick => self.tick(now),
        }
        self.ask(now);
        self.check();
    }

    fn connected(&mut self, now: Nanos, name: String) {
        if self.peer.is_some() {
            return self.end(now, "the backup connected once more", Unprotected::LostConnection);
        }
        if let Some(problem) = self.problem_of(&name) {
            self.actions.push_back(PrimaryAction::Disconnect(problem.into()));
            return;
        }
        self.peer = Some(name);
        self.last_heard = now;
        self.lease.restart(now);
        self.ack = Ack::default();
        self.stalled = None;
        self.peer_uplink_down = false;
        self.state = PrimaryState::Greeting;
        let hello = Hello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            term: self.record.term,
            heartbeat_ns: self.timing.heartbeat,
            deadline_ns: self.timing.deadline,
            inquiry: false,
            knows_zeroes: true,
            ..self.hello.clone()
        };
        self.send(to_backup::Kind::Hello(hello));
    }

    /// Why a backup of that name is not taken now.
    fn problem_of(&self, name: &str) -> Option<&'static str> {
        match self.state {
            PrimaryState::Alone(Unprotected::Suspended) => Some("protection is suspended"),
            PrimaryState::Alone(_) if !is_name(name) => Some("the backup's name is empty or too long"),
            PrimaryState::Alone(_) if name == self.record.owner => Some("the backup has this node's own name"),
            PrimaryState::Alone(_) => None,
            _ => Some("not waiting for a backup"),
        }
    }

    fn send(&mut self, kind: to_backup::Kind) {
        self.actions
            .push_back(PrimaryAction::Send(ToBackup { kind: Some(kind) }));
    }

    fn message(&mut self, now: Nanos, message: ToPrimary) {
        let Some(peer) = &self.peer else {
            return;
        };
        self.last_heard = now;
        match (message.kind, &self.state) {
            (Some(to_primary::Kind::Welcome(welcome)), PrimaryState::Greeting) => {
                match check_welcome(&welcome, &self.hello, peer) {
                    Ok(()) => {
                        self.state = PrimaryState::Syncing { state_sent: false };
                        self.actions.push_back(PrimaryAction::BeginJoin);
                    }
                    Err(problem) => self.refuse(now, &problem),
                }
            }
            (Some(to_primary::Kind::Joined(_)), PrimaryState::Syncing { state_sent: true }) => {
                // From here on nothing leaves that is not acknowledged. What left before is, once the backup is here.
                self.state = PrimaryState::Naming { catch_up: self.logged };
            }
            (Some(to_primary::Kind::Ready(ready)), PrimaryState::Naming { .. })
                if self.is_named() && ready.term == self.record.term =>
            {
                self.state = PrimaryState::Protected;
            }
            (
                Some(to_primary::Kind::Ack(ack)),
                PrimaryState::Naming { .. } | PrimaryState::Protected | PrimaryState::HandingOver { .. },
            ) => self.acked(now, ack),
            (Some(to_primary::Kind::Diverged(diverged)), _) => {
                self.actions.push_back(PrimaryAction::Report(Diverged {
                    report: bounded(&diverged.report),
                    ..diverged
                }));
                self.end(now, "divergence", Unprotected::Divergence);
            }
            (Some(to_primary::Kind::Goodbye(goodbye)), _) => self.refuse(now, &reason_of(&goodbye)),
            (Some(_), _) => self.refuse(now, "the backup sent a message out of turn"),
            (None, _) => self.refuse(now, "the backup sent a message of a kind that is not known"),
        }
    }

    fn acked(&mut self, now: Nanos, ack: Ack) {
        if ack.received < self.ack.received || ack.verified < self.ack.verified || ack.verified > ack.received {
            return self.refuse(now, "the backup's acknowledgements go backwards");
        }
        if LogPosition::new(ack.received) > self.logged {
            return self.refuse(now, "the backup acknowledges what was never sent");
        }
        if ack.received > self.ack.received {
            self.stalled = None;
        }
        self.ack = ack;
        self.tell_to_claim();
        if let PrimaryState::Naming { catch_up } = self.state
            && let Some(peer) = &self.peer
            && self.question.is_none()
            && !self.is_named()
            && self.received() >= catch_up
        {
            let new = self.record.with_peer(peer);
            self.question = Some(Question::new(self.record.clone(), new, now));
        }
    }

    /// The machine stands still: the backup goes on with it when it has executed all of the log.
    fn hand_over(&mut self, position: LogPosition) {
        self.note_logged(position);
        match &mut self.state {
            PrimaryState::Protected => self.begin_handover(position, false),
            PrimaryState::Fencing { still, .. } => *still = true,
            // One that is frozen is thawed when the term is won.
            PrimaryState::Frozen(_) | PrimaryState::HandingOver { .. } => {}
            _ => self.actions.push_back(PrimaryAction::Thaw),
        }
    }

    /// The machine does not move: the backup goes on with it when it has executed all of the log. Should it move after all, what
    /// it makes from here on is the backup's like all that is received, or nobody's: it leaves only while it is acknowledged,
    /// and not at all once the backup was told to claim the term.
    fn give_away(&mut self) {
        if self.state == PrimaryState::Protected {
            self.begin_handover(self.logged, true);
        }
    }

    fn begin_handover(&mut self, at: LogPosition, stalled: bool) {
        self.state = PrimaryState::HandingOver {
            at,
            stalled,
            told: false,
        };
        self.tell_to_claim();
    }

    /// Tells the backup to claim the term, once it has executed everything. Nothing leaves from then on.
    fn tell_to_claim(&mut self) {
        let verified = self.verified();
        if let PrimaryState::HandingOver { at, stalled, told } = &mut self.state
            && !*told
            && verified >= *at
        {
            *told = true;
            let (position, stalled) = (at.get(), *stalled);
            self.send(to_backup::Kind::Handover(Handover { position, stalled }));
        }
    }

    fn suspend(&mut self, now: Nanos) {
        match self.state {
            PrimaryState::Alone(_) => self.state = PrimaryState::Alone(Unprotected::Suspended),
            PrimaryState::Greeting
            | PrimaryState::Syncing { .. }
            | PrimaryState::Naming { .. }
            | PrimaryState::Protected => {
                self.end(now, "protection is suspended", Unprotected::Suspended);
            }
            PrimaryState::HandingOver { .. } | PrimaryState::Fencing { .. } | PrimaryState::Frozen(_) => {}
        }
    }

    fn resume(&mut self) {
        if self.why == Unprotected::Suspended {
            self.why = Unprotected::NeedBackup;
        }
        if let PrimaryState::Alone(why) | PrimaryState::Fencing { why, .. } = &mut self.state
            && *why == Unprotected::Suspended
        {
            *why = Unprotected::NeedBackup;
        }
    }

    /// Up to where the backup has the log.
    fn received(&self) -> LogPosition {
        LogPosition::new(self.ack.received)
    }

    /// Up to where it has executed it.
    fn verified(&self) -> LogPosition {
        LogPosition::new(self.ack.verified)
    }

    /// Whether the record that it holds names a backup.
    fn is_named(&self) -> bool {
        self.record.peer.is_some()
    }

    fn ask(&mut self, now: Nanos) {
        if let Some(question) = &mut self.question
            && question.ask(now)
        {
            self.actions.push_back(PrimaryAction::Arbitrate {
                expected: question.expected.clone(),
                new: question.new.clone(),
            });
        }
    }

    fn verdict(&mut self, now: Nanos, verdict: &Verdict) {
        let Some(mut question) = self.question.take_if(|question| question.is_asked()) else {
            return;
        };
        match verdict {
            Verdict::Won => {
                self.record = question.new;
                if matches!(self.state, PrimaryState::Naming { .. }) {
                    self.send(to_backup::Kind::Named(Named { term: self.record.term }));
                } else if self.is_named() {
                    // The naming was on its way as the backup was lost: the term after it is what is needed.
                    self.fence(now);
                } else {
                    let was = std::mem::replace(&mut self.state, PrimaryState::Alone(self.why.clone()));
                    if matches!(was, PrimaryState::Frozen(_) | PrimaryState::Fencing { still: true, .. }) {
                        self.actions.push_back(PrimaryAction::Thaw);
                    }
                }
            }
            Verdict::Lost => {
                self.part("lost the term");
                self.state = PrimaryState::Frozen(Freeze::LostTerm);
                self.actions.push_back(PrimaryAction::Freeze(Freeze::LostTerm));
            }
            Verdict::Unknown => {
                question.put_off(now.saturating_add(self.timing.heartbeat));
                self.question = Some(question);
                if matches!(self.state, PrimaryState::Fencing { .. }) {
                    self.state = PrimaryState::Frozen(Freeze::NoArbiter);
                    self.actions.push_back(PrimaryAction::Freeze(Freeze::NoArbiter));
                }
            }
        }
    }

    /// Asks for the next term at `at`.
    fn fence(&mut self, at: Nanos) {
        let new = self.record.alone(&self.record.owner);
        self.question = Some(Question::new(self.record.clone(), new, at));
    }

    fn tick(&mut self, now: Nanos) {
        if self.peer.is_none() {
            return;
        }
        if now >= self.suspects_at() {
            self.part("silent past the deadline");
            return self.lost_peer(now, Unprotected::LostConnection);
        }
        if !self.waits_for_acks() || self.received() >= self.logged {
            self.stalled = None;
        } else {
            let since = *self.stalled.get_or_insert(now);
            if now >= self.stalls_at(since) {
                return self.end(now, "the backup acknowledges nothing", Unprotected::LostConnection);
            }
        }
        if let Some(number) = self.lease.beat(now) {
            self.actions.push_back(PrimaryAction::Heartbeat(Heartbeat {
                number,
                released: self.released.get(),
                stalled: self.machine_stalled,
            }));
        }
    }

    /// Whether effects wait for what the backup acknowledges.
    fn waits_for_acks(&self) -> bool {
        matches!(
            self.state,
            PrimaryState::Naming { .. } | PrimaryState::Protected | PrimaryState::HandingOver { .. }
        )
    }

    fn refuse(&mut self, now: Nanos, reason: &str) {
        self.end(now, reason, Unprotected::Refused(reason.into()));
    }

    /// Ends the session with a goodbye.
    fn end(&mut self, now: Nanos, reason: &str, why: Unprotected) {
        self.send(to_backup::Kind::Goodbye(Goodbye {
            reason: reason.into(),
            shut_down: false,
        }));
        self.part(reason);
        self.lost_peer(now, why);
    }

    /// The connection is gone.
    fn lost(&mut self, now: Nanos, why: Unprotected) {
        if self.peer.is_some() {
            self.forget_peer();
            self.lost_peer(now, why);
        }
    }

    /// Closes the connection, if there is one.
    fn part(&mut self, reason: &str) {
        if self.peer.is_some() {
            self.actions.push_back(PrimaryAction::Disconnect(reason.into()));
            self.forget_peer();
        }
    }

    fn forget_peer(&mut self) {
        self.peer = None;
        self.lease.end();
        self.actions.push_back(PrimaryAction::EndLog);
    }

    /// Goes on alone at once where the record cannot name the backup, and asks for the next term where it can.
    fn lost_peer(&mut self, now: Nanos, why: Unprotected) {
        self.why = why.clone();
        match self.state {
            // The naming is on its way: its answer decides what to ask next.
            PrimaryState::Naming { .. } if self.question.is_some() => {
                self.state = PrimaryState::Fencing { why, still: false };
            }
            PrimaryState::HandingOver { told, .. } => {
                self.state = PrimaryState::Fencing { why, still: true };
                // A backup that was told to claim is given the time to.
                let grace = if told { self.timing.deadline } else { 0 };
                self.fence(now.saturating_add(grace));
            }
            PrimaryState::Naming { .. } | PrimaryState::Protected if self.is_named() => {
                self.state = PrimaryState::Fencing { why, still: false };
                self.fence(now);
            }
            PrimaryState::Fencing { .. } | PrimaryState::Frozen(_) => {}
            _ => self.state = PrimaryState::Alone(why),
        }
    }
}
