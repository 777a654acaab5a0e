//! A recording as a timeline: a machine that can be taken to any point of its past and future.
//!
//! Forwards it is replayed; on the way checkpoints are taken. Backwards (and far forwards) it is taken to the checkpoint
//! before the point, and replayed from there. Everything that is kept is content: a point is the same however it was
//! reached, which [`Timeline::digest`] tells.

mod base;
mod checkpoint;
mod course;
mod search;
mod store;
mod walk;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use lockstep_node::host::disk::SharedImage;
use lockstep_node::host::image::BLOCK;
use lockstep_proto::Identity;
use lockstep_proto::quantity::{PageNumber, StopNumber};
use lockstep_replay::open::{Opened, open};
use lockstep_replay::replayer::Pause;
use lockstep_replay::{ReplayError, Replayer};
use lockstep_vmm::cpu::state;
use lockstep_vmm::machine::{Machine, Trace};
use lockstep_vmm::memory::{DirtyWatch, PAGE_SIZE, Page};
use lockstep_vmm::probe::at_start;
use xxhash_rust::xxh3::Xxh3;

use base::Base;
use checkpoint::{Checkpoint, Checkpoints};
use store::Store;

pub use course::{Goal, Reached, point, straight};
pub use search::{MAX_WATCH, Stops, Watch, Why};
pub use walk::{Step, Walker, read_virtual};

/// Replay time between two checkpoints, at least.
const SPACING: Duration = Duration::from_millis(250);
/// Taking checkpoints takes at most this part of the time.
const SHARE: u32 = 12;
/// A checkpoint waits so many spacings for the end of a batch: what is left of a batch is kept in it, deltas' pages too.
const PATIENCE: u64 = 4;

/// A place between two turns: the natural stop, and how many turns came after the stop's own (of a halted guest, or
/// forced).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// The natural stop.
    pub stop: StopNumber,
    /// Turns since the stop's own.
    pub turn: u32,
}

impl Point {
    /// Right after a stop's own turn.
    pub fn at(stop: StopNumber) -> Self {
        Self { stop, turn: 0 }
    }
}

/// A page of memory or a block of a disk: they have the same size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// By frame number.
    Memory(PageNumber),
    /// By disk and number of the block.
    Disk(usize, u64),
}

const _: () = assert!(PAGE_SIZE as u64 == BLOCK);

/// What checkpoints may cost.
#[derive(Args, Clone, Debug)]
pub struct TimelineOptions {
    /// Memory for checkpoints. With less of it, going back takes longer.
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    checkpoint_memory_mib: u32,
    /// Checkpoints that the memory has no room for go to an unnamed file in this directory, sixteen times as much.
    #[arg(long, value_name = "DIR")]
    checkpoint_dir: Option<PathBuf>,
}

/// A recording, its machine, and where that stands.
pub struct Timeline {
    machine: Machine,
    replayer: Replayer,
    identity: Identity,
    watch: Arc<DirtyWatch>,
    base: Base,
    checkpoints: Checkpoints,
    /// What was written since this checkpoint is in the watch and in the disks' lists.
    at: usize,
    /// Replay time from the start to here.
    cost: u64,
    /// When the last checkpoint was taken or gone to, in replay time.
    last_look: u64,
    spacing: u64,
    /// The machine has been stopped inside a slice since it was taken to where it is: nothing of it is kept.
    disturbed: bool,
}

/// What one step of a traced replay came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advance {
    /// A stop inside the slice.
    Inside,
    /// The next point.
    Turn,
    /// The log ends here.
    End,
}

impl Timeline {
    /// Opens the recording in `directory`, at its start.
    pub fn open(directory: &Path, options: &TimelineOptions) -> Result<Self> {
        let Opened {
            mut machine,
            mut replayer,
            identity,
        } = open(directory, &at_start()?)?;
        let scratch = options.checkpoint_dir.clone();
        let base = Base::of(machine.memory(), scratch.as_deref().unwrap_or(&std::env::temp_dir()))?;
        let limit = (options.checkpoint_memory_mib as usize) << 20;
        let store = Store::new(limit, scratch.as_deref())?;
        let watch = machine.start_watch()?;
        let start = Checkpoint {
            point: Point::at(machine.stop()),
            cost: 0,
            machine: machine.saved()?,
            replay: replayer.saved()?,
            pages: std::collections::HashMap::new(),
        };
        Ok(Self {
            machine,
            replayer,
            identity,
            watch,
            base,
            checkpoints: Checkpoints::new(start, store),
            at: 0,
            cost: 0,
            last_look: 0,
            spacing: SPACING.as_nanos() as u64,
            disturbed: false,
        })
    }

    /// The machine, as it is at [`Timeline::point`].
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Whether the machine has been stopped inside a slice since it was taken to where it is.
    pub fn is_disturbed(&self) -> bool {
        self.disturbed
    }

    /// The machine, to look closer.
    pub fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Who was recorded.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Tells `sink` what the guest prints, each time that a replay passes it: the natural stop, and all bytes of that stop.
    pub fn on_console(&mut self, sink: impl FnMut(StopNumber, &[u8]) + 'static) {
        self.replayer.on_console(sink);
    }

    /// Where the machine stands.
    pub fn point(&self) -> Point {
        course::point(&self.machine, &self.replayer)
    }

    /// Where the recording begins.
    pub fn start(&self) -> Point {
        self.checkpoints.get(0).point
    }

    /// The guest time there.
    pub fn start_time(&self) -> u64 {
        self.checkpoints.get(0).machine.now().ns()
    }

    /// How many checkpoints there are, and their bytes in memory and in the file.
    pub fn checkpoints(&self) -> (usize, usize, usize) {
        let (memory, file) = self.checkpoints.bytes();
        (self.checkpoints.len(), memory, file)
    }

    /// The point of the last checkpoint before `point`.
    pub fn checkpoint_before(&self, point: Point) -> Option<Point> {
        let index = self.checkpoints.before(point);
        let found = self.checkpoints.get(index).point;
        if found < point {
            return Some(found);
        }
        Some(self.checkpoints.get(index.checked_sub(1)?).point)
    }

    /// Goes to a goal, forwards or backwards. `watch` is told now and then, and ends it by saying false.
    pub fn seek(&mut self, goal: Goal, watch: &mut dyn FnMut(&Self) -> bool) -> Result<Reached> {
        let here = self.point();
        let from = match goal {
            Goal::Point(point) => {
                let best = self.checkpoints.before(point);
                let walk = !self.disturbed && here <= point && self.checkpoints.get(best).point <= here;
                (!walk).then_some(best)
            }
            Goal::Time(time) => {
                let best = self.checkpoints.before_time(time);
                let walk =
                    !self.disturbed && self.machine.now().ns() < time && self.checkpoints.get(best).point <= here;
                (!walk).then_some(best)
            }
            Goal::End => {
                let last = self.checkpoints.len() - 1;
                (self.disturbed || self.checkpoints.get(last).point > here).then_some(last)
            }
        };
        if let Some(index) = from {
            self.travel(index)?;
        }
        self.forward(goal, watch)
    }

    /// Replays up to a goal that is not behind.
    pub fn forward(&mut self, goal: Goal, watch: &mut dyn FnMut(&Self) -> bool) -> Result<Reached> {
        if let Some(reached) = goal.begin(&self.machine, &mut self.replayer) {
            return Ok(reached);
        }
        let mut told = Instant::now();
        loop {
            let begin = Instant::now();
            let reached = goal.step(&mut self.machine, &mut self.replayer)?;
            self.cost += begin.elapsed().as_nanos() as u64;
            if let Some(reached) = reached {
                return Ok(reached);
            }
            if !self.disturbed && self.cost - self.last_look > self.spacing {
                self.consider()?;
            }
            if told.elapsed() > Duration::from_millis(50) {
                told = Instant::now();
                if !watch(self) {
                    return Ok(Reached::Interrupted);
                }
            }
        }
    }

    /// Replays one step under `trace`: to a stop inside the slice, or the next point.
    pub fn advance(&mut self, trace: Trace) -> Result<Advance> {
        if self.replayer.is_at_end() {
            return Ok(Advance::End);
        }
        self.replayer.pause(Pause::EveryTurn);
        let before = self.point();
        self.machine.trace(trace);
        let begin = Instant::now();
        let result = self.machine.step(&mut self.replayer);
        self.machine.trace(Trace::default());
        self.cost += begin.elapsed().as_nanos() as u64;
        result.map_err(|error| self.replayer.explain(&self.machine, error))?;
        if self.machine.is_in_slice() {
            self.disturbed = true;
            return Ok(Advance::Inside);
        }
        if self.point() == before {
            return Ok(Advance::End);
        }
        if !self.disturbed && self.cost - self.last_look > self.spacing {
            self.consider()?;
        }
        Ok(Advance::Turn)
    }

    /// Takes a checkpoint where there is none near.
    fn consider(&mut self) -> Result<()> {
        if self.replayer.queued() > 0 && self.cost - self.last_look < PATIENCE * self.spacing {
            return Ok(());
        }
        self.last_look = self.cost;
        let index = self.checkpoints.before(self.point());
        let near = |index: usize| {
            index < self.checkpoints.len() && self.checkpoints.get(index).cost.abs_diff(self.cost) < self.spacing
        };
        if near(index) || near(index + 1) {
            return Ok(());
        }
        self.checkpoint()
    }

    /// Takes a checkpoint here.
    pub fn checkpoint(&mut self) -> Result<()> {
        let begin = Instant::now();
        let point = self.point();
        anyhow::ensure!(
            !self.disturbed,
            "a checkpoint cannot be taken of a machine that was stepped"
        );
        if self.checkpoints.get(self.checkpoints.before(point)).point == point {
            return Ok(());
        }
        let replay = self.replayer.saved()?;
        let machine = self.machine.saved()?;
        let mut pages = std::collections::HashMap::new();
        let mut page: Page = [0; PAGE_SIZE];
        for frame in self.machine.written(&self.watch)? {
            self.machine.memory().read_page(frame, &mut page);
            pages.insert(Key::Memory(frame), self.checkpoints.store().insert(&page)?);
        }
        let disks = self.replayer.disks();
        for disk in 0..disks.count() {
            let Some(mut image) = disks.image(disk) else { continue };
            for block in image.take_touched() {
                image.read_block(block, &mut page)?;
                pages.insert(Key::Disk(disk, block), self.checkpoints.store().insert(&page)?);
            }
        }
        let checkpoint = Checkpoint {
            point,
            cost: self.cost,
            machine,
            replay,
            pages,
        };
        let index = self.checkpoints.insert(checkpoint);
        self.at = self.checkpoints.thin(index);
        let took = begin.elapsed() * SHARE;
        self.spacing = took.max(SPACING).as_nanos() as u64;
        Ok(())
    }

    /// Goes to a checkpoint, whatever was done to the machine since.
    fn travel(&mut self, index: usize) -> Result<()> {
        // Only settled disks have told all that they wrote.
        self.replayer.saved()?;
        let mut keys: HashSet<Key> = self
            .machine
            .written(&self.watch)?
            .into_iter()
            .map(Key::Memory)
            .collect();
        let disks = self.replayer.disks();
        for disk in 0..disks.count() {
            let Some(mut image) = disks.image(disk) else { continue };
            keys.extend(image.take_touched().into_iter().map(|block| Key::Disk(disk, block)));
        }
        self.checkpoints.between(self.at, index, &mut keys);
        let mut memory: Vec<(PageNumber, Box<Page>)> = Vec::new();
        for (key, kept) in self.checkpoints.content(index, keys) {
            let mut page: Box<Page> = Box::new([0; PAGE_SIZE]);
            match (key, kept) {
                (_, Some(id)) => self.checkpoints.store().read(id, &mut page)?,
                (Key::Memory(frame), None) => self.base.read(self.machine.memory(), frame, &mut page)?,
                (Key::Disk(..), None) => {}
            }
            match key {
                Key::Memory(frame) => memory.push((frame, page)),
                Key::Disk(disk, block) => {
                    if let Some(mut image) = self.replayer.disks().image(disk) {
                        image.put_back(block, kept.is_some().then_some(&*page))?;
                    }
                }
            }
        }
        let checkpoint = self.checkpoints.get(index);
        let pages = memory.iter().map(|(frame, page)| (*frame, page.as_slice()));
        self.machine.travel(&checkpoint.machine, pages, &self.watch)?;
        self.replayer.return_to(&checkpoint.replay)?;
        let disks = self.replayer.disks();
        for disk in 0..disks.count() {
            if let Some(mut image) = disks.image(disk) {
                image.take_touched();
            }
        }
        self.disturbed = false;
        self.at = index;
        self.cost = checkpoint.cost;
        self.last_look = self.cost;
        Ok(())
    }

    /// A disk to read as it is here, for as long as the machine stands.
    pub fn disk(&mut self, disk: usize) -> Result<SharedImage> {
        let disks = self.replayer.disks();
        disks.settle().map_err(ReplayError::Disk)?;
        disks.shared(disk).context("the disk is gone")
    }

    /// A digest of everything: registers, devices, all of memory and all disks, read afresh.
    pub fn digest(&mut self) -> Result<[u8; 16]> {
        digest(&self.machine, &mut self.replayer)
    }
}

/// A digest of everything that a machine and its disks are, where it stands between two turns.
pub fn digest(machine: &Machine, replayer: &mut Replayer) -> Result<[u8; 16]> {
    let mut hasher = Xxh3::new();
    hasher.update(&machine.stop().get().to_le_bytes());
    hasher.update(&machine.now().ns().to_le_bytes());
    hasher.update(&machine.chain().to_bytes());
    hasher.update(&[u8::from(machine.is_halted())]);
    state::digest_into(&mut hasher, &machine.vcpu_state()?);
    hasher.update(&machine.devices().save());
    hasher.update(&machine.full_memory_digest());
    let disks = replayer.disks();
    disks.settle().map_err(ReplayError::Disk)?;
    let mut page: Page = [0; PAGE_SIZE];
    for disk in 0..disks.count() {
        let image = disks.image(disk).context("the disk is gone")?;
        for block in 0..image.bytes()?.div_ceil(BLOCK) {
            image.read_block(block, &mut page)?;
            hasher.update(&page);
        }
    }
    Ok(hasher.digest128().to_be_bytes())
}
