//! The arbiter: one record, changed by compare-and-set. Requests and answers get lost, and requests arrive late, even when
//! whoever sent them is dead.

use lockstep_proto::session::{Record, Verdict};

use super::bug::Bug;
use super::env::{Env, Event, NodeEvent};
use super::plan::{ARBITER_TIMEOUT, MILLI, SECOND};

#[derive(Default)]
pub struct Arbiter {
    pub record: Record,
    /// Down until then.
    pub down_until: u64,
    /// Out of a node's reach until then.
    pub cut_until: [u64; 2],
    questions: u64,
}

/// What was sent to the arbiter.
#[derive(Clone, Debug)]
pub struct Ask {
    pub node: usize,
    pub life: u32,
    pub id: u64,
    /// None to read.
    pub change: Option<(Record, Record)>,
}

impl Arbiter {
    fn reaches(&self, node: usize, now: u64) -> bool {
        now >= self.down_until && now >= self.cut_until[node]
    }
}

/// Sends a question; gives its number. The client gives it up after a while.
pub fn ask(env: &mut Env, node: usize, life: u32, change: Option<(Record, Record)>) -> u64 {
    env.arbiter.questions += 1;
    if change.is_some() {
        env.moment();
    }
    let id = env.arbiter.questions;
    env.node_in(ARBITER_TIMEOUT, node, life, NodeEvent::GiveUp(id));
    if env.arbiter.reaches(node, env.now) && !env.rng.chance(env.plan.arbiter_loss) {
        let delay = delay(env);
        let ask = Ask { node, life, id, change };
        env.event_in(delay, Event::Ask(ask));
    }
    id
}

/// How long a request or an answer takes; some take very long.
fn delay(env: &mut Env) -> u64 {
    if env.rng.chance(env.plan.arbiter_slow) {
        env.rng.between((MILLI, 2 * SECOND))
    } else {
        env.rng.between(env.plan.arbiter_delay)
    }
}

/// A question has arrived.
pub fn answer(env: &mut Env, ask: Ask) {
    if env.now < env.arbiter.down_until {
        return;
    }
    let Ask { node, life, id, change } = ask;
    let Some((expected, new)) = change else {
        let record = env.arbiter.record.clone();
        return reply(env, node, life, NodeEvent::Record(id, record));
    };
    let record = &env.arbiter.record;
    let verdict = if *record == new || *record == expected {
        Verdict::Won
    } else {
        Verdict::Lost
    };
    env.trace.line(env.now, || {
        format!("arbiter: {record:?}; node {node} asks {expected:?} -> {new:?}: {verdict:?}")
    });
    if verdict == Verdict::Won {
        if env.bug == Some(Bug::TwoTerms) {
            let delay = env.rng.between((MILLI, 40 * MILLI));
            env.event_in(delay, Event::SetRecord(new));
        } else {
            env.arbiter.record = new;
        }
    }
    reply(env, node, life, NodeEvent::Verdict(id, verdict));
}

fn reply(env: &mut Env, node: usize, life: u32, event: NodeEvent) {
    if env.arbiter.reaches(node, env.now) && !env.rng.chance(env.plan.arbiter_loss) {
        let delay = delay(env);
        env.node_in(delay, node, life, event);
    }
}
