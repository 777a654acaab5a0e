//! What happened, for a simulator to which nothing happens shows nothing.

use lockstep_proto::Turn;
use lockstep_vmm::machine::{Stop, StopKind, Taken};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub stops: u64,
    pub forced: u64,
    pub forced_in_kernel: u64,
    pub halted: u64,
    pub interrupts: u64,
    pub interrupts_at_forced: u64,
    pub frames: u64,
    pub typed: u64,
    pub completions: u64,
    pub failed_reads: u64,
    pub entropy: u64,
    pub random: u64,
    pub timers: u64,
    pub empty: u64,
    pub epochs: u64,
    pub batches: u64,
    pub effects: u64,
    pub held_back: u64,
}

impl Counts {
    pub fn turn(&mut self, stop: &Stop, turn: &Turn, taken: &Taken, in_user_mode: bool) {
        let is_forced = stop.kind == StopKind::Forced;
        let count = |field: &mut u64, many: usize| *field += many as u64;
        count(&mut self.stops, usize::from(!is_forced));
        count(&mut self.forced, usize::from(is_forced));
        count(&mut self.forced_in_kernel, usize::from(is_forced && !in_user_mode));
        count(&mut self.halted, usize::from(stop.halted));
        count(&mut self.interrupts, taken.interrupt.iter().len());
        count(
            &mut self.interrupts_at_forced,
            taken.interrupt.iter().filter(|_| is_forced).count(),
        );
        count(&mut self.frames, turn.frames.len());
        count(&mut self.typed, turn.console.len());
        count(&mut self.completions, turn.disks.len());
        count(
            &mut self.failed_reads,
            turn.disks.iter().filter(|done| done.status != 0).count(),
        );
        count(&mut self.entropy, turn.entropy.len());
        count(&mut self.random, turn.random.iter().len());
        let looks = stop.wants_time || stop.halted || is_forced;
        count(&mut self.timers, usize::from(turn.clock.is_some() && !looks));
        count(&mut self.empty, usize::from(*turn == Turn::default()));
        count(&mut self.epochs, taken.epoch.iter().len());
    }

    pub fn all(&self) -> [(&'static str, u64); 18] {
        [
            ("stops", self.stops),
            ("forced stops", self.forced),
            ("forced stops in the kernel", self.forced_in_kernel),
            ("turns of a halted guest", self.halted),
            ("interrupts", self.interrupts),
            ("interrupts at forced stops", self.interrupts_at_forced),
            ("frames", self.frames),
            ("typed bytes", self.typed),
            ("completions", self.completions),
            ("reads that failed", self.failed_reads),
            ("entropy", self.entropy),
            ("random values", self.random),
            ("timers at stops where nobody looks", self.timers),
            ("empty turns", self.empty),
            ("epochs", self.epochs),
            ("batches", self.batches),
            ("effects", self.effects),
            ("pauses for the backup", self.held_back),
        ]
    }

    pub fn add(&mut self, other: &Self) {
        self.stops += other.stops;
        self.forced += other.forced;
        self.forced_in_kernel += other.forced_in_kernel;
        self.halted += other.halted;
        self.interrupts += other.interrupts;
        self.interrupts_at_forced += other.interrupts_at_forced;
        self.frames += other.frames;
        self.typed += other.typed;
        self.completions += other.completions;
        self.failed_reads += other.failed_reads;
        self.entropy += other.entropy;
        self.random += other.random;
        self.timers += other.timers;
        self.empty += other.empty;
        self.epochs += other.epochs;
        self.batches += other.batches;
        self.effects += other.effects;
        self.held_back += other.held_back;
    }
}
