//! The backup's end of a session.

use std::collections::VecDeque;

use super::limits::{MAX_NAME_BYTES, PROTOCOL_VERSION, bounded};
use super::{Nanos, Record, Timing, Verdict};
use crate::{Ack, Goodbye, Heartbeat, HeartbeatReply, Hello, JoinState, Joined, ToBackup, ToPrimary, Welcome};
use crate::{Diverged, to_backup, to_primary};

/// Where the backup stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupState {
    /// No primary is connected.
    Waiting,
    /// A primary is connected and has said nothing yet.
    Connected,
    /// Memory is on its way here.
    Syncing,
    /// The machine is here and replays; the record may not name this node yet.
    Joined,
    /// The record names this node.
    Protected,
    /// The primary is silent; the arbiter is asked for the next term. Nothing is acknowledged any more.
    Claiming,
    /// The same, and the arbiter does not answer.
    Frozen,
    /// The term is won.
    Live,
}

/// What happens to the backup.
// Few are alive at a time, and none is kept.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug)]
pub enum BackupInput {
    /// A primary has connected, and is known by this name.
    Connected(String),
    /// The connection is gone.
    Disconnected,
    /// A message on the control stream.
    Message(ToBackup),
    /// A datagram.
    Heartbeat(Heartbeat),
    /// The machine is built as the join's state says.
    Built,
    /// The machine cannot be built; for this reason.
    Unfit(String),
    /// The log is here, whole, up to this position.
    Received(u64),
    /// It was executed and compared up to this position, at this stop.
    Verified(u64, u64),
    /// The machine went another way; at this stop, with a report for people.
    Diverged(u64, String),
    /// The arbiter's answer to [`BackupAction::Arbitrate`].
    Arbiter(Verdict),
    /// Time has passed.
    Tick,
}

/// What the backup wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum BackupAction {
    /// Send on the control stream.
    Send(ToPrimary),
    /// Send as a datagram.
    Reply(HeartbeatReply),
    /// Prepare for a machine like the hello's: its memory comes on the bulk stream.
    Prepare(Box<Hello>),
    /// All pages that the state counts being there, build the machine.
    Build(Box<JoinState>),
    /// Throw the machine away, and whatever of it has come.
    Discard,
    /// Close the connection; for this reason.
    Disconnect(String),
    /// Ask the arbiter to replace the record.
    Arbitrate {
        /// What must be there.
        expected: Record,
        /// What is to be there.
        new: Record,
    },
    /// The term is won: replay what was received, then go live.
    Promote(Record),
}

/// Who the backup is.
#[derive(Clone, Debug)]
pub struct BackupIdentity {
    /// Its name, as in its certificate.
    pub node: String,
    /// Name of the machine that it stands by for.
    pub machine_name: String,
    /// Its host class.
    pub host_class: String,
    /// Revision of the device model that it has.
    pub model_revision: u32,
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
    claim: Option<(Record, Record)>,
    ask_again: Option<Nanos>,
    last_heard: Nanos,
    ack: Ack,
    released: u64,
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
            ask_again: None,
            last_heard: 0,
            ack: Ack::default(),
            released: 0,
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

    /// Position up to which the primary's effects are known to have left.
    pub fn released(&self) -> u64 {
        self.released
    }

    /// What was acknowledged last.
    pub fn ack(&self) -> &Ack {
        &self.ack
    }

    /// What the primary's hello said.
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<BackupAction> {
        self.actions.pop_front()
    }

    /// When it wants [`BackupInput::Tick`] at the latest.
    pub fn wake(&self) -> Option<Nanos> {
        let deadline = self.is_connected().then(|| self.last_heard + self.timing.deadline);
        [deadline, self.ask_again].into_iter().flatten().min()
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
            BackupInput::Verified(position, stop) => {
                self.ack.verified = position;
                self.ack.stop = stop;
                self.acknowledge();
            }
            // All others are of a connection that may be over.
            _ if !self.is_connected() => {}
            BackupInput::Disconnected => self.lost("the connection is gone"),
            BackupInput::Message(message) => self.message(now, message),
            BackupInput::Heartbeat(heartbeat) => {
                self.last_heard = now;
                self.released = self.released.max(heartbeat.released);
                self.actions.push_back(BackupAction::Reply(HeartbeatReply {
                    number: heartbeat.number,
                }));
            }
            BackupInput::Built => {
                if self.state == BackupState::Syncing {
                    self.state = BackupState::Joined;
                    self.send(to_primary::Kind::Joined(Joined {}));
                    self.acknowledge();
                }
            }
            BackupInput::Unfit(reason) => self.refuse(&reason),
            BackupInput::Received(position) => {
                self.last_heard = now;
                self.ack.received = self.ack.received.max(position);
                self.acknowledge();
            }
            BackupInput::Diverged(stop, report) => {
                let report = bounded(&report);
                self.send(to_primary::Kind::Diverged(Diverged { stop, report }));
                self.forget("divergence");
            }
        }
    }

    fn send(&mut self, kind: to_primary::Kind) {
        self.actions
            .push_back(BackupAction::Send(ToPrimary { kind: Some(kind) }));
    }

    fn acknowledge(&mut self) {
        if matches!(self.state, BackupState::Joined | BackupState::Protected) {
            self.send(to_primary::Kind::Ack(self.ack));
        }
    }

    fn connected(&mut self, now: Nanos, name: String) {
        if self.state != BackupState::Waiting || name.is_empty() || name.len() > MAX_NAME_BYTES {
            self.actions
                .push_back(BackupAction::Disconnect("not waiting for a primary".into()));
            return;
        }
        self.primary = name;
        self.last_heard = now;
        self.timing = Timing::CALM;
        self.ack = Ack::default();
        self.released = 0;
        self.has_state = false;
        self.state = BackupState::Connected;
    }

    fn message(&mut self, now: Nanos, message: ToBackup) {
        self.last_heard = now;
        match (message.kind, self.state) {
            (Some(to_backup::Kind::Hello(hello)), BackupState::Connected) => self.hello(hello),
            (Some(to_backup::Kind::State(state)), BackupState::Syncing) if !self.has_state => {
                self.has_state = true;
                self.ack.received = state.position;
                self.ack.verified = state.position;
                self.released = state.position;
                self.actions.push_back(BackupAction::Build(Box::new(state)));
            }
            (Some(to_backup::Kind::Named(named)), BackupState::Joined) if named.term == self.term => {
                self.state = BackupState::Protected;
            }
            (Some(to_backup::Kind::Goodbye(goodbye)), _) => {
                let reason = bounded(&goodbye.reason);
                self.forget(&reason);
            }
            (Some(_), _) => self.refuse("the primary sent a message out of turn"),
            (None, _) => self.refuse("the primary sent a message of a kind that is not known"),
        }
    }

    fn hello(&mut self, hello: Hello) {
        let identity = &self.identity;
        let timing = Timing {
            heartbeat: hello.heartbeat_ns,
            deadline: hello.deadline_ns,
        };
        let revision = hello.machine.as_ref().map_or(0, |machine| machine.model_revision);
        let problem = if !(hello.version_min..=hello.version_max).contains(&PROTOCOL_VERSION) {
            Some(format!(
                "the primary speaks protocol versions {} to {} and this program {PROTOCOL_VERSION}",
                hello.version_min, hello.version_max
            ))
        } else if hello.node != self.primary {
            Some("the primary's name is not that of its certificate".into())
        } else if hello.node == identity.node {
            Some(format!("both ends are called `{}`", identity.node))
        } else if hello.machine_name != identity.machine_name {
            Some(format!(
                "the primary runs machine `{}` and this backup stands by for `{}`",
                bounded(&hello.machine_name),
                identity.machine_name
            ))
        } else if hello.host_class != identity.host_class {
            Some(format!(
                "the primary's host is of class `{}` and this host of `{}`",
                bounded(&hello.host_class),
                identity.host_class
            ))
        } else if revision != identity.model_revision {
            Some(format!(
                "the machine has device model revision {revision} and this program {}",
                identity.model_revision
            ))
        } else if !timing.is_sound() {
            Some("the heartbeat and the deadline do not fit each other".into())
        } else {
            None
        };
        if let Some(problem) = problem {
            return self.refuse(&problem);
        }
        self.timing = timing;
        self.term = hello.term;
        self.state = BackupState::Syncing;
        let welcome = Welcome {
            version: PROTOCOL_VERSION,
            node: identity.node.clone(),
            host_class: identity.host_class.clone(),
        };
        self.actions.push_back(BackupAction::Prepare(Box::new(hello)));
        self.send(to_primary::Kind::Welcome(welcome));
    }

    fn tick(&mut self, now: Nanos) {
        if self.ask_again.is_some_and(|at| now >= at) {
            self.ask();
        }
        if self.is_connected() && now >= self.last_heard + self.timing.deadline {
            self.lost("the primary is silent past the deadline");
        }
    }

    /// Ends the session with a goodbye.
    fn refuse(&mut self, reason: &str) {
        self.send(to_primary::Kind::Goodbye(Goodbye {
            reason: bounded(reason),
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

    /// The primary may be dead. A backup that has the machine claims the term; the record decides whether it may.
    fn lost(&mut self, reason: &str) {
        if !matches!(self.state, BackupState::Joined | BackupState::Protected) {
            return self.forget(reason);
        }
        self.actions.push_back(BackupAction::Disconnect(reason.into()));
        self.state = BackupState::Claiming;
        let expected = Record {
            term: self.term,
            owner: self.primary.clone(),
            peer: Some(self.identity.node.clone()),
        };
        let new = expected.alone(&self.identity.node);
        self.claim = Some((expected, new));
        self.ask();
    }

    fn ask(&mut self) {
        self.ask_again = None;
        if let Some((expected, new)) = self.claim.clone() {
            self.actions.push_back(BackupAction::Arbitrate { expected, new });
        }
    }

    fn verdict(&mut self, now: Nanos, verdict: &Verdict) {
        let Some((_, new)) = self.claim.clone() else { return };
        match verdict {
            Verdict::Won => {
                self.claim = None;
                self.state = BackupState::Live;
                self.actions.push_back(BackupAction::Promote(new));
            }
            Verdict::Lost => {
                self.claim = None;
                self.state = BackupState::Waiting;
                self.primary.clear();
                self.actions.push_back(BackupAction::Discard);
            }
            Verdict::Unknown => {
                self.state = BackupState::Frozen;
                self.ask_again = Some(now + self.timing.heartbeat);
            }
        }
    }
}
