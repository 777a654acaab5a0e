//! What drives a `Backup`: it takes pages and log in, builds and replays the machine, and goes live with it.

use std::rc::Rc;

use lockstep_proto::quantity::{LogPosition, SessionTime, StopNumber, Term};
use lockstep_proto::session::{Backup, BackupAction, BackupIdentity, BackupInput, Record};
use lockstep_proto::session::{Unprotected, Verdict};
use lockstep_proto::{JoinState, to_backup, to_primary};

use super::bug::Bug;
use super::ending::{GuestEnd, HOW};
use super::env::{Env, NodeEvent};
use super::net::Packet;
use super::node::{NAMES, Node, Role};
use super::primary::{Entry, PrimaryDriver, effect};

/// The machine that is coming, or replays.
#[derive(Default)]
struct Replica {
    pages: Option<Rc<Vec<u64>>>,
    state: Option<JoinState>,
    built: bool,
    /// Entries received, by position less the first's.
    log: Vec<Entry>,
    first: u64,
    history: Vec<u64>,
    executing: bool,
    /// How the machine has ended.
    ended: Option<GuestEnd>,
}

impl Replica {
    /// Position of the last entry that was received.
    fn received(&self) -> u64 {
        (self.first + self.log.len() as u64).saturating_sub(1)
    }

    /// Executes one more entry.
    fn execute(&mut self) -> bool {
        let position = self.history.len() as u64 + 1;
        let entry = position.checked_sub(self.first).filter(|_| self.first > 0);
        let Some(&Entry { input, end }) = entry.and_then(|at| self.log.get(at as usize)) else {
            return false;
        };
        let effect = effect(self.history.last(), input);
        self.history.push(effect);
        self.ended = end;
        true
    }
}

pub struct BackupDriver {
    pub session: Backup,
    /// Number of the replica; what is said of another is of no use.
    number: u32,
    replica: Replica,
    promoted: Option<Record>,
    /// Found out before booting: the record that this node would boot with.
    pub boots_with: Option<Record>,
}

impl BackupDriver {
    pub fn new(id: usize) -> Self {
        let identity = BackupIdentity {
            node: NAMES[id].into(),
            machine_name: "machine".into(),
            host_class: "class".into(),
            model_revisions: 0..=0,
            nic_mtus: Vec::new(),
        };
        Self {
            session: Backup::new(identity),
            number: 0,
            replica: Replica::default(),
            promoted: None,
            boots_with: None,
        }
    }

    fn discard(&mut self) {
        self.number += 1;
        self.replica = Replica::default();
    }
}

impl Node {
    pub fn backup(&mut self) -> Option<&mut BackupDriver> {
        match &mut self.role {
            Role::Backup(backup) => Some(backup),
            Role::Primary(_) => None,
        }
    }

    fn backup_input(&mut self, env: &Env, input: BackupInput) {
        let now = self.local(env);
        if let Some(backup) = self.backup() {
            backup.session.handle(now, input);
        }
    }

    pub fn accept(&mut self, env: &mut Env, conn: usize) {
        self.backup_input(env, BackupInput::Connected(NAMES[1 - self.id].into()));
        let delay = env.rng.between(env.plan.delay);
        let life = env.lives[1 - self.id];
        env.node_in(delay, 1 - self.id, life, NodeEvent::Reached(conn));
    }

    pub fn backup_event(&mut self, env: &mut Env, event: &NodeEvent) {
        let number = self.backup().map(|backup| backup.number);
        match *event {
            NodeEvent::Timer => self.backup_input(env, BackupInput::Tick),
            NodeEvent::Built(of) if Some(of) == number => self.built(env),
            NodeEvent::Verify(of) if Some(of) == number => self.verify(env),
            NodeEvent::Replayed(of) if Some(of) == number => self.replayed(env),
            _ => {}
        }
    }

    pub fn backup_packet(&mut self, env: &mut Env, packet: Packet) {
        let conn = self.conn;
        let Some(backup) = self.backup() else { return };
        match packet {
            Packet::ToBackup(message) => {
                if let Some(to_backup::Kind::Goodbye(goodbye)) = &message.kind
                    && goodbye.reason == HOW
                {
                    env.checker.heard_by = conn;
                }
                self.backup_input(env, BackupInput::Message(*message));
            }
            Packet::Heartbeat(heartbeat) => self.backup_input(env, BackupInput::Heartbeat(heartbeat)),
            Packet::Pages(pages) => {
                backup.replica.pages = Some(pages);
                self.build(env);
            }
            Packet::Log(position, entry) => {
                let replica = &mut backup.replica;
                if replica.log.is_empty() {
                    replica.first = position;
                }
                replica.log.push(entry);
                if replica.received() != position {
                    env.checker.fail("the log has a gap".into());
                }
                self.backup_input(env, BackupInput::Received(LogPosition::new(position)));
                self.execute(env);
            }
            Packet::Announce(position) => self.backup_input(env, BackupInput::Received(LogPosition::new(position))),
            Packet::ToPrimary(_) | Packet::Reply(_) => {}
        }
    }

    /// Builds the machine when all of it is here.
    fn build(&mut self, env: &mut Env) {
        let (id, life) = (self.id, self.life);
        let Some(backup) = self.backup() else { return };
        if backup.replica.pages.is_some() && backup.replica.state.is_some() {
            let delay = env.rng.between(env.plan.build);
            env.node_in(delay, id, life, NodeEvent::Built(backup.number));
        }
    }

    fn built(&mut self, env: &mut Env) {
        let Some(backup) = self.backup() else { return };
        let replica = &mut backup.replica;
        let (Some(pages), Some(state)) = (&replica.pages, &replica.state) else {
            return;
        };
        if pages.len() as u64 != state.position {
            env.checker.fail("the pages are not those of the state".into());
        }
        replica.history.clone_from(pages);
        replica.built = true;
        self.backup_input(env, BackupInput::Built);
        self.execute(env);
    }

    /// Executes what is there, one entry after the other.
    fn execute(&mut self, env: &mut Env) {
        let (id, life) = (self.id, self.life);
        let Some(backup) = self.backup() else { return };
        let replica = &mut backup.replica;
        if replica.built && !replica.executing && !replica.log.is_empty() {
            replica.executing = true;
            let delay = env.rng.between(env.plan.verify);
            env.node_in(delay, id, life, NodeEvent::Verify(backup.number));
        }
    }

    fn verify(&mut self, env: &mut Env) {
        let Some(backup) = self.backup() else { return };
        let replica = &mut backup.replica;
        replica.executing = false;
        if backup.promoted.is_none() && replica.execute() {
            let position = replica.history.len() as u64;
            self.backup_input(
                env,
                BackupInput::Verified(LogPosition::new(position), StopNumber::new(position)),
            );
            self.execute(env);
        }
    }

    fn promote(&mut self, env: &mut Env, record: Record) {
        let (id, life) = (self.id, self.life);
        env.checker.counts.promotions += 1;
        let Some(backup) = self.backup() else { return };
        backup.promoted = Some(record);
        let replica = &backup.replica;
        let backlog = replica.received().saturating_sub(replica.history.len() as u64);
        let delay = env.rng.between(env.plan.verify) * backlog.min(50) / 4;
        env.node_in(delay, id, life, NodeEvent::Replayed(backup.number));
    }

    /// All that was received is executed: the machine goes live.
    fn replayed(&mut self, env: &mut Env) {
        let (id, name) = (self.id, self.name());
        let Some(backup) = self.backup() else { return };
        let Some(record) = backup.promoted.take() else { return };
        while backup.replica.execute() {}
        let ended = backup.replica.ended;
        let history = std::mem::take(&mut backup.replica.history);
        let released = match env.bug {
            Some(Bug::NothingEmittedAgain) => history.len() as u64,
            _ => backup.session.released().get(),
        };
        env.checker.takes_over(name, history.len() as u64);
        env.checker.goes_live(name, record.term, &history, &env.arbiter.record);
        if let Some(how) = ended {
            return self.ends_here(env, &record, history, released, how);
        }
        let driver = PrimaryDriver::new(id, &env.plan, record, history, released, Unprotected::LostConnection);
        self.go_live(env, driver);
    }

    pub fn backup_gone(&mut self, env: &mut Env) {
        self.backup_input(env, BackupInput::Disconnected);
    }

    pub fn backup_verdict(&mut self, env: &mut Env, verdict: Verdict) {
        self.backup_input(env, BackupInput::Arbiter(verdict));
    }

    pub fn settle_backup(&mut self, env: &mut Env) -> Option<SessionTime> {
        while let Some(action) = self.backup().and_then(|backup| backup.session.poll()) {
            self.act_as_backup(env, action);
        }
        self.backup()?.session.wake()
    }

    fn act_as_backup(&mut self, env: &mut Env, action: BackupAction) {
        let name = self.name();
        let Some(backup) = self.backup() else { return };
        let is_dull = match &action {
            BackupAction::Reply(_) => true,
            BackupAction::Send(message) => matches!(message.kind, Some(to_primary::Kind::Ack(_))),
            _ => false,
        };
        if !is_dull {
            let state = backup.session.state();
            env.trace
                .line(env.now, || format!("{name} (backup, {state:?}) does {action:?}"));
        }
        match action {
            BackupAction::Send(message) => self.send(env, Packet::ToPrimary(message)),
            BackupAction::Reply(reply) => self.send(env, Packet::Reply(reply)),
            BackupAction::Prepare(_) => {
                backup.discard();
                self.disk.live = false;
            }
            BackupAction::Build(state) => {
                backup.replica.state = Some(*state);
                self.build(env);
            }
            BackupAction::End => self.end_process(env, false),
            BackupAction::Discard => backup.discard(),
            BackupAction::Disconnect(reason) => self.disconnect(env, &reason),
            BackupAction::Arbitrate { expected, new } => {
                if env.bug == Some(Bug::ReleaseBeforeWin) {
                    self.release_before_win(env, new.term);
                }
                self.ask(env, expected, new);
            }
            BackupAction::Promote(record) => self.promote(env, record),
        }
    }

    fn release_before_win(&mut self, env: &mut Env, term: Term) {
        let name = self.name();
        let Some(backup) = self.backup() else { return };
        let released = backup.session.released().get() as usize;
        for (at, effect) in backup.replica.history.iter().enumerate().skip(released) {
            env.checker
                .releases(env.now, name, term, at as u64 + 1, *effect, &env.arbiter.record);
        }
    }
}
