//! A Debian as one installs it is a guest as any other: its own kernel, initramfs, modules, systemd and programs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockstep_integration::gate::{ordinary_host, require_program, require_root_net, soak};
use lockstep_integration::net::Namespace;
use lockstep_integration::pair::{
    Arbiter, Node, Pair, ask, boot_stock, copy_stock, newer_kernel, postgres, repository, ssh, wait_for_status,
};
use lockstep_integration::process::check;
use lockstep_integration::verify::summary;
use lockstep_integration::{Run, Verify, work_dir};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(900);

/// Errors that its kernel tells on this machine, and why.
const EXPECTED: [&str; 3] = [
    // There are no performance counters.
    "Failed to access perfctr msr",
    // There is no PCI.
    "No config space access function found",
    // There are no machine checks (6.12 tells it as an error).
    "Unable to init MCE device",
];

/// What it says of itself when it is up, as elsewhere.
fn says(client: &Namespace) -> Result<()> {
    let state = ask(client, "systemctl is-system-running --wait")?;
    ensure!(state.trim() == "running", "{state}");
    let errors = ask(client, "dmesg --level emerg,alert,crit,err")?;
    let errors: Vec<_> = errors
        .lines()
        .filter(|line| !EXPECTED.iter().any(|known| line.contains(known)))
        .collect();
    ensure!(errors.is_empty(), "{errors:#?}");
    for (command, word) in [
        ("systemctl is-active multi-user.target", "active"),
        ("cat /proc/uptime", "."),
        ("timedatectl", "Local time:"),
        ("systemd-analyze", "Startup finished in"),
        ("lsblk", "vda1"),
        ("ip addr", "10.77.0.2/24"),
        ("lsmod", "virtio_blk"),
    ] {
        let said = ask(client, command)?;
        println!("{command}: {}", said.trim());
        ensure!(said.contains(word), "{command} says {said}");
    }
    Ok(())
}

fn can() -> bool {
    require_root_net() && require_program("debootstrap", "debootstrap") && require_program("ssh", "openssh-client")
}

/// From power-on to a shutdown by its power button.
fn boots_and_replays(version: &str) -> Result<()> {
    if !can() {
        return Ok(());
    }
    // This machine makes the images for the emulated host, in the long forms: that takes minutes and a mirror.
    if !soak() && !ordinary_host()? {
        return Ok(());
    }
    let dir = work_dir(&format!("stock-debian-{version}"))?;
    let (disk, log) = (dir.join("disk.img"), dir.join("log"));
    copy_stock(version, &disk)?;
    if !ordinary_host()? {
        return Ok(());
    }
    let pair = Pair::create(&dir, Arbiter::File, Duration::from_millis(100), Duration::from_secs(3))?;
    let node = pair.start_primary(0, |run| boot_stock(run, &disk).record(&log))?;
    node.run.wait_for("debian login:", LIMIT)?;
    says(&pair.network.client).context(node.run.console.text())?;
    let asked = pair.operate(0, &["shutdown", "--timeout", "600"])?;
    ensure!(asked.status.success(), "{asked:?}");
    let outcome = node.run.wait(LIMIT)?;
    let (report, console) = (outcome.report()?, outcome.console);
    println!("{report}");
    ensure!(report["ended"] == "the guest powered off", "{report}: {console}");
    ensure!(report["modules"].as_u64() > Some(0), "{report}");
    for word in ["Call Trace", "clocksource: Marking", "rcu: INFO", "soft lockup"] {
        ensure!(!console.contains(word), "{word}: {console}");
    }
    let verify = Verify::run(&log)?;
    println!("Debian {version}: {}", summary(verify.identical()?));
    Ok(())
}

#[test]
fn debian_12_boots_from_its_disk_and_replays() -> Result<()> {
    boots_and_replays("12")
}

#[test]
fn debian_13_boots_from_its_disk_and_replays() -> Result<()> {
    boots_and_replays("13")
}

/// A protected machine: its hosts' network, its nodes, and their disks.
struct Protected {
    pair: Pair,
    nodes: [Option<Node>; 2],
    disks: [PathBuf; 2],
    /// The host that runs it.
    live: usize,
}

impl Protected {
    fn open(dir: &Path, version: &str) -> Result<Self> {
        let disks = ["first.img", "second.img"].map(|name| dir.join(name));
        copy_stock(version, &disks[0])?;
        File::create(&disks[1])?.set_len(disks[0].metadata()?.len())?;
        let pair = Pair::create(dir, Arbiter::File, Duration::from_millis(250), Duration::from_secs(5))?;
        let mut this = Self {
            pair,
            nodes: [None, None],
            disks,
            live: 0,
        };
        this.start(0)?;
        this.live()?.wait_for_state("not-protected (need-backup)", LIMIT)?;
        this.live()?.run.wait_for("debian login:", LIMIT)?;
        this.protect()?;
        Ok(this)
    }

    fn start(&mut self, host: usize) -> Result<()> {
        let disk = &self.disks[host];
        self.nodes[host] = Some(self.pair.start_auto(host, |run| boot_stock(run, disk))?);
        Ok(())
    }

    fn live(&self) -> Result<&Node> {
        self.nodes[self.live].as_ref().context("nobody runs the machine")
    }

    /// The other host begins, and the machine is protected.
    fn protect(&mut self) -> Result<()> {
        let other = 1 - self.live;
        self.start(other)?;
        let node = self.nodes[other].as_ref().context("it has not begun")?;
        node.wait_for_state("standby: protected", LIMIT)?;
        self.live()?.wait_for_state("protected", LIMIT)
    }

    /// The power of the host that runs it fails.
    fn kill(&mut self) -> Result<()> {
        let dead = self.nodes[self.live].take().context("nobody runs the machine")?;
        dead.kill()?;
        self.live = 1 - self.live;
        Ok(())
    }

    fn ask(&self, command: &str) -> Result<String> {
        ask(&self.pair.network.client, command)
    }
}

/// Connections and transactions of the load.
const CLIENTS: usize = 4;
const SCRIPT: &str = "\\set aid random(1, 100000)\n\
                      BEGIN;\n\
                      UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;\n\
                      INSERT INTO ledger (client) VALUES (:client_id);\n\
                      END;\n";

/// Has its database listen outside, and makes the load's tables.
fn prepare_database(this: &Protected) -> Result<()> {
    this.ask(
        "cd / && echo 'host all all 10.77.0.0/24 trust' >>$(ls /etc/postgresql/*/main/pg_hba.conf) && \
         su postgres -c \"psql -qc \\\"ALTER SYSTEM SET listen_addresses = '*'\\\"\" && systemctl restart postgresql && \
         su postgres -c 'createdb bench && pgbench -q -i -s 1 bench && \
         psql -qc \"CREATE TABLE ledger (n serial PRIMARY KEY, client int)\" bench'",
    )
    .map(drop)
}

/// Transactions that each connection was told were committed: pgbench's own log has a line for each.
fn committed(dir: &Path) -> Result<BTreeMap<u32, u64>> {
    let mut told = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("commits."))
        {
            for line in fs::read_to_string(path)?.lines() {
                let client = line.split(' ').next().and_then(|number| number.parse().ok());
                *told.entry(client.context("pgbench's log")?).or_default() += 1;
            }
        }
    }
    Ok(told)
}

/// Load of PostgreSQL's own client while the primary dies: connections stay, and what was committed is there.
fn survives_a_kill_under_pgbench(this: &mut Protected, version: &str, dir: &Path, seconds: u64) -> Result<()> {
    prepare_database(this)?;
    let client = &this.pair.network.client;
    let session = Run::program(ssh(
        client,
        "i=0; while [ $i -lt 100000 ]; do echo TICK $i.; i=$((i + 1)); sleep 1; done",
    ));
    let session = session.start()?;
    session.wait_for("TICK 1.", LIMIT)?;
    let script = dir.join("script.sql");
    fs::write(&script, SCRIPT)?;
    let mut load = postgres(version, client, "pgbench");
    load.args([
        "-n",
        "-P",
        "2",
        "-l",
        "-c",
        &CLIENTS.to_string(),
        "-T",
        &seconds.to_string(),
        "-f",
    ])
    .arg(&script)
    .arg("--log-prefix")
    .arg(dir.join("commits"));
    let load = Run::program(load).start()?;
    load.messages.wait_for("progress: 1", LIMIT)?;
    this.kill()?;
    this.live()?.wait_for_state("not-protected (lost-connection)", LIMIT)?;
    let outcome = load.wait(LIMIT + Duration::from_secs(2 * seconds))?;
    println!("{}{}", outcome.console, outcome.messages);
    ensure!(outcome.status.success(), "{outcome:?}");
    session.wait_for("TICK", LIMIT)?;
    session.wait_for("TICK", LIMIT)?;
    let told = committed(dir)?;
    let rows = check(postgres(version, &this.pair.network.client, "psql").args([
        "-AtF",
        " ",
        "-c",
        "SELECT client, count(*) FROM ledger GROUP BY client",
    ]))?;
    let rows: BTreeMap<u32, u64> = rows
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(client, count)| Ok((client.parse()?, count.parse()?)))
        .collect::<Result<_>>()?;
    println!("committed, by the client {told:?}, by the database {rows:?}");
    ensure!(told.len() == CLIENTS && told == rows, "{told:?}: {rows:?}");
    Ok(())
}

#[test]
fn a_pair_of_debian_12_keeps_every_commit_through_a_kill() -> Result<()> {
    if !can() || !ordinary_host()? {
        return Ok(());
    }
    let dir = work_dir("stock-debian-pair")?;
    let mut this = Protected::open(&dir, "12")?;
    survives_a_kill_under_pgbench(&mut this, "12", &dir, 60)?;
    this.protect()?;
    println!("protected again: {}", this.ask("uptime")?);
    Ok(())
}

/// What a node says that boots its machine anew.
const ANEW: &str = "this node starts over and boots it anew";

impl Protected {
    /// Waits until the machine, which resets, is protected again, unasked; it may still be booting.
    fn is_protected_again(&self) -> Result<()> {
        let live = self.live()?;
        live.run.messages.wait_for(ANEW, LIMIT)?;
        let is_protected = |status: &Value| Ok(status["state"] == "protected" && status["role"] == "primary");
        wait_for_status(&self.pair.socket(live.host), LIMIT, is_protected).map(drop)
    }

    /// Types a command over ssh whose machine does not stay to tell how it ended.
    fn type_last(&self, command: &str) -> Result<()> {
        ssh(&self.pair.network.client, command).output()?;
        Ok(())
    }

    /// It comes up, and runs this kernel.
    fn comes_up(&self, release: &str) -> Result<()> {
        self.live()?.run.wait_for("debian login:", LIMIT)?;
        let said = self.ask("systemctl is-system-running --wait; uname -r")?;
        ensure!(said.trim() == format!("running\n{release}"), "{said}");
        Ok(())
    }
}

/// A person's day with it: apt brings a kernel, a reboot runs it, a host dies while it boots, the kernel panics, the machine is powered off.
#[test]
fn a_pair_of_debian_12_is_upgraded_and_rebooted_and_panics() -> Result<()> {
    if !can() || !require_program("python3", "python3") || !ordinary_host()? {
        return Ok(());
    }
    let dir = work_dir("stock-debian-reboot")?;
    let mut this = Protected::open(&dir, "12")?;
    let (package, release) = newer_kernel("12")?;
    let before = this.ask("uname -r")?;
    ensure!(before.trim() != release, "it runs {release} already");
    println!("protected, running {}", before.trim());
    let (server, source) = repository("12", &this.pair.network.client)?;
    let said = this.ask(&format!(
        "echo '{source}' >/etc/apt/sources.list && apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy install {package}"
    ))?;
    println!("apt: {said}");
    drop(server);

    this.type_last("reboot")?;
    this.is_protected_again()?;
    this.comes_up(&release)?;
    println!("rebooted into {release}, protected");

    this.type_last("reboot")?;
    this.is_protected_again()?;
    this.kill()?;
    this.live()?.wait_for_state("not-protected (lost-connection)", LIMIT)?;
    this.comes_up(&release)?;
    this.protect()?;
    println!("killed while it booted; it came up on the other host, protected");

    this.type_last("echo c >/proc/sysrq-trigger")?;
    this.is_protected_again()?;
    this.comes_up(&release)?;
    println!("panicked, booted, protected");

    this.type_last("poweroff")?;
    let live = this.nodes[this.live].take().context("nobody runs the machine")?;
    let report = live.run.wait(LIMIT)?.report()?;
    ensure!(report["ended"] == "the guest powered off", "{report}");
    Ok(())
}
