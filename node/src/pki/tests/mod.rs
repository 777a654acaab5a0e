//! A deployment for tests.

mod files;
mod handshakes;

use std::path::PathBuf;

use super::{Validity, init, issue};

/// A directory with a CA and certificates for these nodes.
fn deployment(nodes: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    init(&dir(&root)).unwrap();
    for node in nodes {
        issue(&dir(&root), node, Validity::days(1).unwrap()).unwrap();
    }
    root
}

fn dir(root: &tempfile::TempDir) -> PathBuf {
    root.path().join("pki")
}
