//! What drives a `Primary`: it makes the log and the effects, sends what the session says and lets go what it may.

use std::rc::Rc;

use lockstep_proto::quantity::{LogPosition, SessionTime};
use lockstep_proto::session::{Freeze, Gate, Primary, PrimaryAction, PrimaryInput, PrimaryState, Record};
use lockstep_proto::session::{Unprotected, Verdict};
use lockstep_proto::{Hello, JoinState, MachineConfig, ToBackup, to_backup};

use super::backup::BackupDriver;
use super::bug::Bug;
use super::ending::{End, GuestEnd};
use super::env::{Env, NodeEvent};
use super::net::{self, Packet};
use super::node::{NAMES, Node, Role};
use super::plan::{MICRO, MILLI, Plan, SECOND};
use super::rng::mix;

/// What a backup may be behind when it is handed a machine that makes no stop.
const MOST_LAG: u64 = 2 * SECOND;
/// Entries that a backup may have to execute before it is handed the machine.
const MOST_BACKLOG: u64 = 100;

pub struct PrimaryDriver {
    pub session: Primary,
    /// The effect at each position, less one: it depends on all of the log before it.
    pub history: Vec<u64>,
    gate: Gate<u64>,
    /// The log goes to the backup.
    streaming: bool,
    /// Counts joins and their ends.
    join: u32,
    frozen: bool,
    /// The guest makes no stop: nothing that is asked of its thread is done.
    pub stalled: bool,
    releasing: bool,
    /// The backup was told to go on.
    handed_over: bool,
    /// The connection that is being made.
    dialing: Option<usize>,
    /// The limit of old: a planted bug.
    limit: Option<LogPosition>,
    pub end: End,
}

/// An entry of the log.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub input: u64,
    /// The guest ends with it.
    pub end: Option<GuestEnd>,
}

/// The effect of an entry of the log after one that had the effect `last`.
pub fn effect(last: Option<&u64>, input: u64) -> u64 {
    mix(last.copied().unwrap_or(0) ^ input)
}

impl PrimaryDriver {
    /// A machine with this history, live in the record's term. What was made after `released` may not have left.
    pub fn new(id: usize, plan: &Plan, record: Record, history: Vec<u64>, released: u64, why: Unprotected) -> Self {
        let hello = Hello {
            node: NAMES[id].into(),
            machine_name: "machine".into(),
            machine: Some(MachineConfig::default()),
            host_class: "class".into(),
            ..Hello::default()
        };
        let mut session = Primary::new(hello, record, plan.timing, why);
        session.set_commit(plan.commit);
        session.note_released(LogPosition::new(released));
        let mut gate = Gate::default();
        for position in released + 1..=history.len() as u64 {
            gate.push(LogPosition::new(position), history[position as usize - 1]);
        }
        Self {
            session,
            history,
            gate,
            streaming: false,
            join: 0,
            frozen: false,
            stalled: false,
            releasing: false,
            handed_over: false,
            dialing: None,
            limit: None,
            end: End::default(),
        }
    }

    fn limit(&mut self, bug: Option<Bug>, now: SessionTime) -> LogPosition {
        let received = LogPosition::new(self.session.ack().received);
        let limit = self.session.release_limit(now);
        match (bug, self.session.state()) {
            (Some(Bug::OpenWithoutFencing), PrimaryState::Fencing { .. }) => LogPosition::NO_LIMIT,
            (Some(Bug::LeaseIgnored), PrimaryState::Naming { .. } | PrimaryState::Protected) => limit.max(received),
            (Some(Bug::OpenAfterHandover), _) if self.handed_over => limit.max(received),
            (Some(Bug::LimitAskedOnce), _) => *self.limit.get_or_insert(limit),
            _ => limit,
        }
    }

    /// Whether the guest makes anything.
    pub fn runs(&self) -> bool {
        !self.frozen && !self.stalled && !self.end.has_come
    }

    /// Whether nothing waits to leave.
    pub fn all_has_left(&self) -> bool {
        self.gate.is_empty()
    }

    /// Makes the next entry; gives its position.
    fn produce(&mut self, input: u64) -> u64 {
        let effect = effect(self.history.last(), input);
        self.history.push(effect);
        self.history.len() as u64
    }

    /// Lets one effect go, if one is within `limit`.
    fn let_go(&mut self, env: &mut Env, node: &str, limit: LogPosition) -> bool {
        let Some(effect) = self.gate.pop(limit) else {
            return false;
        };
        let position = self.gate.released();
        let term = self.session.record().term;
        env.checker
            .releases(env.now, node, term, position.get(), effect, &env.arbiter.record);
        self.session.note_released(position);
        true
    }
}

impl Node {
    pub fn primary(&mut self) -> Option<&mut PrimaryDriver> {
        match &mut self.role {
            Role::Primary(primary) => Some(primary),
            Role::Backup(_) => None,
        }
    }

    /// Becomes the primary.
    pub fn go_live(&mut self, env: &mut Env, driver: PrimaryDriver) {
        env.trace.line(env.now, || {
            let record = driver.session.record();
            format!("{} is live with {record:?} at {}", self.name(), driver.history.len())
        });
        self.role = Role::Primary(Box::new(driver));
        self.later(env, 0, NodeEvent::Produce);
        self.later(env, 0, NodeEvent::Dial);
    }

    pub fn input(&mut self, env: &Env, input: PrimaryInput) {
        let now = self.local(env);
        if let Some(primary) = self.primary() {
            primary.session.handle(now, input);
        }
    }

    pub fn primary_event(&mut self, env: &mut Env, event: &NodeEvent) {
        match *event {
            NodeEvent::Timer => self.input(env, PrimaryInput::Tick),
            NodeEvent::Dial => self.dial(env),
            NodeEvent::Produce => self.produce(env),
            NodeEvent::Release => self.release(env),
            NodeEvent::PagesSent(join) => self.pages_sent(env, join),
            NodeEvent::StandStill => self.stand_still(env),
            // Its thread is gone.
            NodeEvent::HandOver(_) if self.primary().is_some_and(|primary| primary.end.has_come) => {}
            NodeEvent::HandOver(position) => self.input(env, PrimaryInput::HandOver(LogPosition::new(position))),
            NodeEvent::Stall(stalled) => {
                if let Some(primary) = self.primary() {
                    primary.stalled = stalled;
                }
            }
            // Nothing is wrong any more once all is calm.
            NodeEvent::GiveAway if env.plan.faults.is_empty() => {}
            NodeEvent::GiveAway => self.give_away(env),
            NodeEvent::Suspend => self.input(env, PrimaryInput::Suspend),
            NodeEvent::Resume => self.input(env, PrimaryInput::Resume),
            NodeEvent::StepDown => {
                self.keep_disk();
                self.role = Role::Backup(Box::new(BackupDriver::new(self.id)));
                self.later(env, MILLI, NodeEvent::Boot);
            }
            _ => self.ending_event(env, event),
        }
    }

    /// The vCPU stops, and says a little later where.
    fn stand_still(&mut self, env: &mut Env) {
        let soon = env.rng.below(5 * MILLI);
        let (id, life) = (self.id, self.life);
        let Some(primary) = self.primary() else { return };
        let position = primary.history.len() as u64;
        // A backup that lags far behind is not handed anything.
        let backlog = position - primary.session.ack().verified;
        if primary.session.state() == PrimaryState::Protected && primary.runs() && backlog < MOST_BACKLOG {
            primary.frozen = true;
            env.node_in(soon, id, life, NodeEvent::HandOver(position));
        }
    }

    /// The machine makes no stop, and is handed over where the log ends; a backup that is far behind first catches up, as `link`
    /// has it.
    fn give_away(&mut self, env: &mut Env) {
        let Some(primary) = self.primary() else { return };
        let backlog = primary.history.len() as u64 - primary.session.ack().verified;
        if backlog * env.plan.verify.1 <= MOST_LAG {
            self.input(env, PrimaryInput::GiveAway);
        }
    }

    fn dial(&mut self, env: &mut Env) {
        let (id, life) = (self.id, self.life);
        let has_conn = self.conn.is_some();
        let Some(primary) = self.primary() else { return };
        let suspended = primary.session.state() == PrimaryState::Alone(Unprotected::Suspended);
        let alone = matches!(primary.session.state(), PrimaryState::Alone(_)) && !suspended;
        // There is nothing to join any more.
        let alone = alone && !primary.end.ending.has_ended();
        let to = 1 - id;
        if alone && !has_conn && env.net.passes(id, to, env.now) && env.net.passes(to, id, env.now) {
            let conn = env.net.connect();
            primary.dialing = Some(conn);
            let delay = env.rng.between(env.plan.delay);
            let to_life = env.lives[to];
            env.node_in(delay, to, to_life, NodeEvent::Incoming(conn));
        }
        env.node_in(60 * MILLI, id, life, NodeEvent::Dial);
    }

    pub fn reached(&mut self, env: &mut Env, conn: usize) {
        if self.conn.is_some() || self.primary().and_then(|primary| primary.dialing.take()) != Some(conn) {
            return net::close(env, conn, self.id);
        }
        self.conn = Some(conn);
        env.trace
            .line(env.now, || format!("{} is connected by {conn}", self.name()));
        let peer = 1 - self.id;
        if let Some(primary) = self.primary() {
            primary.end.backup_life = env.lives[peer];
        }
        self.input(env, PrimaryInput::Connected(NAMES[peer].to_string()));
    }

    fn produce(&mut self, env: &mut Env) {
        let gap = env.rng.between(env.plan.produce);
        self.later(env, gap, NodeEvent::Produce);
        if self.primary().is_some_and(|primary| primary.runs()) {
            let input = env.rng.next();
            self.record(env, Entry { input, end: None });
        }
    }

    /// Makes an entry of the log and its effect.
    pub fn record(&mut self, env: &mut Env, entry: Entry) {
        let conn = self.conn;
        let (id, life) = (self.id, self.life);
        let Some(primary) = self.primary() else { return };
        let position = primary.produce(entry.input);
        if primary.streaming {
            primary.session.note_logged(LogPosition::new(position));
        }
        primary
            .gate
            .push(LogPosition::new(position), primary.history[position as usize - 1]);
        if primary.streaming && conn.is_some() {
            self.send(env, Packet::Log(position, entry));
            if env.bug == Some(Bug::AckBeforeReceive) {
                self.send(env, Packet::Announce(position));
            }
        }
        let Some(primary) = self.primary() else { return };
        if !primary.releasing {
            primary.releasing = true;
            let soon = env.rng.below(200 * MICRO);
            env.node_in(soon, id, life, NodeEvent::Release);
        }
    }

    /// Lets one effect go, if it may.
    fn release(&mut self, env: &mut Env) {
        let now = self.local(env);
        let (id, life, name) = (self.id, self.life, self.name());
        let Some(primary) = self.primary() else { return };
        let limit = primary.limit(env.bug, now);
        if !primary.let_go(env, name, limit) {
            primary.releasing = false;
            primary.limit = None;
            return;
        }
        let soon = env.rng.between(env.plan.release);
        env.node_in(soon, id, life, NodeEvent::Release);
    }

    /// The join's last pause: what was made before it leaves, then the state goes.
    fn pages_sent(&mut self, env: &mut Env, join: u32) {
        let now = self.local(env);
        let name = self.name();
        let Some(primary) = self.primary() else { return };
        if primary.join != join || primary.end.has_come {
            return;
        }
        while env.bug != Some(Bug::StateBeforeEffects) {
            let limit = primary.session.release_limit(now);
            if !primary.let_go(env, name, limit) {
                break;
            }
        }
        let position = primary.history.len() as u64;
        let pages = Rc::new(primary.history.clone());
        primary.streaming = true;
        primary.session.note_logged(LogPosition::new(position));
        env.moment();
        let state = JoinState {
            position,
            ..JoinState::default()
        };
        self.send(env, Packet::Pages(pages));
        let kind = Some(to_backup::Kind::State(state));
        self.send(env, Packet::ToBackup(Box::new(ToBackup { kind })));
        self.input(env, PrimaryInput::StateSent);
    }

    pub fn primary_packet(&mut self, env: &mut Env, packet: Packet) {
        match packet {
            Packet::ToPrimary(message) => self.input(env, PrimaryInput::Message(message)),
            Packet::Reply(reply) => self.input(env, PrimaryInput::Reply(reply)),
            _ => {}
        }
    }

    pub fn primary_gone(&mut self, env: &mut Env) {
        self.input(env, PrimaryInput::Disconnected);
    }

    pub fn primary_verdict(&mut self, env: &mut Env, verdict: Verdict) {
        self.input(env, PrimaryInput::Arbiter(verdict));
    }

    pub fn settle_primary(&mut self, env: &mut Env) -> Option<SessionTime> {
        loop {
            while let Some(action) = self.primary().and_then(|primary| primary.session.poll()) {
                self.act(env, action);
            }
            self.let_the_last_go(env);
            if !self.say_goodbye(env) {
                break;
            }
        }
        if !self.look_at_ending(env) {
            return None;
        }
        let ending_wake = self.ending_wake();
        let (id, life) = (self.id, self.life);
        let primary = self.primary()?;
        if primary.session.peer().is_some() {
            let state = primary.session.state();
            primary.end.protected = matches!(state, PrimaryState::Protected | PrimaryState::HandingOver { .. });
        }
        if !primary.gate.is_empty() && !primary.releasing {
            primary.releasing = true;
            let soon = env.rng.below(100 * MICRO);
            env.node_in(soon, id, life, NodeEvent::Release);
        }
        [primary.session.wake(), ending_wake].into_iter().flatten().min()
    }

    /// What a guest that has ended gave leaves as soon as it may.
    fn let_the_last_go(&mut self, env: &mut Env) {
        let (now, name) = (self.local(env), self.name());
        let Some(primary) = self.primary() else { return };
        while primary.end.ending.has_ended() {
            let limit = primary.limit(env.bug, now);
            if !primary.let_go(env, name, limit) {
                break;
            }
        }
    }

    fn act(&mut self, env: &mut Env, action: PrimaryAction) {
        let (id, life, name) = (self.id, self.life, self.name());
        let Some(primary) = self.primary() else { return };
        if !matches!(action, PrimaryAction::Heartbeat(_)) {
            let state = primary.session.state();
            env.trace
                .line(env.now, || format!("{name} (primary, {state:?}) does {action:?}"));
        }
        match action {
            PrimaryAction::Send(message) => {
                if let Some(to_backup::Kind::Handover(handover)) = message.kind {
                    primary.handed_over = true;
                    env.checker.counts.handed_over += 1;
                    env.checker.counts.given_away += u64::from(handover.stalled);
                    env.moment();
                }
                if let Some(to_backup::Kind::Goodbye(_)) = message.kind {
                    primary.end.protected = false;
                }
                if let Some(to_backup::Kind::Named(_)) = message.kind {
                    env.checker.counts.protected += 1;
                    env.moment();
                }
                self.send(env, Packet::ToBackup(Box::new(message)));
            }
            PrimaryAction::Heartbeat(heartbeat) => self.send(env, Packet::Heartbeat(heartbeat)),
            PrimaryAction::BeginJoin => {
                primary.join += 1;
                let delay = env.rng.between(env.plan.pages);
                env.node_in(delay, id, life, NodeEvent::PagesSent(primary.join));
            }
            PrimaryAction::EndLog => {
                primary.join += 1;
                primary.streaming = false;
            }
            PrimaryAction::Disconnect(reason) => self.disconnect(env, &reason),
            PrimaryAction::Arbitrate { expected, new } => {
                if new.peer.is_none() {
                    env.checker.counts.fenced += 1;
                }
                self.ask(env, expected, new);
            }
            PrimaryAction::Freeze(why) => {
                primary.frozen = true;
                if why == Freeze::LostTerm {
                    env.checker.counts.lost_terms += 1;
                    let delay = env.rng.below(100 * MILLI);
                    env.node_in(delay, id, life, NodeEvent::StepDown);
                } else {
                    env.checker.counts.no_arbiter += 1;
                }
            }
            PrimaryAction::Thaw => primary.frozen = false,
            PrimaryAction::Report(_) => env.checker.fail(format!("{name} hears of a divergence")),
        }
    }
}
