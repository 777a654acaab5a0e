//! A node: its role, its life and death, and what both roles share.

use std::collections::VecDeque;

use lockstep_proto::quantity::SessionTime;
use lockstep_proto::session::{BackupState, Record, Verdict};

use super::arbiter;
use super::backup::BackupDriver;
use super::clock::Clock;
use super::env::{Env, NodeEvent};
use super::net;
use super::plan::{MICRO, MILLI};
use super::primary::PrimaryDriver;

pub const NAMES: [&str; 2] = ["a", "b"];

/// What outlives a node's process.
pub struct Disk {
    pub history: Vec<u64>,
    /// It is the disk of a machine that was live; a replica's is not to be booted.
    pub live: bool,
}

pub enum Role {
    Primary(Box<PrimaryDriver>),
    Backup(Box<BackupDriver>),
}

/// What a node asks for before it boots.
pub struct BootRecord {
    pub expected: Record,
    pub new: Record,
    /// The record that was there names a peer, which has the machine unless it says otherwise.
    pub beside_peer: bool,
}

/// The question to the arbiter that is on its way.
pub struct Asked {
    pub id: u64,
    /// Before a boot, and to have this record; else it is the session's.
    pub boot: Option<BootRecord>,
}

pub struct Node {
    pub id: usize,
    pub life: u32,
    pub up: bool,
    pub paused: bool,
    /// Counts pauses and ends of pauses.
    pub pause: u32,
    waiting: VecDeque<NodeEvent>,
    pub clock: Clock,
    pub role: Role,
    pub conn: Option<usize>,
    pub asked: Option<Asked>,
    /// The last reading of the record.
    pub reading: Option<u64>,
    pub disk: Disk,
    /// When a timer is set to go off, by the world's time.
    timer: Option<u64>,
}

impl Node {
    pub fn new(id: usize, env: &Env) -> Self {
        Self {
            id,
            life: 0,
            up: false,
            paused: false,
            pause: 0,
            waiting: VecDeque::new(),
            clock: Clock::new(env.plan.clock_start[id], env.plan.drift[id]),
            role: Role::Backup(Box::new(BackupDriver::new(id))),
            conn: None,
            asked: None,
            reading: None,
            // The machine was installed on the first node.
            disk: Disk {
                history: Vec::new(),
                live: id == 0,
            },
            timer: None,
        }
    }

    pub fn name(&self) -> &'static str {
        NAMES[self.id]
    }

    pub fn local(&self, env: &Env) -> SessionTime {
        self.clock.local(env.now)
    }

    pub fn later(&self, env: &mut Env, delay: u64, event: NodeEvent) {
        env.node_in(delay, self.id, self.life, event);
    }

    pub fn start(&mut self, env: &mut Env) {
        if self.up {
            return;
        }
        env.trace.line(env.now, || format!("{} starts", self.name()));
        self.up = true;
        self.later(env, MILLI, NodeEvent::Boot);
    }

    pub fn crash(&mut self, env: &mut Env) {
        if !self.up {
            return;
        }
        env.trace.line(env.now, || format!("{} crashes", self.name()));
        if let Some(conn) = self.conn.take() {
            env.net.drop_side(conn, self.id);
            // Its host may answer the other side's packets with a reset, once it is there again.
            if env.rng.chance(300) {
                let delay = env.rng.between((MILLI, 300 * MILLI));
                let life = env.lives[1 - self.id];
                env.node_in(delay, 1 - self.id, life, NodeEvent::Gone(conn));
            }
        }
        self.die(env);
    }

    /// The process is gone, and with it all but its disk.
    pub fn die(&mut self, env: &mut Env) {
        self.keep_disk();
        self.role = Role::Backup(Box::new(BackupDriver::new(self.id)));
        self.up = false;
        env.holds[self.id] = None;
        self.life += 1;
        env.lives[self.id] = self.life;
        self.paused = false;
        self.pause += 1;
        self.waiting.clear();
        self.asked = None;
        self.reading = None;
        self.timer = None;
    }

    /// A live machine's disk is as the machine is.
    pub fn keep_disk(&mut self) {
        if let Role::Primary(primary) = &mut self.role {
            self.disk = Disk {
                history: std::mem::take(&mut primary.history),
                live: true,
            };
        }
    }

    /// Whether a machine is here that may become, or is, live.
    pub fn has_machine(&self) -> bool {
        self.holds().is_some()
    }

    /// Up to where the log of such a machine is here.
    fn holds(&self) -> Option<u64> {
        match &self.role {
            Role::Primary(_) => Some(u64::MAX),
            Role::Backup(backup) => match backup.session.state() {
                BackupState::Waiting | BackupState::Connected | BackupState::Syncing | BackupState::Joined => None,
                BackupState::Protected | BackupState::Claiming | BackupState::Frozen | BackupState::Live => {
                    Some(backup.session.ack().received)
                }
            },
        }
    }

    pub fn stop(&mut self) -> Option<u32> {
        if !self.up || self.paused {
            return None;
        }
        self.paused = true;
        self.pause += 1;
        Some(self.pause)
    }

    /// All that came in the meantime is handled at once: timers first, last, or where they came.
    pub fn resume(&mut self, env: &mut Env) {
        if !self.paused {
            return;
        }
        env.trace.line(env.now, || format!("{} goes on", self.name()));
        self.paused = false;
        let mut waiting: Vec<NodeEvent> = std::mem::take(&mut self.waiting).into();
        let is_own = |event: &NodeEvent| matches!(event, NodeEvent::Timer);
        match env.rng.below(3) {
            0 => waiting.sort_by_key(|event| !is_own(event)),
            1 => waiting.sort_by_key(is_own),
            _ => {}
        }
        let life = self.life;
        for event in waiting {
            // A process that ends with one of them takes no other.
            if self.life == life {
                self.handle(env, event);
            }
        }
    }

    pub fn handle(&mut self, env: &mut Env, event: NodeEvent) {
        if self.paused {
            self.waiting.push_back(event);
            return;
        }
        match event {
            NodeEvent::Verdict(id, verdict) => self.verdict(env, id, verdict),
            NodeEvent::GiveUp(id) => self.verdict(env, id, Verdict::Unknown),
            NodeEvent::Record(id, record) => self.read(env, id, record),
            NodeEvent::Boot => self.boot(env),
            NodeEvent::Inquiry => self.inquiry(env),
            NodeEvent::Inquired { has_machine } => self.inquired(env, has_machine),
            NodeEvent::Incoming(conn) => self.incoming(env, conn),
            NodeEvent::Reached(conn) => self.reached(env, conn),
            NodeEvent::Packet(conn, packet) if self.conn == Some(conn) => self.packet(env, packet),
            NodeEvent::Gone(conn) if self.conn == Some(conn) => {
                env.net.drop_side(conn, self.id);
                self.conn = None;
                env.trace
                    .line(env.now, || format!("{} sees the connection gone", self.name()));
                self.gone(env);
            }
            // Of a connection that is over.
            NodeEvent::Packet(..) | NodeEvent::Gone(_) => {}
            event => self.own(env, &event),
        }
        self.settle(env);
    }

    fn own(&mut self, env: &mut Env, event: &NodeEvent) {
        if matches!(event, NodeEvent::Timer) {
            self.timer = None;
        }
        match self.role {
            Role::Primary(_) => self.primary_event(env, event),
            Role::Backup(_) => self.backup_event(env, event),
        }
    }

    fn incoming(&mut self, env: &mut Env, conn: usize) {
        let is_backup = matches!(self.role, Role::Backup(_));
        if !is_backup || self.asked.as_ref().is_some_and(|asked| asked.boot.is_some()) {
            return net::close(env, conn, self.id);
        }
        if let Some(old) = self.conn {
            if env.rng.chance(500) {
                return net::close(env, conn, self.id);
            }
            env.net.drop_side(old, self.id);
            self.conn = None;
            self.gone(env);
            self.settle(env);
        }
        self.conn = Some(conn);
        self.accept(env, conn);
    }

    /// The answer to the question that is open, or to one that was given up.
    fn verdict(&mut self, env: &mut Env, id: u64, verdict: Verdict) {
        let late = env.bug == Some(super::bug::Bug::LateVerdicts) && verdict != Verdict::Unknown;
        let Some(asked) = self.asked.take_if(|asked| asked.id == id || late) else {
            return;
        };
        env.trace.line(env.now, || {
            format!("{} hears of its question: {verdict:?}", self.name())
        });
        match asked.boot {
            Some(boot) => self.boot_verdict(env, boot, &verdict),
            None => self.session_verdict(env, verdict),
        }
    }

    pub fn ask(&mut self, env: &mut Env, expected: Record, new: Record) {
        if self.asked.is_some() {
            env.checker
                .fail(format!("{} asks the arbiter twice at a time", self.name()));
        }
        let id = arbiter::ask(env, self.id, self.life, Some((expected, new)));
        self.asked = Some(Asked { id, boot: None });
    }

    pub fn send(&mut self, env: &mut Env, packet: net::Packet) {
        if let Some(conn) = self.conn {
            net::send(env, conn, self.id, packet);
        }
    }

    pub fn disconnect(&mut self, env: &mut Env, reason: &str) {
        env.trace
            .line(env.now, || format!("{} disconnects: {reason}", self.name()));
        if let Some(conn) = self.conn.take() {
            net::close(env, conn, self.id);
        }
    }

    /// Does what the session wants done, and sets the timer for what it wants to be told.
    fn settle(&mut self, env: &mut Env) {
        let wake = match self.role {
            Role::Primary(_) => self.settle_primary(env),
            Role::Backup(_) => self.settle_backup(env),
        };
        env.holds[self.id] = self.holds();
        if let Some(wake) = wake {
            let late = env.rng.below(MILLI / 2);
            let delay = self.clock.until(env.now, wake).max(50 * MICRO) + late;
            if self.timer.is_none_or(|timer| timer > env.now + delay) {
                self.timer = Some(env.now + delay);
                self.later(env, delay, NodeEvent::Timer);
            }
        }
    }
}
