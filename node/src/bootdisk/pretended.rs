//! A file system of a few files, for tests of what is chosen.

use std::collections::BTreeMap;

use super::refusal::Refusal;
use super::tree::{FileSystem, Node};

/// See above.
#[derive(Default)]
pub struct Pretended {
    nodes: BTreeMap<String, (Node, Vec<u8>)>,
}

impl Pretended {
    pub fn new() -> Self {
        Self::default()
    }

    fn with(mut self, path: &str, node: Node, bytes: &[u8]) -> Self {
        for (at, _) in path.match_indices('/').skip(1) {
            self.nodes.insert(path[..at].to_owned(), (Node::Directory, Vec::new()));
        }
        self.nodes.insert(path.to_owned(), (node, bytes.to_vec()));
        self
    }

    pub fn file(self, path: &str, text: &str) -> Self {
        self.with(path, Node::File(text.len() as u64), text.as_bytes())
    }

    pub fn link(self, path: &str, target: &str) -> Self {
        self.with(path, Node::Link(target.into()), &[])
    }
}

impl FileSystem for Pretended {
    fn look(&self, path: &str) -> Result<Option<Node>, Refusal> {
        Ok(self.nodes.get(path).map(|(node, _)| node.clone()))
    }

    fn names(&self, path: &str) -> Result<Vec<String>, Refusal> {
        let inside = format!("{}/", path.trim_end_matches('/'));
        let names = self.nodes.keys().filter_map(|key| key.strip_prefix(&inside));
        Ok(names.filter(|name| !name.contains('/')).map(str::to_owned).collect())
    }

    fn read(&self, path: &str, _limit: u64) -> Result<Vec<u8>, Refusal> {
        Ok(self.nodes[path].1.clone())
    }
}
