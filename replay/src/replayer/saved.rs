//! What a replay comes back to a point by: the log, the disks' requests, and what was compared. The machine has its own
//! ([`lockstep_vmm::machine::SavedMachine`]), memory and the disks' content are kept by whoever travels.

use std::collections::VecDeque;

use lockstep_logcodec::LogError;
use lockstep_node::host::disk::{Disks, Outstanding};
use lockstep_proto::End;
use lockstep_proto::end::Reason;
use lockstep_proto::quantity::StopNumber;
use lockstep_vmm::machine::{Seen, StopKind};

use super::{Progress, ReplayError, Replayer};
use crate::feed::SavedFeed;

/// Where a replay stands between two turns.
#[derive(Clone, Debug)]
pub struct SavedReplay {
    feed: SavedFeed,
    outstanding: Outstanding,
    end: Option<Box<End>>,
    at_end: bool,
    around: VecDeque<(StopNumber, String)>,
    progress: Progress,
    taken_stop: StopNumber,
    further_turns: u32,
    last_kind: Option<StopKind>,
    guest_ended: Option<Reason>,
}

impl SavedReplay {
    /// Bytes that are kept, roughly.
    pub fn bytes(&self) -> usize {
        let around: usize = self.around.iter().map(|(_, text)| 32 + text.len()).sum();
        size_of::<Self>() + self.feed.bytes() + self.outstanding.bytes() + around
    }
}

impl Replayer {
    /// Where it stands, between two turns. The disks are settled then.
    pub fn saved(&mut self) -> Result<SavedReplay, ReplayError> {
        let outstanding = self.disks.settle().map_err(ReplayError::Disk)?;
        let feed = self.feed.saved();
        let feed = feed.ok_or_else(|| LogError::damaged("there is no place to come back to"))?;
        Ok(SavedReplay {
            feed,
            outstanding,
            end: self.end.clone(),
            at_end: self.at_end,
            around: self.around.clone(),
            progress: self.progress,
            taken_stop: self.taken_stop,
            further_turns: self.further_turns,
            last_kind: self.last_kind,
            guest_ended: self.guest_ended,
        })
    }

    /// Comes back to where it stood. The content of the disks is the caller's.
    pub fn return_to(&mut self, saved: &SavedReplay) -> Result<(), ReplayError> {
        self.disks.settle().map_err(ReplayError::Disk)?;
        self.feed.return_to(&saved.feed)?;
        self.disks.set_outstanding(&saved.outstanding);
        self.end.clone_from(&saved.end);
        self.at_end = saved.at_end;
        self.around.clone_from(&saved.around);
        self.progress = saved.progress;
        self.taken_stop = saved.taken_stop;
        self.further_turns = saved.further_turns;
        self.last_kind = saved.last_kind;
        self.guest_ended = saved.guest_ended;
        Ok(())
    }

    /// Goes on from where another replayer of the same log stood, with `machine` and disks that were saved there. What the guest had
    /// asked of its disks it asks of these, as of a machine that is restored.
    pub fn go_on_from(&mut self, saved: &SavedReplay, machine: &dyn Seen) -> Result<(), ReplayError> {
        self.return_to(saved)?;
        self.disks.set_outstanding(&Outstanding::default());
        self.resume(machine)
    }

    /// Turns of the batch in work that are still to come: a place that keeps few is small.
    pub fn queued(&self) -> usize {
        self.feed.turns.len()
    }

    /// The disks. Settle them before their images are looked at.
    pub fn disks(&mut self) -> &mut Disks {
        &mut self.disks
    }

    /// What stopped the machine last.
    pub fn last_kind(&self) -> Option<StopKind> {
        self.last_kind
    }
}
