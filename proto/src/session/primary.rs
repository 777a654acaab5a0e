//! The primary's end of a session.

mod invariants;
mod io;
mod state;
mod term;

use std::collections::VecDeque;

pub use io::{PrimaryAction, PrimaryInput, PrimaryState};
use state::{Connection, Fence, Phase, State};

use super::greeting::{check_welcome, is_name};
use super::lease::Lease;
use super::limits::{PROTOCOL_VERSION, bounded, reason_of};
use super::question::Question;
use super::{Commit, Record, Timing, Unprotected};
use crate::quantity::{LogPosition, SessionTime, Term};
use crate::{Ack, Diverged, Goodbye, Handover, Heartbeat, Hello, ToBackup, ToPrimary, to_backup, to_primary};

/// The primary's end.
#[derive(Debug)]
pub struct Primary {
    hello: Hello,
    timing: Timing,
    record: Record,
    state: State,
    /// Its numbers go on from one connection to the next.
    lease: Lease,
    /// Where the log for the backup ends.
    logged: LogPosition,
    /// Of the connection that is, or else was last.
    ack: Ack,
    released: LogPosition,
    commit: Commit,
    /// Something is due, and the machine does not move.
    machine_stalled: bool,
    actions: VecDeque<PrimaryAction>,
}

impl Primary {
    /// A primary that holds `record`, alone; if that names a peer, it asks for the next term first. `hello` has everything
    /// but term and timing.
    pub fn new(hello: Hello, record: Record, timing: Timing, why: Unprotected) -> Self {
        let state = if record.peer.is_some() {
            // At once, whatever the time is.
            State::Fencing(Fence::new(&record, why, false, SessionTime::ZERO))
        } else {
            State::Alone(why)
        };
        Self {
            hello,
            timing,
            record,
            state,
            lease: Lease::new(timing),
            logged: LogPosition::START,
            ack: Ack::default(),
            released: LogPosition::START,
            commit: Commit::default(),
            machine_stalled: false,
            actions: VecDeque::new(),
        }
    }

    /// Which acknowledgement lets effects go; [`Commit::Received`] if this is not called.
    pub fn set_commit(&mut self, commit: Commit) {
        self.commit = commit;
    }

    /// Whether the backup's service uplink has a carrier, as far as it said.
    pub fn peer_has_uplink(&self) -> bool {
        self.state.connection().is_none_or(|connection| !connection.uplink_down)
    }

    /// Where it stands.
    pub fn state(&self) -> PrimaryState {
        self.state.told()
    }

    /// The record that it holds.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The backup's name, as long as there is a connection to it.
    pub fn peer(&self) -> Option<&str> {
        self.state.connection().map(|connection| connection.peer.as_str())
    }

    /// What the backup has, or had when it was lost.
    pub fn ack(&self) -> &Ack {
        &self.ack
    }

    /// Position of the log up to which effects may leave at `now`. Ask before each one.
    pub fn release_limit(&self, now: SessionTime) -> LogPosition {
        let Some(phase) = self.state.phase() else {
            return match self.state {
                State::Alone(_) => LogPosition::NO_LIMIT,
                _ => LogPosition::START,
            };
        };
        match phase {
            Phase::Greeting | Phase::Syncing { .. } => LogPosition::NO_LIMIT,
            Phase::HandingOver { told: true, .. } => LogPosition::START,
            Phase::Naming { .. } | Phase::Protected | Phase::HandingOver { .. } if self.lease.holds(now) => {
                match self.commit {
                    Commit::Received => self.received(),
                    Commit::Replayed => self.verified(),
                }
            }
            Phase::Naming { .. } | Phase::Protected | Phase::HandingOver { .. } => LogPosition::START,
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
        if self.state.connection().is_some() {
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
    pub fn wake(&self) -> Option<SessionTime> {
        let connection = self.state.connection();
        let beat = connection.map(|_| self.lease.next());
        let suspects = connection.map(|connection| connection.suspects_at(&self.timing));
        let stalls = connection.and_then(|connection| connection.stalls_at(&self.timing));
        let ask = self.state.question().and_then(Question::at);
        [beat, suspects, stalls, ask].into_iter().flatten().min()
    }

    /// Takes in what happened at `now`.
    pub fn handle(&mut self, now: SessionTime, input: PrimaryInput) {
        match input {
            PrimaryInput::Connected(name) => self.connected(now, name),
            PrimaryInput::Disconnected => self.lost(now, Unprotected::LostConnection),
            PrimaryInput::Message(message) => self.message(now, message),
            PrimaryInput::Reply(reply) => {
                if let Some(connection) = self.state.connection_mut() {
                    connection.last_heard = now;
                    connection.uplink_down = reply.uplink_down;
                    self.lease.answered(reply.number);
                }
            }
            PrimaryInput::StateSent => {
                if let Some(Phase::Syncing { state_sent }) = self.state.phase_mut() {
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

    fn connected(&mut self, now: SessionTime, name: String) {
        if self.state.connection().is_some() {
            return self.end(now, "the backup connected once more", Unprotected::LostConnection);
        }
        if let Some(problem) = self.problem_of(&name) {
            self.actions.push_back(PrimaryAction::Disconnect(problem.into()));
            return;
        }
        self.state = State::Connected(Connection::new(name, now));
        self.lease.restart(now);
        self.ack = Ack::default();
        let hello = Hello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            term: self.record.term.get(),
            heartbeat_ns: self.timing.heartbeat_ns,
            deadline_ns: self.timing.deadline_ns,
            inquiry: false,
            knows_zeroes: true,
            ..self.hello.clone()
        };
        self.send(to_backup::Kind::Hello(hello));
    }

    /// Why a backup of that name is not taken now.
    fn problem_of(&self, name: &str) -> Option<&'static str> {
        match self.state {
            State::Alone(Unprotected::Suspended) => Some("protection is suspended"),
            State::Alone(_) if !is_name(name) => Some("the backup's name is empty or too long"),
            State::Alone(_) if name == self.record.owner => Some("the backup has this node's own name"),
            State::Alone(_) => None,
            _ => Some("not waiting for a backup"),
        }
    }

    fn send(&mut self, kind: to_backup::Kind) {
        self.actions
            .push_back(PrimaryAction::Send(ToBackup { kind: Some(kind) }));
    }

    fn message(&mut self, now: SessionTime, message: ToPrimary) {
        let Some(connection) = self.state.connection_mut() else {
            return;
        };
        connection.last_heard = now;
        match (message.kind, &mut connection.phase) {
            (Some(to_primary::Kind::Welcome(welcome)), phase @ Phase::Greeting) => {
                match check_welcome(&welcome, &self.hello, &connection.peer) {
                    Ok(()) => {
                        *phase = Phase::Syncing { state_sent: false };
                        self.actions.push_back(PrimaryAction::BeginJoin);
                    }
                    Err(problem) => self.refuse(now, &problem),
                }
            }
            (Some(to_primary::Kind::Joined(_)), phase @ Phase::Syncing { state_sent: true }) => {
                // From here on nothing leaves that is not acknowledged. What left before is, once the backup is here.
                *phase = Phase::Naming {
                    catch_up: self.logged,
                    question: None,
                };
            }
            (Some(to_primary::Kind::Ready(ready)), phase @ Phase::Naming { .. })
                if self.record.peer.is_some() && Term::new(ready.term) == self.record.term =>
            {
                *phase = Phase::Protected;
            }
            (Some(to_primary::Kind::Ack(ack)), phase) if phase.takes_acks() => self.acked(now, ack),
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

    fn acked(&mut self, now: SessionTime, ack: Ack) {
        if ack.received < self.ack.received || ack.verified < self.ack.verified || ack.verified > ack.received {
            return self.refuse(now, "the backup's acknowledgements go backwards");
        }
        if LogPosition::new(ack.received) > self.logged {
            return self.refuse(now, "the backup acknowledges what was never sent");
        }
        if ack.received > self.ack.received
            && let Some(connection) = self.state.connection_mut()
        {
            connection.stalled = None;
        }
        self.ack = ack;
        self.tell_to_claim();
        self.ask_to_name(now);
    }

    /// The machine stands still: the backup goes on with it when it has executed all of the log.
    fn hand_over(&mut self, position: LogPosition) {
        self.note_logged(position);
        match &mut self.state {
            // One that is frozen is thawed when the term is won.
            State::Fencing(fence) => fence.still = true,
            State::LostTerm => {}
            State::Connected(connection) => match connection.phase {
                Phase::Protected => self.begin_handover(position, false),
                Phase::HandingOver { .. } => {}
                Phase::Greeting | Phase::Syncing { .. } | Phase::Naming { .. } => {
                    self.actions.push_back(PrimaryAction::Thaw);
                }
            },
            State::Alone(_) => self.actions.push_back(PrimaryAction::Thaw),
        }
    }

    /// The machine does not move: the backup goes on with it when it has executed all of the log. Should it move after all, what
    /// it makes from here on is the backup's like all that is received, or nobody's: it leaves only while it is acknowledged,
    /// and not at all once the backup was told to claim the term.
    fn give_away(&mut self) {
        if matches!(self.state.phase(), Some(Phase::Protected)) {
            self.begin_handover(self.logged, true);
        }
    }

    fn begin_handover(&mut self, at: LogPosition, stalled: bool) {
        if let Some(phase) = self.state.phase_mut() {
            *phase = Phase::HandingOver {
                at,
                stalled,
                told: false,
            };
        }
        self.tell_to_claim();
    }

    /// Tells the backup to claim the term, once it has executed everything. Nothing leaves from then on.
    fn tell_to_claim(&mut self) {
        let verified = self.verified();
        if let Some(Phase::HandingOver { at, stalled, told }) = self.state.phase_mut()
            && !*told
            && verified >= *at
        {
            *told = true;
            let (position, stalled) = (at.get(), *stalled);
            self.send(to_backup::Kind::Handover(Handover { position, stalled }));
        }
    }

    fn suspend(&mut self, now: SessionTime) {
        match &mut self.state {
            State::Alone(why) => *why = Unprotected::Suspended,
            State::Connected(connection) if !matches!(connection.phase, Phase::HandingOver { .. }) => {
                self.end(now, "protection is suspended", Unprotected::Suspended);
            }
            State::Connected(_) | State::Fencing(_) | State::LostTerm => {}
        }
    }

    fn resume(&mut self) {
        if let State::Alone(why) | State::Fencing(Fence { why, .. }) = &mut self.state
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

    fn tick(&mut self, now: SessionTime) {
        let waits = self.received() < self.logged;
        let Some(connection) = self.state.connection_mut() else {
            return;
        };
        if now >= connection.suspects_at(&self.timing) {
            self.part("silent past the deadline");
            return self.lost_peer(now, Unprotected::LostConnection);
        }
        // Whether effects wait for what the backup acknowledges.
        let waits = waits && connection.phase.takes_acks();
        connection.stalled = waits.then(|| connection.stalled.unwrap_or(now));
        if connection.stalls_at(&self.timing).is_some_and(|at| now >= at) {
            return self.end(now, "the backup acknowledges nothing", Unprotected::LostConnection);
        }
        if let Some(number) = self.lease.beat(now) {
            self.actions.push_back(PrimaryAction::Heartbeat(Heartbeat {
                number,
                released: self.released.get(),
                stalled: self.machine_stalled,
            }));
        }
    }

    fn refuse(&mut self, now: SessionTime, reason: &str) {
        self.end(now, reason, Unprotected::Refused(reason.into()));
    }

    /// Ends the session with a goodbye.
    fn end(&mut self, now: SessionTime, reason: &str, why: Unprotected) {
        self.send(to_backup::Kind::Goodbye(Goodbye {
            reason: reason.into(),
            shut_down: false,
        }));
        self.part(reason);
        self.lost_peer(now, why);
    }

    /// The connection is gone.
    fn lost(&mut self, now: SessionTime, why: Unprotected) {
        if self.state.connection().is_some() {
            self.end_log();
            self.lost_peer(now, why);
        }
    }

    /// Closes the connection, if there is one.
    fn part(&mut self, reason: &str) {
        if self.state.connection().is_some() {
            self.actions.push_back(PrimaryAction::Disconnect(reason.into()));
            self.end_log();
        }
    }

    fn end_log(&mut self) {
        self.lease.end();
        self.actions.push_back(PrimaryAction::EndLog);
    }
}
