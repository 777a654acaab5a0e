//! The recorder: an oracle that asks a script and a generator, and keeps every turn.

use lockstep_proto::{Epoch, MachineConfig, Turn};
use lockstep_vmm::machine::{Delta, Flow, Machine, Oracle, Seen, Slice, Stop, StopKind, Taken};

use super::guest::{self, MicroGuest};
use super::harness::*;
use super::kicks::Kicker;
use super::replay::Recording;
use super::world::World;

/// Adds to, or replaces, the turn that the recorder has made up for a stop.
pub type Script = Box<dyn FnMut(&mut World, &dyn Seen, &Stop, &mut Turn)>;

/// Whether something is due.
pub type Due = Box<dyn FnMut(&dyn Seen) -> bool>;

/// Called with the number of steps so far.
pub type Between = Box<dyn FnMut(&mut Machine, usize)>;

/// What to record, and how.
pub struct Micro {
    pub guest: MicroGuest,
    pub config: MachineConfig,
    pub images: Vec<Vec<u8>>,
    pub script: Script,
    /// At a kick: is something due?
    pub due: Due,
    /// Asks that too as soon as an interrupt that is requested can enter.
    pub windows: bool,
    /// Between steps.
    pub between: Between,
    /// Comes between two turns of a halted guest too.
    pub pauses: bool,
    /// An epoch ends at every natural stop whose number this divides; none for `u64::MAX`.
    pub epochs: u64,
    /// RDTSC in ring 3 is answered by the machine.
    pub guarded: bool,
}

impl Micro {
    pub fn new(guest: MicroGuest) -> Self {
        Self {
            guest,
            config: config(),
            images: Vec::new(),
            script: Box::new(|_, _, _, _| {}),
            due: Box::new(|_| false),
            windows: false,
            between: Box::new(|_, _| {}),
            pauses: false,
            epochs: 1,
            guarded: false,
        }
    }

    /// Lets the machine answer RDTSC in ring 3.
    pub fn guarded(mut self) -> Self {
        self.guarded = true;
        self
    }

    pub fn script(mut self, script: impl FnMut(&mut World, &dyn Seen, &Stop, &mut Turn) + 'static) -> Self {
        self.script = Box::new(script);
        self
    }

    /// Stops by force at every kick where this holds.
    pub fn forced(mut self, due: impl FnMut(&dyn Seen) -> bool + 'static) -> Self {
        self.due = Box::new(due);
        self
    }

    /// Comes back as soon as an interrupt that is requested can enter.
    pub fn windows(mut self) -> Self {
        self.windows = true;
        self
    }

    /// Records.
    pub fn record(self) -> Result<Recording, Fault> {
        let seed = seed();
        let mut machine = Machine::create(self.config.clone())?;
        guest::load(&self.guest, &mut machine);
        machine.guard_programs(self.guarded);
        machine.give_cut_msrs(gives_cut_msrs())?;
        machine.start_epochs()?;
        let mut between = self.between;
        let images = self.images.clone();
        let mut recorder = Recorder {
            world: World {
                images: self.images,
                ..World::default()
            },
            script: self.script,
            due: self.due,
            windows: self.windows,
            epochs: self.epochs,
            pauses: self.pauses,
            ended: false,
            rng: Rng(seed),
            delta: None,
            steps: Vec::new(),
        };
        let kicker = Kicker::start(&mut machine, seed, 1500);
        let mut result = Ok(Flow::Continue);
        while result.is_ok() && !recorder.ended {
            between(&mut machine, recorder.steps.len());
            assert!(recorder.steps.len() < MOST_STEPS, "the guest does not end");
            result = machine.step(&mut recorder);
        }
        kicker.stop();
        result?;
        let end = Final::of(&mut machine)?;
        let steps = recorder.steps;
        Ok(Recording {
            guest: self.guest,
            config: self.config,
            images,
            guarded: self.guarded,
            seed,
            steps,
            end,
            world: recorder.world,
        })
    }

    /// Records, replays twice with other kicks, and fails the test where anything differs.
    pub fn check(self) -> Recording {
        let recording = self.record().unwrap_or_else(|fault| panic!("recording: {fault:?}"));
        for mean in [400, 20_000] {
            if let Err(fault) = recording.replay(mean) {
                panic!("replay: {}", recording.explain(&fault));
            }
        }
        recording
    }
}

struct Recorder {
    world: World,
    script: Script,
    due: Due,
    windows: bool,
    epochs: u64,
    pauses: bool,
    ended: bool,
    rng: Rng,
    delta: Option<Box<Delta>>,
    steps: Vec<Step>,
}

impl Oracle for Recorder {
    type Error = Fault;

    fn slice(&mut self, machine: &dyn Seen) -> Result<Slice, Fault> {
        Ok(if self.windows && machine.devices().interrupt_requested() {
            Slice::RunToWindow
        } else {
            Slice::Run
        })
    }

    fn is_due(&mut self, machine: &dyn Seen) -> Result<bool, Fault> {
        Ok((self.due)(machine))
    }

    fn forced(&mut self, machine: &mut dyn Seen) -> Result<(), Fault> {
        self.delta = Some(Box::new(machine.take_delta()?));
        Ok(())
    }

    fn turn(&mut self, machine: &dyn Seen, stop: &Stop) -> Result<Turn, Fault> {
        let mut turn = Turn::default();
        if stop.wants_time {
            turn.clock = Some(self.rng.next() % 1000 + 1);
        }
        if stop.wants_random {
            turn.random = Some(self.rng.next());
        }
        let waits = stop.kind == StopKind::Forced || (stop.halted && machine.regs().rflags & guest::FLAG_IF != 0);
        if waits && let Some(deadline) = machine.deadline() {
            turn.clock = Some(deadline.ns_since(machine.now()));
        }
        if stop.kind != StopKind::Forced && stop.number.get().is_multiple_of(self.epochs) {
            turn.epoch = Some(Epoch::default());
        }
        (self.script)(&mut self.world, machine, stop, &mut turn);
        Ok(turn)
    }

    fn disk_data(&mut self, disk: u32, request: u64) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.world.reads.remove(&(disk, request)))
    }

    fn taken(&mut self, machine: &dyn Seen, stop: &Stop, turn: Turn, taken: Taken) -> Result<Flow, Fault> {
        self.world.absorb(&taken.effects);
        self.steps.push(Step {
            stop: *stop,
            turn,
            delta: self.delta.take(),
            chain: machine.chain(),
            regs: *machine.regs(),
            interrupt: taken.interrupt,
            effects: taken.effects,
            epoch: taken.epoch,
            ended: taken.ended,
        });
        assert!(self.steps.len() < MOST_STEPS, "the guest does not end");
        self.ended = taken.ended.is_some();
        Ok(if self.pauses { Flow::End } else { Flow::Continue })
    }
}
