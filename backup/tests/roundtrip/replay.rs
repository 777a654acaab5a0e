//! The replay of a log, with a disk of its own.

use std::cell::RefCell;
use std::rc::Rc;

use lockstep_proto::Turn;
use lockstep_proto::quantity::{BatchNumber, HostTime};
use lockstep_replay::patience::Patience;
use lockstep_replay::{ReplayError, Replayer};
use lockstep_vmm::devices::Effect;
use lockstep_vmm::machine::{Flow, Oracle, Seen, Slice, Stop, Taken};
use lockstep_vmm::scripted::{Script, ScriptedMachine, config};
use lockstep_vmm::sys::kick::Alarm;

use super::disk::Disk;
use super::log::{Entry, Written};
use super::rng::Rng;

/// Nobody need kick a script that goes astray.
struct Silent;

impl Alarm for Silent {
    fn arm(&self, _: HostTime) {}

    fn arm_in(&self, _: u64) {}
}

/// The replayer, whose disk does at once what it is asked.
struct Served {
    replayer: Replayer,
    disk: Disk,
}

impl Served {
    fn serve(&mut self) {
        self.disk.listen();
        while !self.disk.waiting.is_empty() {
            self.disk.serve(false);
        }
    }
}

impl Oracle for Served {
    type Error = ReplayError;

    fn slice(&mut self, machine: &dyn Seen) -> Result<Slice, ReplayError> {
        self.replayer.slice(machine)
    }

    fn is_due(&mut self, machine: &dyn Seen) -> Result<bool, ReplayError> {
        self.replayer.is_due(machine)
    }

    fn forced(&mut self, machine: &mut dyn Seen) -> Result<(), ReplayError> {
        self.replayer.forced(machine)
    }

    fn turn(&mut self, machine: &dyn Seen, stop: &Stop) -> Result<Turn, ReplayError> {
        self.replayer.turn(machine, stop)
    }

    fn disk_data(&mut self, disk: u32, request: u64) -> Result<Option<Vec<u8>>, ReplayError> {
        self.serve();
        self.replayer.disk_data(disk, request)
    }

    fn taken(&mut self, machine: &dyn Seen, stop: &Stop, turn: Turn, taken: Taken) -> Result<Flow, ReplayError> {
        self.replayer.taken(machine, stop, turn, taken)
    }
}

/// What a replay came to.
pub struct Replayed {
    pub machine: ScriptedMachine,
    /// What left, with the number of its batch, from 0.
    pub effects: Vec<(BatchNumber, Effect)>,
    pub batches: u64,
    pub turns: u64,
    pub epochs: u64,
    pub deltas: u64,
    pub final_memory: bool,
}

/// Replays the log; kicks come where another seed has them.
pub fn replay(entries: Vec<Entry>, script: Script, mut rng: Rng) -> Result<Replayed, String> {
    let often = rng.pick(&[0, 200, 20_000]);
    let kicks = Box::new(move || often > 0 && rng.below(1_000_000) < often);
    let config = config();
    let mut machine = ScriptedMachine::new(config.clone(), script, kicks).map_err(|error| error.to_string())?;
    let (disk, disks) = Disk::new();
    let source = Written::new(entries, &config, machine.chain().to_bytes());
    let mut replayer = Replayer::new(Box::new(source), &machine, disks, Patience::new(Silent));
    let effects = Rc::new(RefCell::new(Vec::new()));
    let left = effects.clone();
    replayer.on_effect(move |batch, effect| left.borrow_mut().push((batch, effect)));
    let mut served = Served { replayer, disk };
    let mut run = || {
        while machine.step(&mut served)? == Flow::Continue {}
        served.replayer.finish(&machine)
    };
    if let Err(error) = run() {
        return Err(served.replayer.explain(&machine, error).to_string());
    }
    let progress = served.replayer.progress();
    Ok(Replayed {
        machine,
        effects: effects.take(),
        batches: progress.batches,
        turns: progress.turns,
        epochs: progress.epochs,
        deltas: progress.deltas,
        final_memory: progress.final_memory,
    })
}
