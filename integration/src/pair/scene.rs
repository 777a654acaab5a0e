//! What a test of a pair begins with: the hosts, a machine that was booted before, and its disks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::protected::{LIMIT, SOME};
use super::{Arbiter, BUSY, CALM, Counter, Node, Pair, Protected};
use crate::paths::{Guest, work_dir};
use crate::run::Run;
use crate::snapshot::{Booted, Kind};

/// What a setup has unless told otherwise.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// A host with two busy cores stands still for a second now and then.
const DEADLINE: Duration = Duration::from_secs(3);

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Setup {
    name: String,
    arbiter: Arbiter,
    kind: Kind,
    heartbeat: Duration,
    deadline: Duration,
    auto: bool,
    pause: Duration,
    arguments: [Vec<String>; 2],
}

impl Setup {
    /// A machine without a disk, and a file as the arbiter; `name` is the test's own.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            arbiter: Arbiter::File,
            kind: Kind::Memory,
            heartbeat: HEARTBEAT,
            deadline: DEADLINE,
            auto: false,
            pause: CALM,
            arguments: [Vec::new(), Vec::new()],
        }
    }

    /// With an etcd on a third host.
    #[must_use]
    pub fn etcd(mut self) -> Self {
        self.arbiter = Arbiter::QuickEtcd;
        self
    }

    /// With one that syncs, as in service: where it is measured.
    #[must_use]
    pub fn durable_etcd(mut self) -> Self {
        self.arbiter = Arbiter::Etcd;
        self
    }

    /// With a disk.
    #[must_use]
    pub fn disk(mut self) -> Self {
        self.kind = Kind::Redis;
        self
    }

    /// With the same command on both hosts: the arbiter's record decides, and who has lost the machine stands by.
    #[must_use]
    pub fn auto(mut self) -> Self {
        self.auto = true;
        self
    }

    /// With a client that keeps the guest busy.
    #[must_use]
    pub fn busy(mut self) -> Self {
        self.pause = BUSY;
        self
    }

    /// With another deadline.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// With other heartbeats.
    #[must_use]
    pub fn heartbeat(mut self, heartbeat: Duration) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// With more arguments for the programs on `host`.
    #[must_use]
    pub fn arguments(mut self, host: usize, arguments: &[&str]) -> Self {
        self.arguments[host].extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// Makes the hosts; nothing runs on them yet.
    pub fn build(self) -> Result<Scene> {
        let dir = work_dir(&self.name)?;
        let machine = Booted::get(self.kind)?;
        let pair = Pair::create(&dir, self.arbiter, self.heartbeat, self.deadline)?;
        let mut disks = None;
        if self.kind == Kind::Redis {
            let first = machine.copy_disk(&dir)?;
            let second = blank_like(&first, dir.join("b.img"))?;
            disks = Some([first, second]);
        }
        Ok(Scene {
            pair,
            kind: self.kind,
            machine,
            disks,
            consoles: Vec::new(),
            auto: self.auto,
            pause: self.pause,
            arguments: self.arguments,
        })
    }

    /// A protected machine on host a, its backup on host b, and a client that counts.
    pub fn open(self) -> Result<Protected> {
        self.build()?.open()
    }
}

/// Two hosts and what a machine needs on them.
pub struct Scene {
    /// The hosts.
    pub pair: Pair,
    /// Each host's disk, if the machine has one.
    pub disks: Option<[PathBuf; 2]>,
    /// What the guest printed on those that were killed.
    pub consoles: Vec<String>,
    kind: Kind,
    machine: Booted,
    auto: bool,
    pause: Duration,
    arguments: [Vec<String>; 2],
}

impl Scene {
    /// Starts the machine on `host`, from the snapshot.
    pub fn start_primary(&self, host: usize) -> Result<Node> {
        if self.auto {
            return self.start_auto(host);
        }
        let snapshot = self.snapshot();
        self.pair
            .start_primary(host, |run| self.with_arguments(host, run).restore(&snapshot))
    }

    /// The machine as it was when it was booted.
    pub fn snapshot(&self) -> PathBuf {
        self.machine.snapshot()
    }

    /// Boots the machine on `host` from the kernel and its disk as it is.
    pub fn boot_primary(&self, host: usize) -> Result<Node> {
        let guest = Guest::find()?;
        let boot = |run| self.kind.boot(&guest, self.with_arguments(host, run));
        self.pair.start_primary(host, boot)
    }

    fn start_auto(&self, host: usize) -> Result<Node> {
        let snapshot = self.snapshot();
        self.pair
            .start_auto(host, |run| self.with_arguments(host, run).restore(&snapshot))
    }

    /// Starts a node on `host` that boots the machine from the kernel where the arbiter's record says so, or stands by.
    pub fn boot_auto(&self, host: usize) -> Result<Node> {
        let guest = Guest::find()?;
        let boot = |run| self.kind.boot(&guest, self.with_arguments(host, run));
        self.pair.start_auto(host, boot)
    }

    /// Starts a standby on `host`.
    pub fn start_backup(&self, host: usize) -> Result<Node> {
        if self.auto {
            return self.start_auto(host);
        }
        self.pair.start_backup(host, |run| self.with_arguments(host, run))
    }

    /// Kills a program as a power failure would; what the guest printed there is kept.
    pub fn kill(&mut self, node: Node) -> Result<()> {
        self.consoles.push(node.run.kill()?.console);
        Ok(())
    }

    fn with_arguments(&self, host: usize, run: Run) -> Run {
        let run = run.args(&self.arguments[host]);
        match &self.disks {
            Some(disks) => run.disk(&disks[host]),
            None => run,
        }
    }

    /// A client that counts.
    pub fn count(&self) -> Result<Counter> {
        let counter = Counter::start(&self.pair.network.client, "counter", self.pause)?;
        counter.wait_for(SOME, LIMIT)?;
        Ok(counter)
    }

    /// A protected machine on host a, its backup on host b, and a client that counts.
    pub fn open(self) -> Result<Protected> {
        // Where the record decides, the first one that asks becomes the owner.
        let primary = self.start_primary(0)?;
        primary.wait_for_state("not-protected (need-backup)", LIMIT)?;
        let backup = self.start_backup(1)?;
        primary.wait_until_protected_by(&backup)?;
        let counter = self.count()?;
        Protected::new(self, primary, backup, counter)
    }
}

/// A blank image as large as another, for a host that has never had the machine.
pub fn blank_like(image: &Path, to: PathBuf) -> Result<PathBuf> {
    std::fs::File::create(&to)?.set_len(std::fs::metadata(image)?.len())?;
    Ok(to)
}
