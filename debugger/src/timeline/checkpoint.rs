//! Checkpoints of a replay, in the order of their points, and which of them are given up when there are too many.
//!
//! Invariant: a checkpoint has at least the pages that were written since the one before it, with the content that they
//! have at it. So a page's content at a checkpoint is the one that the last checkpoint at or before it has, or else the
//! start's; and what differs between two checkpoints is among the pages of those after the first, up to the second.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use lockstep_replay::replayer::SavedReplay;
use lockstep_vmm::machine::SavedMachine;

use super::store::{PageId, Store};
use super::{Key, Point};

/// What an entry of a checkpoint's pages costs.
const ENTRY: usize = 40;

/// A checkpoint.
pub struct Checkpoint {
    /// Where.
    pub point: Point,
    /// Host time that a replay from the start takes to here, in nanoseconds, as far as it was measured.
    pub cost: u64,
    /// The machine.
    pub machine: SavedMachine,
    /// The replayer.
    pub replay: SavedReplay,
    /// What was written since the checkpoint before.
    pub pages: HashMap<Key, PageId>,
}

impl Checkpoint {
    fn bytes(&self) -> usize {
        self.machine.bytes() + self.replay.bytes() + self.pages.len() * ENTRY
    }
}

/// All checkpoints. The first one is the start, and stays.
pub struct Checkpoints {
    list: Vec<Checkpoint>,
    store: Store,
    /// Bytes beside the store's.
    beside: usize,
}

impl Checkpoints {
    /// The start, where nothing has been written.
    pub fn new(start: Checkpoint, store: Store) -> Self {
        Self {
            beside: start.bytes(),
            list: vec![start],
            store,
        }
    }

    /// The checkpoint with this index.
    pub fn get(&self, index: usize) -> &Checkpoint {
        &self.list[index]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Bytes in memory and in the file.
    pub fn bytes(&self) -> (usize, usize) {
        let (memory, file) = self.store.bytes();
        (memory + self.beside, file)
    }

    /// The pages' store, to put a new checkpoint's pages in.
    pub fn store(&mut self) -> &mut Store {
        &mut self.store
    }

    /// The last checkpoint at or before `point`.
    pub fn before(&self, point: Point) -> usize {
        self.list.partition_point(|kept| kept.point <= point).saturating_sub(1)
    }

    /// The last checkpoint whose guest time is before `time`, or the start.
    pub fn before_time(&self, time: u64) -> usize {
        self.list
            .partition_point(|kept| kept.machine.now().ns() < time)
            .saturating_sub(1)
    }

    /// Adds a checkpoint and returns its index.
    pub fn insert(&mut self, checkpoint: Checkpoint) -> usize {
        self.beside += checkpoint.bytes();
        let index = self.list.partition_point(|kept| kept.point <= checkpoint.point);
        self.list.insert(index, checkpoint);
        index
    }

    /// The pages that may differ between two checkpoints.
    pub fn between(&self, one: usize, other: usize, keys: &mut HashSet<Key>) {
        let range: Range<usize> = one.min(other) + 1..one.max(other) + 1;
        for kept in &self.list[range] {
            keys.extend(kept.pages.keys());
        }
    }

    /// Where the content of `keys` at a checkpoint is; `None`: it is the start's.
    pub fn content(&self, index: usize, keys: HashSet<Key>) -> Vec<(Key, Option<PageId>)> {
        let mut rest: Vec<_> = keys.into_iter().collect();
        let mut found = Vec::with_capacity(rest.len());
        for kept in self.list[..=index].iter().rev() {
            rest.retain(|key| match kept.pages.get(key) {
                Some(id) => {
                    found.push((*key, Some(*id)));
                    false
                }
                None => true,
            });
            if rest.is_empty() {
                break;
            }
        }
        found.extend(rest.into_iter().map(|key| (key, None)));
        found.sort_unstable_by_key(|entry| entry.0);
        found
    }

    /// Gives checkpoints up until the rest fits its bound, but for the start and the one at `keep`; returns where that
    /// is then. Far from it they become rarer: the next one to go is the one whose going makes the smallest gap, measured
    /// by its distance.
    pub fn thin(&mut self, keep: usize) -> usize {
        let mut keep = keep;
        while self.store.is_full(self.beside) {
            let here = self.list[keep].cost;
            let whole = self.list.last().map_or(0, |last| last.cost);
            let worth = |index: usize| {
                let after = self.list.get(index + 1).map_or(whole, |next| next.cost);
                let gap = after.saturating_sub(self.list[index - 1].cost);
                // Half of the whole counts as near everywhere: a jump to anywhere is to be fast, too.
                gap as f64 / (self.list[index].cost.abs_diff(here) + whole / 2 + 1) as f64
            };
            let victim = (1..self.list.len())
                .filter(|index| *index != keep)
                .min_by(|a, b| worth(*a).total_cmp(&worth(*b)));
            let Some(victim) = victim else { break };
            self.remove(victim);
            if victim < keep {
                keep -= 1;
            }
        }
        keep
    }

    fn remove(&mut self, index: usize) {
        let gone = self.list.remove(index);
        self.beside -= gone.bytes();
        let Some(next) = self.list.get_mut(index) else {
            for id in gone.pages.into_values() {
                self.store.release(id);
            }
            return;
        };
        self.beside -= next.bytes();
        for (key, id) in gone.pages {
            if let std::collections::hash_map::Entry::Vacant(entry) = next.pages.entry(key) {
                entry.insert(id);
            } else {
                self.store.release(id);
            }
        }
        self.beside += next.bytes();
    }
}
