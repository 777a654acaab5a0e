//! The backup's end of a session.

mod io;

use std::collections::VecDeque;
use std::ops::RangeInclusive;

pub use io::{BackupAction, BackupInput, BackupState};

use super::greeting::{check_hello, is_name};
use super::lag::Lag;
use super::limits::{MAX_POSITION, PROTOCOL_VERSION, bounded, reason_of};
use super::question::Question;
use super::{Nanos, Record, Timing, Verdict};
use crate::quantity::LogPosition;
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
    state: BackupState,
    primary: String,
    term: u64,
    /// The join's state has come.
    has_state: bool,
    claim: Option<Question>,
    last_heard: Nanos,
    /// When the last heartbeat came.
    last_beat: Option<Nanos>,
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
            state: BackupState::Waiting,
            primary: String::new(),
            term: 0,
            has_state: false,
            claim: None,
            last_heard: 0,
            last_beat: None,
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
        self.state
    }

    /// The primary's name; empty without one.
    pub fn primary(&self) -> &str {
        &self.primary
    }

    /// The primary's term.
    pub fn term(&self) -> u64 {
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

    /// How long the oldest of the log that is not verified has been here.
    pub fn lag(&self, now: Nanos) -> Nanos {
        self.lag.at(now)
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
    pub fn wake(&self) -> Option<Nanos> {
        let deadline = self.is_connected().then(|| self.deadline());
        let ask = self.claim.as_ref().and_then(Question::at);
        [deadline, ask].into_iter().flatten().min()
    }

    fn deadline(&self) -> Nanos {
        self.last_heard.saturating_add(self.timing.deadline)
    }

    fn is_connected(&self) -> bool {
        use BackupState::{Connected, Joined, Protected, Syncing};
        matches!(self.state, Connected | Syncing | Joined | Protected)
    }

    /// Takes in what happened at `now`.
    pub fn handle(&mut self, now: Nanos, input: BackupInput) {
        match input {
            BackupInput::Connected(name) => self.connected(now, name),
            BackupInput::Arbiter(verdict) => self.verdict(now, &verdict),
            BackupInput::Tick => self.tick(now),
            BackupInput::Diverged(_) | BackupInput::Unfit(_) if self.may_yet_claim() => self.renounce(),
            // All others are of a connection that may be over.
            _ if !self.is_connected() => {}
            BackupInput::Disconnected => self.lost(now, "the connection is gone"),
            BackupInput::Message(message) => self.message(now, message),
            BackupInput::Heartbeat(heartbeat) => {
                self.last_heard = now;
                if let Some(last) = self.last_beat.replace(now) {
                    let passed = now.saturating_sub(last) / self.timing.heartbeat.max(1);
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
                if self.state == BackupState::Syncing && self.has_state {
                    self.state = BackupState::Joined;
                    self.send(to_primary::Kind::Joined(Joined {}));
                    self.acknowledge(now);
                }
            }
            BackupInput::Unfit(reason) => self.refuse(&reason),
            BackupInput::Received(position) => {
                self.last_heard = now;
                self.ack.received = self.ack.received.max(position.get());
                self.lag.received(position, now);
                self.acknowledge(now);
            }
            BackupInput::Verified(position, stop) => {
                if self.has_machine() {
                    self.ack.verified = position.get().clamp(self.ack.verified, self.ack.received);
                    self.ack.stop = stop;
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
        self.check();
    }

    /// What is so after every event. A backup that breaks it may have acknowledged what it has not, or claim what is not its own.
    fn check(&self) {
        assert!(
            self.ack.verified <= self.ack.received,
            "verified what was not received: {:?}",
            self.ack
        );
        let claims = matches!(self.state, BackupState::Claiming | BackupState::Frozen);
        assert_eq!(
            claims,
            self.claim.is_some(),
            "a claim and {:?} do not go together",
            self.state
        );
        assert_eq!(
            self.state == BackupState::Waiting,
            self.primary.is_empty(),
            "a primary and {:?} do not go together",
            self.state
        );
        assert!(
            !self.has_machine() || self.has_state,
            "a machine without the join's state"
        );
    }

    fn send(&mut self, kind: to_primary::Kind) {
        self.actions
            .push_back(BackupAction::Send(ToPrimary { kind: Some(kind) }));
    }

    fn has_machine(&self) -> bool {
        matches!(self.state, BackupState::Joined | BackupState::Protected)
    }

    fn acknowledge(&mut self, now: Nanos) {
        if self.has_machine() {
            self.ack.lag_ns = self.lag.at(now);
            self.send(to_primary::Kind::Ack(self.ack));
        }
    }

    fn connected(&mut self, now: Nanos, name: String) {
        if self.is_connected() {
            return self.lost(now, "the primary connected once more");
        }
        if self.state != BackupState::Waiting || !is_name(&name) {
            self.actions
                .push_back(BackupAction::Disconnect("not waiting for a primary".into()));
            return;
        }
        self.primary = name;
        self.last_heard = now;
        self.last_beat = None;
        self.timing = Timing::CALM;
        self.ack = Ack::default();
        self.lag = Lag::default();
        self.released = LogPosition::START;
        self.has_state = false;
        self.stalled = false;
        self.state = BackupState::Connected;
    }

    fn message(&mut self, now: Nanos, message: ToBackup) {
        self.last_heard = now;
        match (message.kind, self.state) {
            (Some(to_backup::Kind::Hello(hello)), BackupState::Connected) => self.hello(hello),
            (Some(to_backup::Kind::State(state)), BackupState::Syncing) if !self.has_state => {
                let position = LogPosition::new(state.position);
                if position > MAX_POSITION {
                    return self.refuse("the join's state has a position that no log reaches");
                }
                self.has_state = true;
                // The log has a stream of its own and may have been faster.
                self.ack.received = self.ack.received.max(state.position);
                self.ack.verified = state.position;
                self.lag.verified(position);
                self.released = self.released.max(position);
                self.actions.push_back(BackupAction::Build(Box::new(state)));
            }
            (Some(to_backup::Kind::Named(named)), BackupState::Joined) if named.term == self.term => {
                self.state = BackupState::Protected;
                self.send(to_primary::Kind::Ready(Ready { term: named.term }));
            }
            (Some(to_backup::Kind::Handover(handover)), BackupState::Protected)
                if handover.position <= self.ack.verified =>
            {
                self.stalled = handover.stalled;
                self.claim("the primary hands over", now);
                self.ask(now);
            }
            (Some(to_backup::Kind::Goodbye(goodbye)), _) => {
                let of_my_machine = self.state != BackupState::Connected;
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
        let checked = check_hello(&hello, &self.identity, &self.primary);
        if hello.inquiry {
            return self.answer(checked.err());
        }
        let timing = match checked {
            Ok(timing) => timing,
            Err(problem) => return self.refuse(&problem),
        };
        self.timing = timing;
        self.term = hello.term;
        self.state = BackupState::Syncing;
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
        self.state = BackupState::Waiting;
        self.primary.clear();
    }

    fn tick(&mut self, now: Nanos) {
        self.ask(now);
        if self.is_connected() && now >= self.deadline() {
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
        self.state = BackupState::Waiting;
        self.primary.clear();
    }

    /// The primary may be dead. A backup that knows it was named claims the term; the record decides whether it may. One that
    /// was not told does not: in the same term another join may follow, and a claim that is late on its way would fit the
    /// record of that one. Not before the deadline, however it learnt of it: a primary that knows nothing yet may go by its lease until then.
    fn lost(&mut self, now: Nanos, reason: &str) {
        if self.state != BackupState::Protected {
            return self.forget(reason);
        }
        self.claim(reason, self.deadline());
        self.ask(now);
    }

    /// Claims the term at `at`, and acknowledges nothing from now on.
    fn claim(&mut self, reason: &str, at: Nanos) {
        self.actions.push_back(BackupAction::Disconnect(reason.into()));
        self.state = BackupState::Claiming;
        let expected = Record {
            term: self.term,
            owner: self.primary.clone(),
            peer: Some(self.identity.node.clone()),
        };
        let new = expected.alone(&self.identity.node);
        self.claim = Some(Question::new(expected, new, at));
    }

    /// Whether it waits for the deadline to claim, and has not asked yet.
    fn may_yet_claim(&self) -> bool {
        self.state == BackupState::Claiming && self.claim.as_ref().is_some_and(|claim| !claim.is_asked())
    }

    /// Stands by again, without the machine.
    fn renounce(&mut self) {
        self.claim = None;
        self.state = BackupState::Waiting;
        self.primary.clear();
        self.actions.push_back(BackupAction::Discard);
    }

    fn ask(&mut self, now: Nanos) {
        if let Some(claim) = &mut self.claim
            && claim.ask(now)
        {
            self.actions.push_back(BackupAction::Arbitrate {
                expected: claim.expected.clone(),
                new: claim.new.clone(),
            });
        }
    }

    fn verdict(&mut self, now: Nanos, verdict: &Verdict) {
        let Some(mut claim) = self.claim.take_if(|claim| claim.is_asked()) else {
            return;
        };
        match verdict {
            Verdict::Won => {
                self.state = BackupState::Live;
                self.actions.push_back(BackupAction::Promote(claim.new));
            }
            Verdict::Lost => self.renounce(),
            Verdict::Unknown => {
                self.state = BackupState::Frozen;
                claim.put_off(now.saturating_add(self.timing.heartbeat));
                self.claim = Some(claim);
            }
        }
    }
}
