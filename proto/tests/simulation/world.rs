//! One run: faults for a while, then calm, in which the pair must come to be protected and stay so.

use lockstep_proto::session::{BackupState, Ending, PrimaryState};

use super::arbiter;
use super::bug::Bug;
use super::checker::Counts;
use super::env::{Env, Event, NodeEvent};
use super::faults;
use super::net::{self, Delivery};
use super::node::{Node, Role};
use super::plan::{MILLI, SECOND};

/// After the end of all faults, until the last connection that was cut is seen to be.
const AFTERMATH: u64 = 400 * MILLI;
/// From then until the pair must be protected.
const RECOVERY: u64 = 5 * SECOND;
/// How long it must stay so.
const STEADY: u64 = SECOND;
/// Far more than any run has; a session that never sleeps is found by it.
const MAX_EVENTS: u64 = 2_000_000;

pub struct Outcome {
    pub violation: Option<String>,
    pub counts: Counts,
    pub trace: Vec<String>,
}

struct World {
    env: Env,
    nodes: [Node; 2],
}

pub fn run(seed: u64, bug: Option<Bug>, trace: bool) -> Outcome {
    let mut env = Env::new(seed, bug, trace);
    let mut nodes = [Node::new(0, &env), Node::new(1, &env)];
    for node in &mut nodes {
        node.start(&mut env);
    }
    let first = env.rng.between((0, 500 * MILLI));
    env.event_in(first, Event::Fault { again: true });
    let calm = env.plan.faults_until;
    env.event_in(calm, Event::Calm);
    let mut world = World { env, nodes };
    world.run(calm);
    let World { env, .. } = world;
    Outcome {
        violation: env.checker.violation,
        counts: env.checker.counts,
        trace: env.trace.lines,
    }
}

impl World {
    fn run(&mut self, calm: u64) {
        self.run_until(calm + AFTERMATH);
        let mut protected_at = None;
        while protected_at.is_none() && self.env.now < calm + RECOVERY && !self.failed() {
            self.run_until(self.env.now + 20 * MILLI);
            protected_at = self.is_protected().then_some(self.env.now);
        }
        if self.failed() {
            return;
        }
        if protected_at.is_some() {
            self.stays_protected();
        } else {
            let states = self.states();
            self.env
                .checker
                .fail(format!("not protected after the faults: {states}"));
        }
    }

    fn stays_protected(&mut self) {
        let until = self.env.now + STEADY;
        while self.env.now < until && !self.failed() {
            self.run_until(self.env.now + 20 * MILLI);
            if !self.failed() && !self.is_protected() {
                let states = self.states();
                self.env.checker.fail(format!("suspected without a reason: {states}"));
            }
        }
        if self.env.checker.last_release + 300 * MILLI < self.env.now {
            self.env.checker.fail("nothing leaves any more".into());
        }
    }

    fn failed(&self) -> bool {
        self.env.checker.violation.is_some()
    }

    fn run_until(&mut self, until: u64) {
        while self.env.now < until && !self.failed() {
            let Some(event) = self.env.next() else { return };
            self.event(event);
            if self.env.count() > MAX_EVENTS {
                self.env.checker.fail("a session that never sleeps".into());
            }
        }
    }

    fn event(&mut self, event: Event) {
        let Self { env, nodes } = self;
        match event {
            Event::Node { node, life, event } => {
                if nodes[node].up && nodes[node].life == life {
                    nodes[node].handle(env, event);
                }
            }
            Event::Arrival(arrival) => {
                let (conn, to) = (arrival.conn, arrival.to);
                let events = match net::arrive(env, arrival) {
                    Some(Delivery::Packets(packets)) => packets
                        .into_iter()
                        .map(|packet| NodeEvent::Packet(conn, packet))
                        .collect(),
                    Some(Delivery::Gone) => vec![NodeEvent::Gone(conn)],
                    None => Vec::new(),
                };
                for event in events {
                    if nodes[to].up {
                        nodes[to].handle(env, event);
                    }
                }
            }
            Event::Ask(ask) => arbiter::answer(env, ask),
            Event::SetRecord(record) => env.arbiter.record = record,
            Event::Fault { again } => faults::inject(env, nodes, again),
            Event::Crash(node) => {
                if !env.plan.faults.is_empty() {
                    nodes[node].crash(env);
                }
            }
            Event::Restart(node) => nodes[node].start(env),
            Event::Resume { node, pause } => {
                if nodes[node].pause == pause {
                    nodes[node].resume(env);
                }
            }
            Event::Calm => faults::end(env, nodes),
        }
    }

    fn is_protected(&self) -> bool {
        let is = |primary: &Node, backup: &Node| match (&primary.role, &backup.role) {
            (Role::Primary(primary), Role::Backup(backup)) => {
                let is_ending = primary.end.ending != Ending::Running;
                primary.session.state() == PrimaryState::Protected
                    && backup.session.state() == BackupState::Protected
                    && !is_ending
            }
            _ => false,
        };
        let [a, b] = &self.nodes;
        is(a, b) || is(b, a)
    }

    fn states(&self) -> String {
        let state = |node: &Node| match &node.role {
            Role::Primary(primary) => format!("{} is primary, {:?}", node.name(), primary.session.state()),
            Role::Backup(backup) => format!("{} is backup, {:?}", node.name(), backup.session.state()),
        };
        let record = &self.env.arbiter.record;
        format!("{}; {}; {record:?}", state(&self.nodes[0]), state(&self.nodes[1]))
    }
}
