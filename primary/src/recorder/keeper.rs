//! Who keeps the log: the thread that writes it, or a test.

use std::fs::File;
use std::sync::Arc;

use lockstep_proto::quantity::{PageNumber, Term};
use lockstep_proto::{Batch, End};
use lockstep_vmm::machine::{Machine, MachineError};

use super::log::LogThread;
use super::tape::LogSummary;
use lockstep_node::host::disk::Disks;
use lockstep_node::host::inbox::Bell;

/// Keeps a machine's log. What goes wrong with it is told in words: the machine goes on without.
pub trait Keeper {
    /// Takes a batch.
    fn batch(&self, batch: Batch) -> Result<(), String>;

    /// Takes the pages of the next batch's forced stop: frames and contents.
    fn pages(&self, frames: Vec<PageNumber>, pages: Vec<u8>) -> Result<(), String>;

    /// Ends the log in order.
    fn finish(self: Box<Self>, end: End) -> Result<LogSummary, String>;

    /// Leaves it to itself.
    fn give_up(self: Box<Self>);

    /// Whether it wants something of the thread that steps the machine, between two steps.
    fn has_errand(&self) -> bool {
        false
    }

    /// Whether that wants the machine to stand between two batches.
    fn is_part_ready(&self) -> bool {
        false
    }

    /// Does it. `bell` is rung when there is the next thing to do. The inner error is the log's.
    fn errand(
        &mut self,
        _machine: &mut Machine,
        _disks: &mut Disks,
        _images: &Arc<Vec<File>>,
        _term: Term,
        _bell: Bell,
    ) -> Result<Result<(), String>, MachineError> {
        Ok(Ok(()))
    }
}

impl Keeper for LogThread {
    fn batch(&self, batch: Batch) -> Result<(), String> {
        self.batch(batch)
    }

    fn pages(&self, frames: Vec<PageNumber>, pages: Vec<u8>) -> Result<(), String> {
        self.pages(frames, pages)
    }

    fn finish(self: Box<Self>, end: End) -> Result<LogSummary, String> {
        (*self).finish(end)
    }

    fn give_up(self: Box<Self>) {
        (*self).give_up();
    }

    fn has_errand(&self) -> bool {
        self.has_errand()
    }

    fn is_part_ready(&self) -> bool {
        self.is_part_ready()
    }

    fn errand(
        &mut self,
        machine: &mut Machine,
        disks: &mut Disks,
        images: &Arc<Vec<File>>,
        term: Term,
        bell: Bell,
    ) -> Result<Result<(), String>, MachineError> {
        self.errand(machine, disks, images, term, move || bell.ring())
    }
}
