//! The primary's end of a session.

use std::collections::VecDeque;

use super::limits::{MAX_NAME_BYTES, PROTOCOL_VERSION, bounded};
use super::{Freeze, Nanos, Record, Timing, Unprotected, Verdict};
use crate::{Ack, Goodbye, Heartbeat, HeartbeatReply, Hello, Named, ToBackup, ToPrimary, to_backup, to_primary};

/// Heartbeats whose sending times are remembered.
const REMEMBERED: usize = 64;

/// Where the primary stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrimaryState {
    /// It goes on alone, and would take a backup.
    Alone(Unprotected),
    /// A backup is connected and has been greeted.
    Greeting,
    /// Memory is on its way to the backup.
    Syncing,
    /// The backup has everything; the arbiter is asked to name it.
    Naming,
    /// The backup can take over.
    Protected,
    /// The backup is lost; the arbiter is asked for the next term. Nothing leaves.
    Fencing(Unprotected),
    /// The machine stands still.
    Frozen(Freeze),
}

/// What happens to the primary.
#[derive(Clone, Debug)]
pub enum PrimaryInput {
    /// The transport reached the peer, and knows it under this name.
    Connected(String),
    /// The connection is gone.
    Disconnected,
    /// A message on the control stream.
    Message(ToPrimary),
    /// A datagram.
    Reply(HeartbeatReply),
    /// The join's state was handed to the transport: the log goes on from here.
    StateSent,
    /// The arbiter's answer to [`PrimaryAction::Arbitrate`].
    Arbiter(Verdict),
    /// Time has passed.
    Tick,
}

/// What the primary wants done.
// Few are alive at a time, and none is kept.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq)]
pub enum PrimaryAction {
    /// Send on the control stream.
    Send(ToBackup),
    /// Send as a datagram.
    Heartbeat(Heartbeat),
    /// Send memory and state to the backup, then the log.
    BeginJoin,
    /// No more of it to this backup.
    EndLog,
    /// Close the connection; for this reason.
    Disconnect(String),
    /// Ask the arbiter to replace the record.
    Arbitrate {
        /// What must be there.
        expected: Record,
        /// What is to be there.
        new: Record,
    },
    /// The vCPU must not run any more.
    Freeze(Freeze),
    /// The vCPU may run again: the term was won after all.
    Thaw,
    /// The backup's report of a divergence, for people.
    Report(String),
}

/// The primary's end.
#[derive(Debug)]
pub struct Primary {
    hello: Hello,
    timing: Timing,
    record: Record,
    state: PrimaryState,
    peer: String,
    /// The record that was sent to the arbiter and not answered.
    asked: Option<Record>,
    ask_again: Option<Nanos>,
    heartbeats: VecDeque<(u64, Nanos)>,
    next_heartbeat: Nanos,
    number: u64,
    last_heard: Nanos,
    lease_until: Nanos,
    ack: Ack,
    released: u64,
    actions: VecDeque<PrimaryAction>,
}

impl Primary {
    /// A primary that holds `record`, alone. `hello` has everything but term and timing.
    pub fn new(hello: Hello, record: Record, timing: Timing, why: Unprotected) -> Self {
        Self {
            hello,
            timing,
            record,
            state: PrimaryState::Alone(why),
            peer: String::new(),
            asked: None,
            ask_again: None,
            heartbeats: VecDeque::new(),
            next_heartbeat: 0,
            number: 0,
            last_heard: 0,
            lease_until: 0,
            ack: Ack::default(),
            released: 0,
            actions: VecDeque::new(),
        }
    }

    /// Where it stands.
    pub fn state(&self) -> &PrimaryState {
        &self.state
    }

    /// The record that it holds.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The backup's name; empty without one.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// What the backup has.
    pub fn ack(&self) -> &Ack {
        &self.ack
    }

    /// Position of the log up to which effects may leave at `now`. Ask before each one.
    pub fn release_limit(&self, now: Nanos) -> u64 {
        match self.state {
            PrimaryState::Alone(_) | PrimaryState::Greeting | PrimaryState::Syncing => u64::MAX,
            PrimaryState::Naming | PrimaryState::Protected if now < self.lease_until => self.ack.received,
            _ => 0,
        }
    }

    /// Effects up to `position` have left: the next heartbeat says so.
    pub fn note_released(&mut self, position: u64) {
        self.released = position;
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<PrimaryAction> {
        self.actions.pop_front()
    }

    /// When it wants [`PrimaryInput::Tick`] at the latest.
    pub fn wake(&self) -> Option<Nanos> {
        let connected = !self.peer.is_empty();
        let beat = connected.then(|| self.next_heartbeat.min(self.last_heard + self.timing.deadline));
        [beat, self.ask_again].into_iter().flatten().min()
    }

    /// Takes in what happened at `now`.
    pub fn handle(&mut self, now: Nanos, input: PrimaryInput) {
        match input {
            PrimaryInput::Connected(name) => self.connected(now, name),
            PrimaryInput::Disconnected => self.lost(Unprotected::LostConnection),
            PrimaryInput::Message(message) => self.message(now, message),
            PrimaryInput::Reply(reply) => self.reply(now, reply),
            PrimaryInput::StateSent => {
                if self.state != PrimaryState::Syncing {
                    self.lost(Unprotected::LostConnection);
                }
            }
            PrimaryInput::Arbiter(verdict) => self.verdict(now, &verdict),
            PrimaryInput::Tick => self.tick(now),
        }
    }

    fn connected(&mut self, now: Nanos, name: String) {
        if !matches!(self.state, PrimaryState::Alone(_)) || name.is_empty() || name.len() > MAX_NAME_BYTES {
            self.actions
                .push_back(PrimaryAction::Disconnect("not waiting for a backup".into()));
            return;
        }
        self.peer = name;
        self.last_heard = now;
        self.next_heartbeat = now;
        self.lease_until = 0;
        self.ack = Ack::default();
        self.heartbeats.clear();
        self.state = PrimaryState::Greeting;
        let hello = Hello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            term: self.record.term,
            heartbeat_ns: self.timing.heartbeat,
            deadline_ns: self.timing.deadline,
            ..self.hello.clone()
        };
        self.send(to_backup::Kind::Hello(hello));
    }

    fn send(&mut self, kind: to_backup::Kind) {
        self.actions
            .push_back(PrimaryAction::Send(ToBackup { kind: Some(kind) }));
    }

    fn message(&mut self, now: Nanos, message: ToPrimary) {
        if self.peer.is_empty() {
            return;
        }
        self.last_heard = now;
        match (message.kind, &self.state) {
            (Some(to_primary::Kind::Welcome(welcome)), PrimaryState::Greeting) => {
                if welcome.version != PROTOCOL_VERSION {
                    return self.end(&format!("the backup chose version {}", welcome.version));
                }
                if welcome.node != self.peer {
                    return self.end("the backup's name is not that of its certificate");
                }
                if welcome.host_class != self.hello.host_class {
                    return self.end(&format!(
                        "the backup's host is of class `{}` and this host of `{}`",
                        bounded(&welcome.host_class),
                        self.hello.host_class
                    ));
                }
                self.state = PrimaryState::Syncing;
                self.actions.push_back(PrimaryAction::BeginJoin);
            }
            (Some(to_primary::Kind::Joined(_)), PrimaryState::Syncing) => {
                // From here on the record may name the backup: what leaves must be acknowledged.
                self.state = PrimaryState::Naming;
                let new = self.record.with_peer(&self.peer);
                self.arbitrate(new);
            }
            (
                Some(to_primary::Kind::Ack(ack)),
                PrimaryState::Syncing | PrimaryState::Naming | PrimaryState::Protected,
            ) => {
                if ack.received < self.ack.received || ack.verified < self.ack.verified || ack.verified > ack.received {
                    return self.end("the backup's acknowledgements go backwards");
                }
                self.ack = ack;
            }
            (Some(to_primary::Kind::Diverged(diverged)), _) => {
                self.actions.push_back(PrimaryAction::Report(bounded(&diverged.report)));
                self.end_with("divergence", Unprotected::Divergence);
            }
            (Some(to_primary::Kind::Goodbye(goodbye)), _) => {
                let reason = bounded(&goodbye.reason);
                self.end_with(&reason.clone(), Unprotected::Refused(reason));
            }
            (Some(_), _) => self.end("the backup sent a message out of turn"),
            (None, _) => self.end("the backup sent a message of a kind that is not known"),
        }
    }

    fn reply(&mut self, now: Nanos, reply: HeartbeatReply) {
        if self.peer.is_empty() {
            return;
        }
        self.last_heard = now;
        while let Some(&(number, sent)) = self.heartbeats.front() {
            if number > reply.number {
                break;
            }
            self.heartbeats.pop_front();
            if number == reply.number {
                self.lease_until = self.lease_until.max(sent + self.timing.lease());
            }
        }
    }

    fn arbitrate(&mut self, new: Record) {
        self.asked = Some(new.clone());
        self.ask_again = None;
        self.actions.push_back(PrimaryAction::Arbitrate {
            expected: self.record.clone(),
            new,
        });
    }

    fn verdict(&mut self, now: Nanos, verdict: &Verdict) {
        let Some(asked) = self.asked.clone() else { return };
        match verdict {
            Verdict::Won => {
                self.asked = None;
                self.record = asked;
                match std::mem::replace(&mut self.state, PrimaryState::Protected) {
                    PrimaryState::Naming => self.send(to_backup::Kind::Named(Named { term: self.record.term })),
                    PrimaryState::Fencing(why) => self.after_fencing(why),
                    PrimaryState::Frozen(Freeze::NoArbiter) => {
                        self.after_fencing(Unprotected::LostConnection);
                        if matches!(self.state, PrimaryState::Alone(_)) {
                            self.actions.push_back(PrimaryAction::Thaw);
                        } else {
                            self.state = PrimaryState::Frozen(Freeze::NoArbiter);
                        }
                    }
                    other => self.state = other,
                }
            }
            Verdict::Lost => {
                self.asked = None;
                self.drop_peer("lost the term");
                self.state = PrimaryState::Frozen(Freeze::LostTerm);
                self.actions.push_back(PrimaryAction::Freeze(Freeze::LostTerm));
            }
            Verdict::Unknown => {
                self.ask_again = Some(now + self.timing.heartbeat);
                if matches!(self.state, PrimaryState::Fencing(_)) {
                    self.state = PrimaryState::Frozen(Freeze::NoArbiter);
                    self.actions.push_back(PrimaryAction::Freeze(Freeze::NoArbiter));
                }
            }
        }
    }

    /// The record of the term is this node's. It may still name the peer, when that was the question on its way as the
    /// peer was lost: then the term after it is what is needed.
    fn after_fencing(&mut self, why: Unprotected) {
        if self.record.peer.is_some() {
            self.state = PrimaryState::Fencing(why);
            let new = self.record.alone(&self.record.owner);
            self.arbitrate(new);
        } else {
            self.state = PrimaryState::Alone(why);
        }
    }

    fn tick(&mut self, now: Nanos) {
        if self.ask_again.is_some_and(|at| now >= at)
            && let Some(asked) = self.asked.clone()
        {
            self.arbitrate(asked);
        }
        if self.peer.is_empty() {
            return;
        }
        if now >= self.last_heard + self.timing.deadline {
            self.drop_peer("silent past the deadline");
            self.lost(Unprotected::LostConnection);
            return;
        }
        if now >= self.next_heartbeat {
            self.next_heartbeat = now + self.timing.heartbeat;
            self.number += 1;
            if self.heartbeats.len() == REMEMBERED {
                self.heartbeats.pop_front();
            }
            self.heartbeats.push_back((self.number, now));
            self.actions.push_back(PrimaryAction::Heartbeat(Heartbeat {
                number: self.number,
                released: self.released,
            }));
        }
    }

    fn end(&mut self, reason: &str) {
        self.end_with(reason, Unprotected::Refused(reason.into()));
    }

    fn end_with(&mut self, reason: &str, why: Unprotected) {
        self.send(to_backup::Kind::Goodbye(Goodbye { reason: reason.into() }));
        self.drop_peer(reason);
        self.lost(why);
    }

    fn drop_peer(&mut self, reason: &str) {
        if !self.peer.is_empty() {
            self.actions.push_back(PrimaryAction::Disconnect(reason.into()));
        }
    }

    /// The backup is gone. Goes on alone at once where the record cannot name it, and asks for the next term where it can.
    fn lost(&mut self, why: Unprotected) {
        if self.peer.is_empty() {
            return;
        }
        self.peer.clear();
        self.lease_until = 0;
        self.actions.push_back(PrimaryAction::EndLog);
        match self.state {
            PrimaryState::Alone(_) | PrimaryState::Greeting | PrimaryState::Syncing => {
                self.state = PrimaryState::Alone(why);
            }
            // The naming is on its way: its answer decides what to ask next.
            PrimaryState::Naming => self.state = PrimaryState::Fencing(why),
            PrimaryState::Protected => {
                self.state = PrimaryState::Fencing(why);
                let new = self.record.alone(&self.record.owner);
                self.arbitrate(new);
            }
            PrimaryState::Fencing(_) | PrimaryState::Frozen(_) => {}
        }
    }
}
