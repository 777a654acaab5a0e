//! The nodes' messages, kept as files.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use lockstep_integration::pair::Node;
use lockstep_integration::transcript::Transcript;

/// A process that was killed has its last words in the transcript after this.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// One file for each process that ran.
pub struct Logs {
    dir: PathBuf,
    nodes: RefCell<Vec<Kept>>,
}

/// Of one process: the second one on host `a` has `a-2.log`.
struct Kept {
    host: String,
    file: String,
    messages: Transcript,
}

impl Logs {
    /// In `dir`.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.into(),
            nodes: RefCell::default(),
        }
    }

    /// Keeps those of one more process, on the host with this name.
    pub fn add(&self, host: &str, node: &Node) {
        let mut nodes = self.nodes.borrow_mut();
        let earlier = nodes.iter().filter(|kept| kept.host == host).count();
        nodes.push(Kept {
            host: host.into(),
            file: format!("{host}-{}.log", earlier + 1),
            messages: node.run.messages.clone(),
        });
    }

    /// Writes what they have said so far.
    pub fn write(&self) -> Result<()> {
        for kept in self.nodes.borrow().iter() {
            let file = self.dir.join(&kept.file);
            fs::write(&file, kept.messages.text()).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    /// Writes all of it, once the processes have ended. Returns where, for people.
    pub fn finish(&self) -> Result<String> {
        for kept in self.nodes.borrow().iter() {
            kept.messages.wait_for_end(LAST_WORDS);
        }
        self.write()?;
        let nodes = self.nodes.borrow();
        let files: Vec<_> = nodes.iter().map(|kept| kept.file.as_str()).collect();
        Ok(format!("{}: {}", self.dir.display(), files.join(", ")))
    }
}
