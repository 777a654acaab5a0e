//! The backup's end of a session.

mod io;
mod state;

use std::collections::VecDeque;
use std::ops::RangeInclusive;

pub use io::{BackupAction, BackupInput, BackupState};
use state::{Claim, Connection, Phase, State};

use super::greeting::{check_hello, is_name};
use super::lag::Lag;
use super::limits::{MAX_POSITION, PROTOCOL_VERSION, bounded, reason_of};
use super::question::Question;
use super::{Record, Timing, Verdict};
use crate::quantity::{LogPosition, SessionTime, Term};
use crate::{Ack, Goodbye, HeartbeatReply, Hello, Joined, ToBackup, ToPrimary, Welcome};
use crate::{Diverged, Ready, to_backup, to_primary};

/// Who the backup is.
#[derive(Clone, Debug)]
pub struct BackupIdentity {
    /// Its name, as in its certificate.
    pub node: String,
    /// Name of the machine that it stands by for.
    pub machine_name: String,
    /// Its host class.
    pub host_class: String,
    /// Revisions of the device model that it has.
    pub model_revisions: RangeInclusive<u32>,
    /// What its network cards tell the guest that a packet may have; 0: nothing.
    pub nic_mtus: Vec<u32>,
}

/// The backup's end.
#[derive(Debug)]
pub struct Backup {
    identity: BackupIdentity,
    timing: Timing,
    state: State,
    term: Term,
    /// Heartbeats that did not come.
    missed: u64,
    ack: Ack,
    lag: Lag,
    released: LogPosition,
    uplink_down: bool,
    /// The primary has said last that its machine does not move.
    stalled: bool,
    actions: VecDeque<BackupAction>,
}

impl Backup {
    /// A backup that waits for a primary.
    pub fn new(identity: BackupIdentity) -> Self {
        Self {
            identity,
            timing: Timing::CALM,
            state: State::Waiting,
            term: Term::NONE,
            missed: 0,
            ack: Ack::default(),
            lag: Lag::default(),
            released: LogPosition::START,
            uplink_down: false,
            stalled: false,
            actions: VecDeque::new(),
        }
    }

    /// Where it stands.
    pub fn state(&self) -> BackupState {
        self.state.told()
    }

    /// The primary's name; empty without one.
    pub fn primary(&self) -> &str {
        self.state.primary().unwrap_or_default()
    }

    /// The primary's term.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Position up to which the primary's effects are known to have left; never beyond what was received.
    pub fn released(&self) -> LogPosition {
        self.released.min(LogPosition::new(self.ack.received))
    }

    /// What was acknowledged last.
    pub fn ack(&self) -> &Ack {
        &self.ack
    }

    /// How long the oldest of the log that is not verified has been here, in nanoseconds.
    pub fn lag_ns(&self, now: SessionTime) -> u64 {
        self.lag.ns_at(now)
    }

    /// Whether this node's service uplink has lost its carrier: the answers to heartbeats say so.
    pub fn set_uplink_down(&mut self, down: bool) {
        self.uplink_down = down;
    }

    /// Whether the primary's machine does not move though it should, as far as it said; also of the one that was lost or has
    /// handed over.
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// What the primary's hello said.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// Intervals between two heartbeats of a connection in which none came, since the last call.
    pub fn take_missed_heartbeats(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<BackupAction> {
        self.actions.pop_front()
    }

    /// When it wants [`BackupInput::Tick`] at the latest.
    pub fn wake(&self) -> Option<SessionTime> {
        let deadline = self
            .state
            .connection()
            .map(|connection| connection.deadline(&self.timing));
        let ask = match &self.state {
            State::Claiming(claim) => claim.question.at(),
            State::Waiting | State::Connected(_) | State::Live { .. } => None,
        };
        [deadline, ask].into_iter().flatten().min()
    }

    /// Takes in what happened at `now`.
    pub fn handle(&mut self, now: SessionTime, input: BackupInput) {
        match input {
            BackupInput::Connected(name) => self.connected(now, name),
            BackupInput::Arbiter(verdict) => self.verdict(now, &verdict),
            BackupInput::Tick => self.tick(now),
            BackupInput::Diverged(_) | BackupInput::Unfit(_) if self.may_yet_claim() => self.renounce(),
            // All others are of a connection that may be over.
            input => self.of_connection(now, input),
        }
        self.check();
    }

    /// Takes in what happened with the connection, if there is one.
    fn of_connection(&mut self, now: SessionTime, input: BackupInput) {
        let Some(connection) = self.state.connection_mut() else {
            return;
        };
        match input {
            BackupInput::Connected(_) | BackupInput::Arbiter(_) | BackupInput::Tick => {}
            BackupInput::Disconnected => self.lost(now, "the connection is gone"),
            BackupInput::Message(message) => self.message(now, message),
            BackupInput::Heartbeat(heartbeat) => {
                connection.last_heard = now;
                if let Some(last) = connection.last_beat.replace(now) {
                    let passed = now.ns_since(last) / self.timing.heartbeat_ns.max(1);
                    self.missed += passed.saturating_sub(1);
                }
                self.released = self.released.max(LogPosition::new(heartbeat.released));
                self.stalled = heartbeat.stalled;
                self.actions.push_back(BackupAction::Reply(HeartbeatReply {
                    number: heartbeat.number,
                    uplink_down: self.uplink_down,
                }));
            }
            BackupInput::Built => {
                if let Phase::Syncing { has_state: true } = connection.phase {
                    connection.phase = Phase::Joined;
                    self.send(to_primary::Kind::Joined(Joined {}));
                    self.acknowledge(now);
                }
            }
            BackupInput::Unfit(reason) => self.refuse(&reason),
            BackupInput::Received(position) => {
                connection.last_heard = now;
                self.ack.received = self.ack.received.max(position.get());
                self.lag.received(position, now);
                self.acknowledge(now);
            }
            BackupInput::Verified(position, stop) => {
                if connection.has_machine() {
                    self.ack.verified = position.get().clamp(self.ack.verified, self.ack.received);
                    self.ack.stop = stop.get();
                    self.lag.verified(position);
                    self.acknowledge(now);
                }
            }
            BackupInput::Diverged(diverged) => {
                self.send(to_primary::Kind::Diverged(Diverged {
                    report: bounded(&diverged.report),
                    ..diverged
                }));
                self.forget("divergence");
            }
        }
    }

    /// What is so after every event. A backup that breaks it may have acknowledged what it has not.
    fn check(&self) {
        assert!(
            self.ack.verified <= self.ack.received,
            "verified what was not received: {:?}",
            self.ack
        );
    }

    fn send(&mut self, kind: to_primary::Kind) {
        self.actions
            .push_back(BackupAction::Send(ToPrimary { kind: Some(kind) }));
    }

    fn acknowledge(&mut self, now: SessionTime) {
        if self.state.connection().is_some_and(Connection::has_machine) {
            self.ack.lag_ns = self.lag.ns_at(now);
            self.send(to_primary::Kind::Ack(self.ack));
        }
    }

    fn connected(&mut self, now: SessionTime, name: String) {
        if self.state.connection().is_some() {
            return self.lost(now, "the primary connected once more");
        }
        if !matches!(self.state, State::Waiting) || !is_name(&name) {
            self.actions
                .push_back(BackupAction::Disconnect("not waiting for a primary".into()));
            return;
        }
        self.timing = Timing::CALM;
        self.ack = Ack::default();
        self.lag = Lag::default();
        self.released = LogPosition::START;
        self.stalled = false;
        self.state = State::Connected(Connection::new(name, now));
    }

    fn message(&mut self, now: SessionTime, message: ToBackup) {
        let Some(connection) = self.state.connection_mut() else {
            return;
        };
        connection.last_heard = now;
        match (message.kind, &mut connection.phase) {
            (Some(to_backup::Kind::Hello(hello)), Phase::Connected) => self.hello(hello),
            (Some(to_backup::Kind::State(state)), Phase::Syncing { has_state }) if !*has_state => {
                let position = LogPosition::new(state.position);
                if position > MAX_POSITION {
                    return self.refuse("the join's state has a position that no log reaches");
                }
                *has_state = true;
                // The log has a stream of its own and may have been faster.
                self.ack.received = self.ack.received.max(state.position);
                self.ack.verified = state.position;
                self.lag.verified(position);
                self.released = self.released.max(position);
                self.actions.push_back(BackupAction::Build(Box::new(state)));
            }
            (Some(to_backup::Kind::Named(named)), phase @ Phase::Joined) if Term::new(named.term) == self.term => {
                *phase = Phase::Protected;
                self.send(to_primary::Kind::Ready(Ready { term: named.term }));
            }
            (Some(to_backup::Kind::Handover(handover)), Phase::Protected) if handover.position <= self.ack.verified => {
                self.stalled = handover.stalled;
                self.claim("the primary hands over", now);
                self.ask(now);
            }
            (Some(to_backup::Kind::Goodbye(goodbye)), phase) => {
                let of_my_machine = !matches!(phase, Phase::Connected);
                self.forget(&reason_of(&goodbye));
                if goodbye.shut_down && of_my_machine {
                    self.actions.push_back(BackupAction::End);
                }
            }
            (Some(_), _) => self.refuse("the primary sent a message out of turn"),
            (None, _) => self.refuse("the primary sent a message of a kind that is not known"),
        }
    }

    fn hello(&mut self, hello: Hello) {
        let Some(connection) = self.state.connection_mut() else {
            return;
        };
        let checked = check_hello(&hello, &self.identity, &connection.primary);
        if hello.inquiry {
            return self.answer(checked.err());
        }
        let timing = match checked {
            Ok(timing) => timing,
            Err(problem) => return self.refuse(&problem),
        };
        self.timing = timing;
        self.term = Term::new(hello.term);
        connection.phase = Phase::Syncing { has_state: false };
        self.actions.push_back(BackupAction::Prepare(Box::new(hello)));
        self.welcome();
    }

    fn welcome(&mut self) {
        self.send(to_primary::Kind::Welcome(Welcome {
            version: PROTOCOL_VERSION,
            node: self.identity.node.clone(),
            host_class: self.identity.host_class.clone(),
        }));
    }

    /// Answers an inquiry, which leaves everything as it was.
    fn answer(&mut self, problem: Option<String>) {
        match problem {
            None => self.welcome(),
            Some(problem) => self.send(to_primary::Kind::Goodbye(Goodbye {
                reason: bounded(&problem),
                shut_down: false,
            })),
        }
        let reason = "an inquiry, which was answered";
        self.actions.push_back(BackupAction::Disconnect(reason.into()));
        self.state = State::Waiting;
    }

    fn tick(&mut self, now: SessionTime) {
        self.ask(now);
        let connection = self.state.connection();
        if connection.is_some_and(|connection| now >= connection.deadline(&self.timing)) {
            self.lost(now, "the primary is silent past the deadline");
        }
    }

    /// Ends the session with a goodbye.
    fn refuse(&mut self, reason: &str) {
        self.send(to_primary::Kind::Goodbye(Goodbye {
            reason: bounded(reason),
            shut_down: false,
        }));
        self.forget(reason);
    }

    /// Ends the session; nothing of the machine is worth keeping.
    fn forget(&mut self, reason: &str) {
        self.actions.push_back(BackupAction::Disconnect(reason.into()));
        self.actions.push_back(BackupAction::Discard);
        self.state = State::Waiting;
    }

    /// The primary may be dead. A backup that knows it was named claims the term; the record decides whether it may. One that
    /// was not told does not: in the same term another join may follow, and a claim that is late on its way would fit the
    /// record of that one. Not before the deadline, however it learnt of it: a primary that knows nothing yet may go by its lease until then.
    fn lost(&mut self, now: SessionTime, reason: &str) {
        match &self.state {
            State::Connected(connection) if matches!(connection.phase, Phase::Protected) => {
                self.claim(reason, connection.deadline(&self.timing));
                self.ask(now);
            }
            _ => self.forget(reason),
        }
    }

    /// Claims the term at `at`, and acknowledges nothing from now on.
    fn claim(&mut self, reason: &str, at: SessionTime) {
        let State::Connected(connection) = &mut self.state else {
            return;
        };
        self.actions.push_back(BackupAction::Disconnect(reason.into()));
        let primary = std::mem::take(&mut connection.primary);
        let expected = Record {
            term: self.term,
            owner: primary.clone(),
            peer: Some(self.identity.node.clone()),
        };
        let new = expected.alone(&self.identity.node);
        self.state = State::Claiming(Claim {
            primary,
            question: Question::new(expected, new, at),
            unanswered: false,
        });
    }

    /// Whether it waits for the deadline to claim, and has not asked yet.
    fn may_yet_claim(&self) -> bool {
        matches!(&self.state, State::Claiming(claim) if !claim.unanswered && !claim.question.is_asked())
    }

    /// Stands by again, without the machine.
    fn renounce(&mut self) {
        self.state = State::Waiting;
        self.actions.push_back(BackupAction::Discard);
    }

    fn ask(&mut self, now: SessionTime) {
        if let State::Claiming(Claim { question, .. }) = &mut self.state
            && question.ask(now)
        {
            self.actions.push_back(BackupAction::Arbitrate {
                expected: question.expected.clone(),
                new: question.new.clone(),
            });
        }
    }

    fn verdict(&mut self, now: SessionTime, verdict: &Verdict) {
        let State::Claiming(claim) = &mut self.state else {
            return;
        };
        if !claim.question.is_asked() {
            return;
        }
        match verdict {
            Verdict::Won => {
                let record = claim.question.new.clone();
                self.state = State::Live {
                    primary: std::mem::take(&mut claim.primary),
                };
                self.actions.push_back(BackupAction::Promote(record));
            }
            Verdict::Lost => self.renounce(),
            Verdict::Unknown => {
                claim.unanswered = true;
                claim.question.put_off(now.plus_ns(self.timing.heartbeat_ns));
            }
        }
    }
}
