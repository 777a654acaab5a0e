//! One run: a machine is recorded on a simulated host, its log replayed, and all that can be compared is.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lockstep_node::host::tap::TapKeeper;
use lockstep_node::status::Status;
use lockstep_primary::link::LinkPort;
use lockstep_primary::link::channels::{LogItem, log_channel};
use lockstep_primary::recorder::{Keeper, Outlet, Recorder, RecorderOptions, World};
use lockstep_proto::quantity::{BatchNumber, LogPosition};
use lockstep_vmm::devices::Effect;
use lockstep_vmm::machine::{Chain, Flow, Seen};
use lockstep_vmm::scripted::{ScriptedMachine, busy, config};

use super::bug::Bug;
use super::counts::Counts;
use super::disk::Disk;
use super::host::{Host, Parts};
use super::log::{Entry, Journal, spoil};
use super::plan::Plan;
use super::planted::Planted;
use super::replay::replay;
use super::rng::Rng;

/// More steps than any run has.
const MOST_STEPS: u64 = 1_000_000;

pub struct Outcome {
    pub violation: Option<String>,
    pub counts: Counts,
    /// At the recorder's end.
    pub chain: Chain,
}

/// What a recording came to.
struct Recorded {
    machine: ScriptedMachine,
    /// To the backup, and to the recording.
    linked: Vec<Entry>,
    kept: Vec<Entry>,
    /// What went to the gate, with the position that makes it safe.
    effects: Vec<(LogPosition, Effect)>,
    counts: Counts,
}

pub fn run(seed: u64, bug: Option<Bug>) -> Outcome {
    let mut rng = Rng::new(seed);
    let plan = Rc::new(Plan::new(&mut rng));
    let mut kicks = Rng::new(rng.next());
    let spares = rng.below(20);
    let recorded = match record(seed, rng, &plan, bug, spares) {
        Ok(recorded) => recorded,
        Err(error) => {
            return Outcome {
                violation: Some(format!("recording: {error}")),
                counts: Counts::default(),
                chain: Chain::default(),
            };
        }
    };
    let mut counts = recorded.counts.clone();
    let chain = recorded.machine.chain();
    let mut violation = (plan.way.is_kept() && plan.way.is_linked())
        .then(|| same_log(&recorded))
        .flatten();
    let Recorded {
        machine,
        linked,
        kept,
        effects,
        ..
    } = recorded;
    for mut entries in [linked, kept] {
        if entries.is_empty() || violation.is_some() {
            continue;
        }
        if let Some(bug) = bug {
            spoil(&mut entries, bug, spares);
        }
        let is_ended = matches!(entries.last(), Some(Entry::End(_)));
        let batches = entries.iter().filter(|entry| matches!(entry, Entry::Batch(_))).count() as u64;
        counts.batches += batches;
        violation = match replay(entries, busy(seed), Rng::new(kicks.next())) {
            Err(error) => Some(format!("replay: {error}")),
            Ok(there) => different(&machine, &there.machine)
                .map(|what| format!("replay: at the end {what} differs"))
                .or_else(|| (there.batches != batches).then(|| "not all batches were compared".into()))
                .or_else(|| (is_ended && !there.final_memory).then(|| "memory was not compared".into()))
                .or_else(|| (there.turns == 0).then(|| "no turn was replayed".into()))
                .or_else(|| (there.epochs != counts.epochs).then(|| "not all epochs were compared".into()))
                .or_else(|| (there.deltas != counts.forced).then(|| "not all deltas were carried".into()))
                .or_else(|| unsafe_effect(&effects, &there.effects)),
        };
    }
    counts.effects = effects.len() as u64;
    Outcome {
        violation,
        counts,
        chain,
    }
}

fn record(seed: u64, rng: Rng, plan: &Rc<Plan>, bug: Option<Bug>, spares: u64) -> Result<Recorded, String> {
    let (disk, disks) = Disk::new();
    let (mut port, mut ends) = LinkPort::new();
    let (log, mut items) = log_channel();
    if plan.way.is_linked() {
        port.begin_log(Some(log));
    }
    let Parts { host, inbox, alarm } = Host::start(rng, plan.clone(), disk, ends.state.clone());
    let kicked = host.clone();
    let mut machine = ScriptedMachine::new(config(), busy(seed), Box::new(move || kicked.kicks()))
        .map_err(|error| error.to_string())?;
    let world = World {
        inbox,
        disks,
        images: Arc::new(Vec::new()),
        taps: Vec::new(),
        keeper: TapKeeper::start(&[]).map_err(|error| error.to_string())?,
        outlet: Outlet::Gated(Box::new(port)),
        kernel: Box::new(host),
    };
    let journal = Journal::default();
    let keeper = plan.way.is_kept().then(|| Box::new(journal.clone()) as Box<dyn Keeper>);
    let status = Status::default();
    let options = RecorderOptions {
        policy: plan.policy,
        log: keeper,
        host_class: "simulated".into(),
        status: status.clone(),
    };
    let recorder = Recorder::new(&machine, world, alarm, options);
    let linked = Journal::default();
    let effects = RefCell::new(Vec::new());
    let mut released = 0;
    let mut drain = || {
        while let Ok(item) = items.try_recv() {
            linked.push(match item {
                LogItem::Batch(_, batch) => Entry::Batch(batch),
                LogItem::Pages(frames, pages) => Entry::Pages(frames, pages),
            });
        }
        while let Ok((position, held)) = ends.effects.try_recv() {
            released += 1;
            let is_early = bug == Some(Bug::EffectEarly) && released == spares + 1;
            let position = LogPosition::new(position.get() - u64::from(is_early));
            let held = held.effects.into_iter();
            effects.borrow_mut().extend(held.map(|effect| (position, effect)));
        }
    };
    let mut planted = Planted::new(recorder, bug, spares, &mut drain);
    for step in 0.. {
        let flow = machine.step(&mut planted).map_err(|error| error.to_string())?;
        if planted.recorder.is_done() || (flow == Flow::End && !machine.is_halted()) {
            break;
        }
        assert!(step < MOST_STEPS, "it does not end");
    }
    let Planted {
        recorder, mut counts, ..
    } = planted;
    recorder.finish(&machine, None).map_err(|error| error.to_string())?;
    drain();
    counts.held_back = status.gauges().throttled_ns.load(Ordering::Relaxed).min(1);
    Ok(Recorded {
        machine,
        linked: linked.take(),
        kept: journal.take(),
        effects: effects.take(),
        counts,
    })
}

/// What recording and backup get is the same.
fn same_log(recorded: &Recorded) -> Option<String> {
    let kept = recorded.kept.iter().filter(|entry| !matches!(entry, Entry::End(_)));
    let same = kept.eq(recorded.linked.iter());
    (!same).then(|| "recording and backup have another log".into())
}

fn different(here: &ScriptedMachine, there: &ScriptedMachine) -> Option<&'static str> {
    [
        (here.stop() != there.stop(), "the stop"),
        (here.now() != there.now(), "guest time"),
        (here.chain() != there.chain(), "the chain"),
        (here.regs() != there.regs(), "a register"),
        (here.full_memory_digest() != there.full_memory_digest(), "memory"),
        (here.devices().save() != there.devices().save(), "a device"),
        (here.is_halted() != there.is_halted(), "whether it is halted"),
    ]
    .into_iter()
    .find_map(|(differs, what)| differs.then_some(what))
}

/// What left the recorder is what leaves a replica, and was let go at a position that has its batch.
fn unsafe_effect(here: &[(LogPosition, Effect)], there: &[(BatchNumber, Effect)]) -> Option<String> {
    if here.len() != there.len() {
        return Some(format!(
            "{} effects were recorded and {} replayed",
            here.len(),
            there.len()
        ));
    }
    let mut both = here.iter().zip(there);
    both.find_map(|((position, effect), (batch, again))| {
        if effect != again {
            return Some(format!("another effect: {effect:?} and {again:?}"));
        }
        (*position < LogPosition::START.plus(batch.count()))
            .then(|| format!("an effect of batch {batch} may leave at position {position}"))
    })
}
