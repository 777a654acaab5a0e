//! Memory as it was at the recording's start, in an unnamed file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use lockstep_proto::quantity::PageNumber;
use lockstep_vmm::memory::{Memory, PAGE_SIZE, Page};

/// The start's memory.
pub struct Base(File);

impl Base {
    /// Keeps `memory` as it is; pages of zeroes take no room.
    pub fn of(memory: &Memory, directory: &Path) -> Result<Self> {
        let problem = || format!("cannot keep the start's memory in {}", directory.display());
        let file = tempfile::tempfile_in(directory).with_context(problem)?;
        file.set_len(memory.bytes()).with_context(problem)?;
        let mut page: Page = [0; PAGE_SIZE];
        for index in memory.indices() {
            memory.read_page(memory.frame(index), &mut page);
            if page.iter().any(|&byte| byte != 0) {
                file.write_all_at(&page, index.offset()).with_context(problem)?;
            }
        }
        Ok(Self(file))
    }

    /// One page.
    pub fn read(&self, memory: &Memory, frame: PageNumber, page: &mut Page) -> Result<()> {
        let index = memory.index(frame).context("a page outside memory was written")?;
        self.0
            .read_exact_at(page, index.offset())
            .context("cannot read the start's memory")
    }
}
