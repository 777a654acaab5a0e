//! Connections: streams that are ordered and reliable until they are cut, datagrams that are not, and links that fail.

use std::collections::BTreeMap;
use std::rc::Rc;

use lockstep_proto::{Heartbeat, HeartbeatReply, ToBackup, ToPrimary};

use super::env::{Env, Event};
use super::plan::MILLI;
use super::primary::Entry;

/// What travels.
#[derive(Clone, Debug)]
pub enum Packet {
    ToBackup(Box<ToBackup>),
    ToPrimary(ToPrimary),
    Heartbeat(Heartbeat),
    Reply(HeartbeatReply),
    /// An entry of the log, by position.
    Log(u64, Entry),
    /// A machine's memory.
    Pages(Rc<Vec<u64>>),
    /// Not a packet: the planted bug of an acknowledgement before the entry is there.
    Announce(u64),
}

const CONTROL: usize = 0;
const LOG: usize = 1;
const BULK: usize = 2;
const STREAMS: usize = 3;

impl Packet {
    /// The stream that it takes; none for a datagram.
    fn stream(&self) -> Option<usize> {
        match self {
            Packet::ToBackup(_) | Packet::ToPrimary(_) => Some(CONTROL),
            Packet::Log(..) => Some(LOG),
            Packet::Pages(_) => Some(BULK),
            Packet::Heartbeat(_) | Packet::Reply(_) | Packet::Announce(_) => None,
        }
    }
}

/// A packet at its destination's host.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub conn: usize,
    pub to: usize,
    number: u64,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Packet(Packet),
    /// The other side closed.
    Close,
}

#[derive(Default)]
struct Stream {
    sent: u64,
    taken: u64,
    early: BTreeMap<u64, Packet>,
}

#[derive(Default)]
struct Conn {
    /// By node.
    open: [bool; 2],
    /// By receiving node.
    streams: [[Stream; STREAMS]; 2],
}

#[derive(Default)]
pub struct Net {
    conns: Vec<Conn>,
    /// No packet from the one to the other until then.
    pub blocked_until: [[u64; 2]; 2],
}

/// What an arrival comes to.
pub enum Delivery {
    Packets(Vec<Packet>),
    Gone,
}

impl Net {
    pub fn passes(&self, from: usize, to: usize, now: u64) -> bool {
        now >= self.blocked_until[from][to]
    }

    pub fn block(&mut self, from: usize, to: usize, until: u64) {
        let at = &mut self.blocked_until[from][to];
        *at = until.max(*at);
    }

    pub fn connect(&mut self) -> usize {
        self.conns.push(Conn {
            open: [true; 2],
            ..Conn::default()
        });
        self.conns.len() - 1
    }

    pub fn is_open(&self, conn: usize, node: usize) -> bool {
        self.conns[conn].open[node]
    }

    /// `node` has no part in the connection any more, and the other side hears nothing of it.
    pub fn drop_side(&mut self, conn: usize, node: usize) {
        self.conns[conn].open[node] = false;
    }
}

pub fn send(env: &mut Env, conn: usize, from: usize, packet: Packet) {
    let to = 1 - from;
    if !env.net.is_open(conn, from) {
        return;
    }
    let mut delay = env.rng.between(env.plan.delay);
    let mut number = 0;
    if let Some(stream) = packet.stream() {
        let stream = &mut env.net.conns[conn].streams[to][stream];
        number = stream.sent;
        stream.sent += 1;
        while env.rng.chance(env.plan.loss) {
            delay += env.rng.between((MILLI, 30 * MILLI));
        }
    } else {
        if env.rng.chance(env.plan.loss) {
            return;
        }
        if env.rng.chance(env.plan.duplicates) {
            let late = env.rng.between((0, 100 * MILLI));
            let what = What::Packet(packet.clone());
            let copy = Arrival { conn, to, number, what };
            env.event_in(delay + late, Event::Arrival(copy));
        }
    }
    let what = What::Packet(packet);
    env.event_in(delay, Event::Arrival(Arrival { conn, to, number, what }));
}

/// Closes `from`'s side. What was sent before may not arrive any more; neither may the close.
pub fn close(env: &mut Env, conn: usize, from: usize) {
    if !env.net.is_open(conn, from) {
        return;
    }
    env.net.drop_side(conn, from);
    let delay = env.rng.between(env.plan.delay);
    let arrival = Arrival {
        conn,
        to: 1 - from,
        number: 0,
        what: What::Close,
    };
    if !env.rng.chance(env.plan.loss) {
        env.event_in(delay, Event::Arrival(arrival));
    }
}

/// `arrival` is there, or would be. None where nothing comes of it now.
pub fn arrive(env: &mut Env, arrival: Arrival) -> Option<Delivery> {
    let Arrival {
        conn,
        to,
        number,
        ref what,
    } = arrival;
    if !env.net.is_open(conn, to) {
        return None;
    }
    let passes = env.net.passes(1 - to, to, env.now);
    let What::Packet(packet) = what else {
        return passes.then_some(Delivery::Gone);
    };
    let Some(stream) = packet.stream() else {
        return passes.then(|| Delivery::Packets(vec![packet.clone()]));
    };
    if !passes {
        // It is sent again, for as long as its sender has the connection.
        if env.net.is_open(conn, 1 - to) {
            let again = env.rng.between((5 * MILLI, 40 * MILLI));
            env.event_in(again, Event::Arrival(arrival));
        }
        return None;
    }
    let stream = &mut env.net.conns[conn].streams[to][stream];
    stream.early.insert(number, packet.clone());
    let mut ready = Vec::new();
    while let Some(packet) = stream.early.remove(&stream.taken) {
        stream.taken += 1;
        ready.push(packet);
    }
    Some(Delivery::Packets(ready))
}
