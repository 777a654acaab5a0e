//! The two programs of a pair, on the hosts of a [`Network`].

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::Network;
use crate::net::TAP;
use crate::paths::program;
use crate::process::check;
use crate::run::{Run, Running};

/// The UDP port that standbys listen on.
const PORT: u16 = 7700;

/// A pair's network, certificates and arbiter.
pub struct Pair {
    /// Where it runs.
    pub network: Network,
    dir: PathBuf,
    timing: [String; 4],
}

/// A process of the pair.
pub struct Node {
    /// The process, with the guest's console.
    pub run: Running,
    /// Number of its host.
    pub host: usize,
}

impl Pair {
    /// Makes certificates and an arbiter in `dir`, and the network.
    pub fn create(dir: &Path, heartbeat: Duration, deadline: Duration) -> Result<Self> {
        let pki = dir.join("pki");
        let primary = program("lockstep-primary")?;
        check(Command::new(&primary).args(["pki", "init", "--dir"]).arg(&pki))?;
        for node in ["a", "b"] {
            check(Command::new(&primary).args(["pki", "issue", node, "--dir"]).arg(&pki))?;
        }
        std::fs::create_dir_all(dir.join("arbiter"))?;
        Ok(Self {
            network: Network::create()?,
            dir: dir.to_owned(),
            timing: [
                "--heartbeat-ms".into(),
                heartbeat.as_millis().to_string(),
                "--deadline-ms".into(),
                deadline.as_millis().to_string(),
            ],
        })
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What both programs are told on `host`.
    fn arguments(&self, run: Run, host: usize) -> Run {
        let (me, other) = (&self.network.hosts[host], &self.network.hosts[1 - host]);
        run.args(["--name", "pair", "--node", me.name, "--peer-name", other.name])
            .args(["--peer", &format!("{}:{PORT}", other.ip)])
            .args(["--pki".into(), self.dir.join("pki").into_os_string()])
            .args(["--arbiter", &format!("file:{}", self.dir.join("arbiter").display())])
            .args(["--net", &format!("tap={TAP}")])
            .args(&self.timing)
    }

    /// Starts a machine on `host`; `with` says which.
    pub fn start_primary(&self, host: usize, with: impl FnOnce(Run) -> Run) -> Result<Node> {
        let namespace = &self.network.hosts[host].namespace;
        let run = Run::with(namespace.command(program("lockstep-primary")?));
        let run = with(self.arguments(run, host)).start()?;
        Ok(Node { run, host })
    }

    /// Starts a standby on `host`.
    pub fn start_backup(&self, host: usize, with: impl FnOnce(Run) -> Run) -> Result<Node> {
        let me = &self.network.hosts[host];
        let run = Run::with(me.namespace.command(program("lockstep-backup")?));
        let run = self
            .arguments(run, host)
            .args(["--listen", &format!("{}:{PORT}", me.ip)]);
        let run = with(run).start()?;
        Ok(Node { run, host })
    }
}

impl Node {
    /// Waits until the program says that it is in this state.
    pub fn wait_for_state(&self, state: &str, limit: Duration) -> Result<()> {
        self.run.messages.wait_for(state, limit)
    }
}
