//! Certificates that are renewed while a node runs: new connections use the new ones, and those that are there go on.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls::{ClientConfig, ServerConfig};

use super::store::{CA, Pair};
use super::{PkiError, client_config, load_identity, server_config};

/// A node's certificate files, and whom it talks to with them.
#[derive(Clone, Debug)]
pub struct Credentials {
    directory: PathBuf,
    node: String,
    peer: String,
    /// Times of change and lengths of the files as they were read last.
    seen: Option<Vec<(SystemTime, u64)>>,
}

impl Credentials {
    /// Of `node` in `directory`, for connections with `peer`.
    pub fn new(directory: &Path, node: &str, peer: &str) -> Self {
        Self {
            directory: directory.into(),
            node: node.into(),
            peer: peer.into(),
            seen: None,
        }
    }

    /// TLS of the end that makes connections, from the files as they are now.
    pub fn client(&self) -> Result<ClientConfig, PkiError> {
        client_config(&load_identity(&self.directory, &self.node)?, &self.peer)
    }

    /// TLS of the end that accepts them, from the files as they are now.
    pub fn server(&self) -> Result<ServerConfig, PkiError> {
        server_config(&load_identity(&self.directory, &self.node)?, &self.peer)
    }

    /// The same when the files have changed since the last call; the first call only looks.
    pub fn renewed_server(&mut self) -> Option<Result<ServerConfig, PkiError>> {
        let now = self.look()?;
        let before = self.seen.replace(now.clone());
        before.filter(|before| *before != now).map(|_| self.server())
    }

    /// `None`: one of the files is not there just now.
    fn look(&self) -> Option<Vec<(SystemTime, u64)>> {
        let node = Pair::new(&self.directory, &self.node);
        let files = [Pair::new(&self.directory, CA).cert, node.cert, node.key];
        files
            .iter()
            .map(|path| {
                let file = std::fs::metadata(path).ok()?;
                Some((file.modified().ok()?, file.len()))
            })
            .collect()
    }
}
