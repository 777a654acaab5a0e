//! The two programs of a pair, on the hosts of a [`Network`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;

use super::network::WITNESS;
use super::{LIMIT, Network};
use crate::etcd::{Durability, Etcd};
use crate::net::TAP;
use crate::paths::program;
use crate::process::check;
use crate::run::{Run, Running};

/// What stands before a state in the programs' messages.
const STATE: &str = "lockstep::state: ";
/// The machine's name.
const MACHINE: &str = "pair";
/// The variable that names the directory of sockets.
const RUN_DIR: &str = "LOCKSTEP_RUN_DIR";
/// The variable that names the directory of what outlives a reboot.
const STATE_DIR: &str = "LOCKSTEP_STATE_DIR";
/// The UDP port that standbys listen on.
pub const PORT: u16 = 7700;

/// A pair's network, certificates and arbiter.
pub struct Pair {
    // Ends before its namespace.
    etcd: Option<Etcd>,
    /// Where it runs.
    pub network: Network,
    dir: PathBuf,
    // A socket's path is short, and that of `dir` need not be.
    sockets: TempDir,
    arbiter: String,
    timing: [String; 4],
    /// Where each host's standby listens.
    addresses: [SocketAddr; 2],
    /// Where each host believes the other one to listen.
    peers: [SocketAddr; 2],
    /// A script for each host's shell, run in a mount namespace of its own before each program there.
    prepare: [Option<String>; 2],
}

/// Who decides which host is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arbiter {
    /// A directory that both hosts see.
    File,
    /// An etcd on a third host.
    Etcd,
    /// The same for a test: it syncs nothing.
    QuickEtcd,
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
    pub fn create(dir: &Path, arbiter: Arbiter, heartbeat: Duration, deadline: Duration) -> Result<Self> {
        let pki = dir.join("pki");
        let primary = program("lockstep-primary")?;
        check(Command::new(&primary).args(["pki", "init", "--dir"]).arg(&pki))?;
        for node in ["a", "b"] {
            check(Command::new(&primary).args(["pki", "issue", node, "--dir"]).arg(&pki))?;
        }
        let network = Network::create()?;
        let place = dir.join("arbiter");
        std::fs::create_dir_all(&place)?;
        let (arbiter, etcd) = match arbiter {
            Arbiter::File => (format!("file:{}", place.display()), None),
            Arbiter::Etcd | Arbiter::QuickEtcd => {
                let durability = if arbiter == Arbiter::Etcd {
                    Durability::Machine
                } else {
                    Durability::Process
                };
                let etcd = Etcd::start_inside(&network.witness, WITNESS, &place, durability)?;
                (format!("etcd:{}", etcd.url()), Some(etcd))
            }
        };
        let mut addresses = Vec::new();
        for host in &network.hosts {
            addresses.push(SocketAddr::new(host.ip.parse()?, PORT));
        }
        let addresses = [addresses[0], addresses[1]];
        Ok(Self {
            network,
            dir: dir.to_owned(),
            sockets: tempfile::Builder::new().prefix("lockstep-").tempdir()?,
            arbiter,
            etcd,
            timing: [
                "--heartbeat-ms".into(),
                heartbeat.as_millis().to_string(),
                "--deadline-ms".into(),
                deadline.as_millis().to_string(),
            ],
            addresses,
            peers: [addresses[1], addresses[0]],
            prepare: [None, None],
        })
    }

    /// Where the standby on `host` listens.
    pub fn address(&self, host: usize) -> SocketAddr {
        self.addresses[host]
    }

    /// From now on, programs on `host` believe that the other one listens there.
    pub fn route(&mut self, host: usize, peer: SocketAddr) {
        self.peers[host] = peer;
    }

    /// From now on, this shell script runs before each program on `host`, in a mount namespace that ends with it.
    pub fn prepare(&mut self, host: usize, script: String) {
        self.prepare[host] = Some(script);
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What both programs are told on `host`.
    fn arguments(&self, run: Run, host: usize) -> Run {
        let (me, other) = (&self.network.hosts[host], &self.network.hosts[1 - host]);
        run.env(RUN_DIR, &self.run_dir(host))
            .env(STATE_DIR, &self.state_dir(host))
            .args(["--name", MACHINE, "--node", me.name, "--peer-name", other.name])
            .args(["--peer", &self.peers[host].to_string()])
            .args(["--pki".into(), self.dir.join("pki").into_os_string()])
            .args(["--arbiter", &self.arbiter])
            .args(["--net", &format!("tap={TAP}")])
            .args(&self.timing)
    }

    /// Where the sockets of `host` are: the two hosts share this machine's /run.
    pub fn run_dir(&self, host: usize) -> PathBuf {
        self.sockets.path().join(self.network.hosts[host].name)
    }

    /// What outlives a reboot of `host`: the two hosts share this machine's /var.
    pub fn state_dir(&self, host: usize) -> PathBuf {
        self.dir.join("state").join(self.network.hosts[host].name)
    }

    /// The operations API's socket of the machine on `host`.
    pub fn socket(&self, host: usize) -> PathBuf {
        self.run_dir(host).join(format!("{MACHINE}.sock"))
    }

    /// The etcd, where there is one.
    pub fn etcd(&mut self) -> Result<&mut Etcd> {
        self.etcd.as_mut().context("the arbiter is a file")
    }

    /// Fails if the primary has counted a divergence, with what both nodes say of it: a difference that comes once in fifty starts
    /// is not to be had again.
    pub fn ensure_no_divergence(&self, [primary, backup]: [&Node; 2]) -> Result<()> {
        let status = super::status(&self.socket(primary.host))?;
        let count = super::number(&status, "divergences")?;
        if count == 0.0 {
            return Ok(());
        }
        for node in [primary, backup] {
            println!("---- messages of host {}:\n{}", node.host, node.run.messages.text());
            let reports = self.run_dir(node.host).join(format!("{MACHINE}.divergences"));
            // The backup may be about to write it, or have none.
            for entry in std::fs::read_dir(reports).into_iter().flatten() {
                let path = entry?.path();
                println!("---- {}:\n{}", path.display(), std::fs::read_to_string(&path)?);
            }
        }
        bail!("{count} divergences: {status}")
    }

    /// What `--arbiter` says.
    pub fn arbiter(&self) -> &str {
        &self.arbiter
    }

    /// Types a command of the backup's program on `host`.
    pub fn operate(&self, host: usize, words: &[&str]) -> Result<Output> {
        self.operate_with("lockstep-backup", host, words)
    }

    /// The same of either program.
    pub fn operate_with(&self, name: &str, host: usize, words: &[&str]) -> Result<Output> {
        let mut command = self.network.hosts[host].namespace.command(program(name)?);
        command
            .args(words)
            .env(RUN_DIR, self.run_dir(host))
            .env(STATE_DIR, self.state_dir(host))
            .stdin(Stdio::null());
        Ok(command.output()?)
    }

    /// Starts a machine on `host`; `with` says which.
    pub fn start_primary(&self, host: usize, with: impl FnOnce(Run) -> Run) -> Result<Node> {
        let run = self.arguments(self.run(host, "lockstep-primary")?, host);
        let run = with(run).start()?;
        Ok(Node { run, host })
    }

    /// Starts a standby on `host`.
    pub fn start_backup(&self, host: usize, with: impl FnOnce(Run) -> Run) -> Result<Node> {
        let run = self
            .arguments(self.run(host, "lockstep-backup")?, host)
            .args(["--listen", &self.addresses[host].to_string()]);
        let run = with(run).start()?;
        Ok(Node { run, host })
    }

    /// One of the two programs, on `host`.
    fn run(&self, host: usize, name: &str) -> Result<Run> {
        let (namespace, program) = (&self.network.hosts[host].namespace, program(name)?);
        let Some(script) = &self.prepare[host] else {
            return Ok(Run::with(namespace.command(program)));
        };
        // `ip netns exec` has made a mount namespace.
        let mut command = namespace.command("sh");
        command
            .args(["-c", &format!("set -e; {script}; exec \"$@\""), "sh"])
            .arg(program);
        Ok(Run::with(command))
    }

    /// Starts a node on `host` whose part the arbiter's record decides; `with` says which machine.
    pub fn start_auto(&self, host: usize, with: impl FnOnce(Run) -> Run) -> Result<Node> {
        self.start_backup(host, |run| with(run.args(["--role", "auto"])))
    }
}

impl Node {
    /// The number in the last message that has `name=number`.
    pub fn number(&self, name: &str) -> Option<u64> {
        let text = self.run.messages.text();
        let at = text.rfind(&format!(" {name}="))? + name.len() + 2;
        let digits: String = text[at..].chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    }

    /// The state that it told last.
    pub fn state(&self) -> String {
        last_state(&self.run.messages.text())
    }

    /// How often it told this state.
    pub fn count_of_state(&self, state: &str) -> usize {
        self.run.messages.text().matches(&format!("{STATE}{state}")).count()
    }

    /// Kills it as a power failure would. Returns the state that it told last.
    pub fn kill(self) -> Result<String> {
        Ok(last_state(&self.run.kill()?.messages))
    }

    /// Waits until the program says that it is in this state: `protected` is a primary's, `standby: protected` a backup's.
    pub fn wait_for_state(&self, state: &str, limit: Duration) -> Result<()> {
        self.run.messages.wait_for(&format!("{STATE}{state}"), limit)
    }

    /// Waits until it is protected by `backup`. Where that does not come, what that one said last may tell why.
    pub fn wait_until_protected_by(&self, backup: &Self) -> Result<()> {
        self.wait_for_state("protected", LIMIT).map_err(|error| {
            let said = backup.run.messages.text();
            let lines: Vec<_> = said.lines().collect();
            let last = lines[lines.len().saturating_sub(8)..].join("\n");
            anyhow!("{error:#}\nand the backup said last:\n{last}")
        })
    }
}

fn last_state(messages: &str) -> String {
    let state = messages.lines().rev().find_map(|line| line.split_once(STATE));
    state.map_or_else(String::new, |(_, state)| state.trim().to_owned())
}
