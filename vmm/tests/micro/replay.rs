//! The replayer: an oracle that gives what was recorded, and compares.

use std::time::{Duration, Instant};

use lockstep_proto::{MachineConfig, Turn};
use lockstep_vmm::machine::{EpochReport, Flow, Machine, Oracle, Seen, Slice, Stop, Taken};
use vm_memory::{Bytes, GuestAddress};

use super::guest::{self, MicroGuest};
use super::harness::*;
use super::kicks::Kicker;
use super::world::World;

/// A replica that is still in one slice after this has gone astray. Nothing is asserted about time.
const SILENT: Duration = Duration::from_secs(60);

/// What was recorded.
pub struct Recording {
    pub guest: MicroGuest,
    pub config: MachineConfig,
    pub images: Vec<Vec<u8>>,
    pub guarded: bool,
    pub seed: u64,
    pub steps: Vec<Step>,
    pub end: Final,
    pub world: World,
}

impl Recording {
    /// The first step at this mark.
    pub fn at(&self, mark: u16) -> &Step {
        self.steps
            .iter()
            .find(|step| step.mark() == Some(mark))
            .unwrap_or_else(|| panic!("no mark {mark}"))
    }

    /// The image that replicas have of this disk.
    pub fn image_mut(&mut self, disk: usize) -> &mut Vec<u8> {
        &mut self.images[disk]
    }

    /// How many stops were forced.
    pub fn forced(&self) -> usize {
        self.steps.iter().filter(|step| step.is_forced()).count()
    }

    /// The steps where an interrupt was injected.
    pub fn interrupts(&self) -> Vec<&Step> {
        self.steps.iter().filter(|step| step.interrupt.is_some()).collect()
    }

    /// A quadword of guest memory at the end of a replay.
    pub fn word(&self, address: u64) -> u64 {
        self.words(address, 1)[0]
    }

    /// `count` quadwords of guest memory at the end of a replay.
    pub fn words(&self, address: u64, count: usize) -> Vec<u64> {
        let (machine, result) = self.replay_with(2000, |_, _| {});
        result.unwrap_or_else(|fault| panic!("replay: {}", self.explain(&fault)));
        (0..count as u64)
            .map(|index| {
                machine
                    .memory()
                    .ram()
                    .read_obj(GuestAddress(address + index * 8))
                    .expect("it is memory")
            })
            .collect()
    }

    pub fn explain(&self, fault: &Fault) -> String {
        let (Fault::Diverged(at, _) | Fault::Silent(at)) = fault else {
            return format!("{fault:?}");
        };
        let near = &self.steps[at.saturating_sub(2)..self.steps.len().min(at + 2)];
        let near: Vec<_> = near
            .iter()
            .map(|step| format!("{:?} {:x?} {:?}", step.stop, step.regs, step.interrupt))
            .collect();
        format!("{fault:?} of {} steps, recorded near: {near:#?}", self.steps.len())
    }

    /// Replays in a fresh machine, kicked every `mean` microseconds on average, and compares.
    pub fn replay(&self, mean: u64) -> Result<Final, Fault> {
        let (mut machine, result) = self.replay_with(mean, |_, _| {});
        result?;
        Final::of(&mut machine)
    }

    /// Replays; `meddle` is called before every step with the number of steps so far. The machine stands where it ended.
    pub fn replay_with(&self, mean: u64, meddle: impl FnMut(&mut Machine, usize)) -> (Machine, Result<(), Fault>) {
        let mut machine = Machine::create(self.config.clone()).expect("a machine like the first");
        guest::load(&self.guest, &mut machine);
        machine.guard_programs(self.guarded);
        machine.start_epochs().expect("epochs like the first's");
        let result = self.go_on(&mut machine, 0, mean, meddle);
        (machine, result)
    }

    /// Replays from step `from` on in a machine that stands there.
    pub fn go_on(
        &self,
        machine: &mut Machine,
        from: usize,
        mean: u64,
        mut meddle: impl FnMut(&mut Machine, usize),
    ) -> Result<(), Fault> {
        machine.give_cut_msrs(gives_cut_msrs())?;
        let mut replayer = Replayer {
            recording: self,
            at: from,
            world: World {
                images: self.images.clone(),
                ..World::default()
            },
            since: Instant::now(),
        };
        let kicker = Kicker::start(machine, self.seed ^ mean, mean);
        let mut result = Ok(Flow::Continue);
        while let Ok(Flow::Continue) = result {
            meddle(machine, replayer.at);
            result = machine.step(&mut replayer);
        }
        kicker.stop();
        result?;
        let at = replayer.at;
        match self.end.difference(&Final::of(machine)?) {
            _ if at != self.steps.len() => Err(Fault::Diverged(at, "end")),
            Some(what) => Err(Fault::Diverged(at, what)),
            None => Ok(()),
        }
    }
}

struct Replayer<'a> {
    recording: &'a Recording,
    at: usize,
    world: World,
    since: Instant,
}

impl Replayer<'_> {
    fn wrong(&self, what: &'static str) -> Fault {
        Fault::Diverged(self.at, what)
    }
}

impl Oracle for Replayer<'_> {
    type Error = Fault;

    fn slice(&mut self, _: &dyn Seen) -> Result<Slice, Fault> {
        self.since = Instant::now();
        Ok(match self.recording.steps.get(self.at) {
            None => Slice::End,
            Some(Step { delta: Some(delta), .. }) => Slice::Carry(delta.clone()),
            Some(_) => Slice::Run,
        })
    }

    fn is_due(&mut self, _: &dyn Seen) -> Result<bool, Fault> {
        if self.since.elapsed() > SILENT {
            Err(Fault::Silent(self.at))
        } else {
            Ok(false)
        }
    }

    fn forced(&mut self, _: &mut dyn Seen) -> Result<(), Fault> {
        Err(self.wrong("forced stop"))
    }

    fn turn(&mut self, _: &dyn Seen, stop: &Stop) -> Result<Turn, Fault> {
        let step = self.recording.steps.get(self.at).ok_or_else(|| self.wrong("end"))?;
        if step.stop != *stop {
            return Err(self.wrong("stop"));
        }
        Ok(step.turn.clone())
    }

    fn disk_data(&mut self, disk: u32, request: u64) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.world.reads.remove(&(disk, request)))
    }

    fn taken(&mut self, machine: &dyn Seen, _: &Stop, _: Turn, taken: Taken) -> Result<Flow, Fault> {
        let step = &self.recording.steps[self.at];
        let digest = |epoch: &Option<EpochReport>| epoch.as_ref().map(|epoch| epoch.digest);
        let different = [
            (step.chain != machine.chain(), "chain"),
            (step.regs != *machine.regs(), "registers"),
            (step.effects != taken.effects, "effects"),
            (digest(&step.epoch) != digest(&taken.epoch), "epoch"),
            (step.interrupt != taken.interrupt, "interrupt"),
            (step.ended != taken.ended, "ending"),
        ];
        if let Some((_, what)) = different.into_iter().find(|(differs, _)| *differs) {
            return Err(self.wrong(what));
        }
        self.world.absorb(&taken.effects);
        self.at += 1;
        Ok(Flow::Continue)
    }
}
