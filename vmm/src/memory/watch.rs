//! Which pages were written since somebody looked last: for who copies memory while the guest runs.

use std::sync::atomic::{AtomicU64, Ordering};

use lockstep_proto::quantity::PageIndex;

/// A set of pages by index, filled at every collection of the dirty log and emptied by the one who watches.
#[derive(Debug)]
pub struct DirtyWatch(Vec<AtomicU64>);

impl DirtyWatch {
    pub(super) fn new(pages: u64) -> Self {
        Self((0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn mark(&self, index: PageIndex) {
        let index = index.get();
        if let Some(word) = self.0.get((index / 64) as usize) {
            word.fetch_or(1 << (index % 64), Ordering::Relaxed);
        }
    }

    /// Indices of the pages written since the last call, ascending. What was written since the last collection of the
    /// dirty log is not among them yet.
    pub fn take(&self) -> Vec<PageIndex> {
        let mut indices = Vec::new();
        for (word, bits) in self.0.iter().enumerate() {
            // Acquire: a page that is read after this is no older than its mark.
            let mut bits = bits.swap(0, Ordering::Acquire);
            while bits != 0 {
                indices.push(PageIndex::new(word as u64 * 64 + u64::from(bits.trailing_zeros())));
                bits &= bits - 1;
            }
        }
        indices
    }
}
