//! What a node that was started does: it is a backup, unless the record says that the machine is its own and no other node
//! has it.

use lockstep_proto::quantity::Term;
use lockstep_proto::session::{BackupState, Record, Unprotected, Verdict};

use super::arbiter;
use super::bug::Bug;
use super::env::{Env, NodeEvent};
use super::net::Packet;
use super::node::{Asked, BootRecord, NAMES, Node, Role};
use super::plan::MILLI;
use super::primary::{PrimaryDriver, effect};

impl Node {
    /// Nobody has joined this node since it was started, and it asks nothing.
    fn is_fresh(&mut self) -> bool {
        self.asked.is_none()
            && self.conn.is_none()
            && self
                .backup()
                .is_some_and(|backup| backup.session.state() == BackupState::Waiting)
    }

    pub fn boot(&mut self, env: &mut Env) {
        if matches!(self.role, Role::Primary(_)) {
            return;
        }
        let again = env.rng.between((60 * MILLI, 120 * MILLI));
        self.later(env, again, NodeEvent::Boot);
        if self.is_fresh() {
            self.reading = Some(arbiter::ask(env, self.id, self.life, None));
        }
    }

    /// The record was read.
    pub fn read(&mut self, env: &mut Env, id: u64, record: Record) {
        if self.reading != Some(id) || !self.is_fresh() {
            return;
        }
        let first = record.term == Term::NONE && self.id == 0;
        if !first && record.owner != self.name() {
            return;
        }
        if !self.disk.live {
            // It won the term and died before it went live: the machine is where it was before.
            return self.ask_before_boot(env, record.clone(), record.alone(NAMES[1 - self.id]));
        }
        let asks_peer = record.peer.is_some() && env.bug != Some(Bug::BootBesidePeer);
        let Some(backup) = self.backup() else { return };
        backup.boots_with = Some(record);
        if asks_peer {
            let to = 1 - self.id;
            if env.net.passes(self.id, to, env.now) {
                let delay = env.rng.between(env.plan.delay);
                let life = env.lives[to];
                env.node_in(delay, to, life, NodeEvent::Inquiry);
            }
        } else {
            self.boot_now(env);
        }
    }

    pub fn inquiry(&mut self, env: &mut Env) {
        let to = 1 - self.id;
        let has_machine = self.has_machine();
        if env.net.passes(self.id, to, env.now) {
            let delay = env.rng.between(env.plan.delay);
            let life = env.lives[to];
            env.node_in(delay, to, life, NodeEvent::Inquired { has_machine });
        }
    }

    pub fn inquired(&mut self, env: &mut Env, has_machine: bool) {
        if !has_machine && self.is_fresh() {
            self.boot_now(env);
        }
    }

    fn boot_now(&mut self, env: &mut Env) {
        let name = self.name();
        let Some(expected) = self.backup().and_then(|backup| backup.boots_with.take()) else {
            return;
        };
        let new = expected.alone(name);
        self.ask_before_boot(env, expected, new);
    }

    fn ask_before_boot(&mut self, env: &mut Env, expected: Record, new: Record) {
        let beside_peer = expected.peer.is_some();
        self.ask_to_boot(
            env,
            BootRecord {
                expected,
                new,
                beside_peer,
            },
        );
    }

    fn ask_to_boot(&mut self, env: &mut Env, boot: BootRecord) {
        let change = (boot.expected.clone(), boot.new.clone());
        let id = arbiter::ask(env, self.id, self.life, Some(change));
        self.asked = Some(Asked { id, boot: Some(boot) });
    }

    pub fn boot_verdict(&mut self, env: &mut Env, asked: BootRecord, verdict: &Verdict) {
        // Until it is won or lost no other question may be asked: this one may come about at any time.
        if *verdict == Verdict::Unknown {
            return self.ask_to_boot(env, asked);
        }
        let record = asked.new;
        if *verdict != Verdict::Won || record.owner != self.name() {
            env.checker.counts.handed_back += u64::from(*verdict == Verdict::Won);
            return;
        }
        if asked.beside_peer && env.holds[1 - self.id].is_some() {
            env.checker.fail(format!(
                "lost machine: {} boots, and its backup has the machine",
                self.name()
            ));
        }
        let mut history = std::mem::take(&mut self.disk.history);
        env.checker
            .boots(self.name(), record.term, &history, &env.arbiter.record);
        let released = history.len() as u64;
        // The machine starts anew on the disk that it has.
        history.push(effect(history.last(), env.rng.next()));
        let driver = PrimaryDriver::new(self.id, &env.plan, record, history, released, Unprotected::NeedBackup);
        self.go_live(env, driver);
    }

    pub fn packet(&mut self, env: &mut Env, packet: Packet) {
        match self.role {
            Role::Primary(_) => self.primary_packet(env, packet),
            Role::Backup(_) => self.backup_packet(env, packet),
        }
    }

    pub fn gone(&mut self, env: &mut Env) {
        match self.role {
            Role::Primary(_) => self.primary_gone(env),
            Role::Backup(_) => self.backup_gone(env),
        }
    }

    pub fn session_verdict(&mut self, env: &mut Env, verdict: Verdict) {
        match self.role {
            Role::Primary(_) => self.primary_verdict(env, verdict),
            Role::Backup(_) => self.backup_verdict(env, verdict),
        }
    }
}
