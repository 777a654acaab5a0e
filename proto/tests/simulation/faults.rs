//! What goes wrong, and for how long.

use super::ending::GuestEnd;
use super::env::{Env, Event, NodeEvent};
use super::node::Node;
use super::plan::{Fault, MILLI};

pub fn inject(env: &mut Env, nodes: &mut [Node; 2], again: bool) {
    if env.plan.faults.is_empty() {
        return;
    }
    if again {
        let gap = env.rng.between(env.plan.fault_gap);
        env.event_in(gap, Event::Fault { again });
    }
    let faults = std::mem::take(&mut env.plan.faults);
    let fault = env.rng.pick(&faults);
    env.plan.faults = faults;
    let node = env.rng.below(2) as usize;
    let length = env.rng.between(env.plan.fault_length);
    let until = env.now + length;
    env.trace.line(env.now, || {
        format!("FAULT {fault:?} of node {node} for {} ms", length / MILLI)
    });
    match fault {
        Fault::Crash => {
            nodes[node].crash(env);
            env.event_in(length, Event::Restart(node));
        }
        Fault::PowerLoss => {
            for node in 0..2 {
                let delay = env.rng.below(150 * MILLI);
                let off = env.rng.between((200 * MILLI, 800 * MILLI));
                env.event_in(delay, Event::Crash(node));
                env.event_in(off, Event::Restart(node));
            }
        }
        Fault::Pause => {
            if let Some(pause) = nodes[node].stop() {
                env.event_in(length, Event::Resume { node, pause });
            }
        }
        Fault::Partition => {
            env.net.block(0, 1, until);
            env.net.block(1, 0, until);
        }
        Fault::HalfPartition => env.net.block(node, 1 - node, until),
        Fault::NodeLosesArbiter => env.arbiter.cut_until[node] = until,
        Fault::ArbiterDown => env.arbiter.down_until = until,
        Fault::Isolation => {
            env.net.block(0, 1, until);
            env.net.block(1, 0, until);
            env.arbiter.cut_until[node] = until;
        }
        Fault::Stall => {
            for node in nodes.iter() {
                node.later(env, 0, NodeEvent::Stall(true));
                // It may move again right before, or after.
                let noticed = env.rng.below(2 * length);
                node.later(env, noticed, NodeEvent::GiveAway);
                node.later(env, length, NodeEvent::Stall(false));
            }
        }
        Fault::Switchover => {
            for node in nodes.iter() {
                node.later(env, 0, NodeEvent::StandStill);
            }
        }
        Fault::Suspension => {
            for node in nodes.iter() {
                node.later(env, 0, NodeEvent::Suspend);
                node.later(env, length, NodeEvent::Resume);
            }
        }
        Fault::Reset => {
            // An operator may want it no more.
            let soon = env.rng.chance(300).then(|| env.rng.below(300 * MILLI));
            for node in nodes.iter() {
                node.later(env, 0, NodeEvent::GuestEnds(GuestEnd::Reset));
                if let Some(soon) = soon {
                    node.later(env, soon, NodeEvent::ShutDown { patience: 0 });
                }
            }
        }
        Fault::PowerOff => {
            for node in nodes.iter() {
                node.later(env, 0, NodeEvent::GuestEnds(GuestEnd::PowerOff));
            }
        }
        Fault::Shutdown => {
            let patience = if env.rng.chance(300) { 0 } else { length / 4 };
            for node in nodes.iter() {
                node.later(env, 0, NodeEvent::ShutDown { patience });
            }
        }
        Fault::Cut => {
            for node in nodes.iter() {
                if let Some(conn) = node.conn
                    && env.rng.chance(700)
                {
                    let delay = env.rng.below(300 * MILLI);
                    env.node_in(delay, node.id, node.life, NodeEvent::Gone(conn));
                }
            }
        }
    }
}

/// Nothing goes wrong any more.
pub fn end(env: &mut Env, nodes: &mut [Node; 2]) {
    env.trace.line(env.now, || "CALM".into());
    env.plan.calm();
    env.net.blocked_until = [[0; 2]; 2];
    env.arbiter.cut_until = [0; 2];
    env.arbiter.down_until = 0;
    for node in nodes {
        node.start(env);
        node.resume(env);
        node.later(env, 0, NodeEvent::Resume);
        node.later(env, 0, NodeEvent::Stall(false));
    }
}
