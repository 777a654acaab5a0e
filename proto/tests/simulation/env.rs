//! What all parts of a run share: time, the events to come, chance, the network, the arbiter and the checkers.

use std::collections::BTreeMap;

use lockstep_proto::session::{Record, Verdict};

use super::arbiter::{Arbiter, Ask};
use super::bug::Bug;
use super::checker::Checker;
use super::ending::GuestEnd;
use super::net::{Arrival, Net, Packet};
use super::plan::{MILLI, Plan};
use super::rng::Rng;
use super::trace::Trace;

/// What happens in the world.
#[derive(Debug)]
pub enum Event {
    /// To a node, if it still has this life.
    Node {
        node: usize,
        life: u32,
        event: NodeEvent,
    },
    /// A packet is at its destination's host.
    Arrival(Arrival),
    /// A question is at the arbiter.
    Ask(Ask),
    /// The record changes without being compared: a planted bug.
    SetRecord(Record),
    /// Something goes wrong; and again later, if it is one of those.
    Fault {
        again: bool,
    },
    Crash(usize),
    Restart(usize),
    Resume {
        node: usize,
        pause: u32,
    },
    /// No faults any more.
    Calm,
}

/// What happens to a node.
#[derive(Debug)]
pub enum NodeEvent {
    Timer,
    /// A question's answer.
    Verdict(u64, Verdict),
    /// A reading's answer.
    Record(u64, Record),
    /// No answer came.
    GiveUp(u64),
    /// A primary reached this node.
    Incoming(usize),
    /// This primary reached the backup.
    Reached(usize),
    Packet(usize, Packet),
    /// The connection is seen to be gone.
    Gone(usize),
    Dial,
    /// The machine is to be handed over: it stands still.
    StandStill,
    /// It does, with the log up to here.
    HandOver(u64),
    /// The guest makes no stop, or makes stops again.
    Stall(bool),
    /// It was noticed that it makes none.
    GiveAway,
    Suspend,
    Resume,
    /// An operator wants the machine to end, by force after this time.
    ShutDown {
        patience: u64,
    },
    /// The guest ends.
    GuestEnds(GuestEnd),
    /// The machine is ended.
    EndByForce,
    /// The link hears that the guest has ended.
    GuestEnded {
        resets: bool,
    },
    Produce,
    Release,
    /// The pages of this join are sent.
    PagesSent(u32),
    /// The frozen loser begins anew as a backup.
    StepDown,
    /// The machine of this number is built.
    Built(u32),
    /// It executed one entry.
    Verify(u32),
    /// It executed all that was received.
    Replayed(u32),
    /// A node that was started finds out whether to boot.
    Boot,
    /// The peer wants to know whether there is a machine here.
    Inquiry,
    Inquired {
        has_machine: bool,
    },
}

pub struct Env {
    pub now: u64,
    pub rng: Rng,
    pub plan: Plan,
    pub bug: Option<Bug>,
    pub net: Net,
    pub arbiter: Arbiter,
    pub checker: Checker,
    /// How often each node has died: what is on its way to an earlier life comes to nothing.
    pub lives: [u32; 2],
    /// Up to where each node has the log of a machine that is live or may become so.
    pub holds: [Option<u64>; 2],
    pub trace: Trace,
    events: BTreeMap<(u64, u64), Event>,
    count: u64,
}

impl Env {
    pub fn new(seed: u64, bug: Option<Bug>, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::new(&mut rng);
        Self {
            now: 0,
            rng,
            plan,
            bug,
            net: Net::default(),
            arbiter: Arbiter::default(),
            checker: Checker::default(),
            lives: [0; 2],
            holds: [None; 2],
            trace: Trace::new(trace),
            events: BTreeMap::new(),
            count: 0,
        }
    }

    pub fn event_in(&mut self, delay: u64, event: Event) {
        self.count += 1;
        self.events.insert((self.now + delay, self.count), event);
    }

    pub fn node_in(&mut self, delay: u64, node: usize, life: u32, event: NodeEvent) {
        self.event_in(delay, Event::Node { node, life, event });
    }

    /// A moment that faults like.
    pub fn moment(&mut self) {
        if self.rng.chance(self.plan.at_moments) {
            let delay = self.rng.below(30 * MILLI);
            self.event_in(delay, Event::Fault { again: false });
        }
    }

    /// Goes on to the next event.
    pub fn next(&mut self) -> Option<Event> {
        let ((at, _), event) = self.events.pop_first()?;
        self.now = at;
        Some(event)
    }

    /// How many events there were.
    pub fn count(&self) -> u64 {
        self.count
    }
}
