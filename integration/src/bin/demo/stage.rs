//! What happens in the demo, in order.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use lockstep_integration::http::{body, get};
use lockstep_integration::load::redis_cli;
use lockstep_integration::net::{GUEST, GUEST_IP, inside};
use lockstep_integration::pair::{Arbiter, BUSY, Counter, Node, Pair, number, status};
use lockstep_integration::paths::{program, target_dir};
use lockstep_integration::prometheus::check_metrics;
use lockstep_integration::{Guest, Run, gate};
use rustix::fs::{FlockOperation, flock};

use super::display::Display;
use super::logs::Logs;
use super::table::{Death, Results};

const BOOT_LIMIT: Duration = Duration::from_secs(240);
const LIMIT: Duration = Duration::from_secs(60);
/// How long the client counts between two events.
const ACT: Duration = Duration::from_secs(10);
/// From one look at a signal to the next while the machine is kept.
const LOOK: Duration = Duration::from_secs(1);
const HEARTBEAT: Duration = Duration::from_millis(50);
const DEADLINE: Duration = Duration::from_millis(500);
const FREE_MIB: u64 = 500;
const KEY: &str = "counter";
/// Where the last node serves its metrics: on the loopback of its host.
const METRICS: &str = "127.0.0.1:9470";

/// The demo's directory, held by one demo at a time.
struct Place {
    dir: PathBuf,
    _lock: File,
}

/// Plays it. Returns whether everything went as promised.
pub fn play(stopped: &Receiver<()>) -> Result<bool> {
    let place = take_place()?;
    let stage = Stage {
        pair: Pair::create(&place.dir, Arbiter::Etcd, HEARTBEAT, DEADLINE)?,
        display: Display::new(),
        logs: Logs::new(&place.dir),
        stopped,
    };
    stage
        .display
        .say("two hosts, a witness (etcd) and a client are in network namespaces, joined by a bridge");
    let result = stage.run(&place.dir);
    // However it went.
    let files = stage.logs.finish();
    match files {
        Ok(files) => stage.display.say(&format!("what the nodes said is in {files}")),
        Err(error) => stage
            .display
            .say(&format!("what the nodes said is not kept: {error:#}")),
    }
    result
}

fn take_place() -> Result<Place> {
    gate::kvm()
        .and_then(|()| gate::root_net())
        .and_then(|()| gate::program_in_path("etcd", "etcd-server"))
        .map_err(|reason| anyhow::anyhow!("cannot run here: {reason}"))?;
    let dir = target_dir().join("demo");
    fs::create_dir_all(target_dir())?;
    let lock = File::create(target_dir().join("demo.lock"))?;
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another demo runs here: wait for it, or end it");
    }
    let space = rustix::fs::statvfs(target_dir())?;
    let free = (space.f_bavail * space.f_frsize) >> 20;
    if free < FREE_MIB {
        bail!(
            "only {free} MiB are free in {}; the demo needs {FREE_MIB}",
            target_dir().display()
        );
    }
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(Place { dir, _lock: lock })
}

struct Stage<'a> {
    pair: Pair,
    display: Display,
    logs: Logs,
    stopped: &'a Receiver<()>,
}

impl Stage<'_> {
    fn run(&self, dir: &Path) -> Result<bool> {
        let guest = Guest::find()?;
        self.display
            .say("host b stands by; host a boots Linux with Redis and is protected while it boots (about 20 s)");
        let second = self.start_backup(1, |run| run)?;
        let words = format!("lockstep.run=redis lockstep.ip={GUEST}");
        let first = self
            .pair
            .start_primary(0, |run| run.boot(&guest, &guest.redis, 64, &words))?;
        self.logs.add(self.name(&first), &first);
        self.wait(|| first.wait_for_state("protected", Duration::from_secs(1)), LIMIT)?;
        self.wait(
            || first.run.wait_for("LOCKSTEP-READY", Duration::from_secs(1)),
            BOOT_LIMIT,
        )?;
        let mut pauses = vec![pause(&first)?];
        self.display.say(&format!(
            "Redis answers at {GUEST_IP}; a client counts with INCR on one TCP connection"
        ));
        let counter = Counter::start(&self.pair.network.client, KEY, BUSY)?;
        self.count(&counter, &[&first, &second])?;

        let mut deaths = vec![self.kill(first, &second, &counter)?];
        self.count(&counter, &[&second])?;
        self.display.say("a new backup joins on host a, while the machine runs");
        let third = self.start_backup(0, |run| run.args(["--metrics", METRICS]))?;
        self.wait(|| second.wait_for_state("protected", Duration::from_secs(1)), LIMIT)?;
        pauses.push(pause(&second)?);
        self.count(&counter, &[&second, &third])?;
        deaths.push(self.kill(second, &third, &counter)?);
        self.count(&counter, &[&third])?;

        self.scrape(&third, dir)?;
        let tally = counter.finish()?;
        let value = redis_cli(&self.pair.network.client, &["get", KEY])?.parse()?;
        let results = Results {
            tally,
            value,
            deaths,
            pauses,
            host: lockstep_vmm::probe::at_start()?.kind,
        };
        results.tell(dir)?;
        if std::env::var_os("KEEP").is_some_and(|keep| keep == "1") {
            self.keep(&third)?;
        }
        third.run.terminate()?;
        Ok(results.is_good())
    }

    fn start_backup(&self, host: usize, with: impl FnOnce(Run) -> Run) -> Result<Node> {
        let node = self.pair.start_backup(host, with)?;
        self.logs.add(self.name(&node), &node);
        Ok(node)
    }

    /// The name of a node's host.
    fn name(&self, node: &Node) -> &'static str {
        self.pair.network.hosts[node.host].name
    }

    /// Tries until it succeeds; a signal ends it.
    fn wait(&self, mut attempt: impl FnMut() -> Result<()>, limit: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            self.interrupted(Duration::ZERO)?;
            match attempt() {
                Ok(()) => return Ok(()),
                Err(error) if begin.elapsed() > limit => return Err(error),
                Err(_) => {}
            }
        }
    }

    fn interrupted(&self, wait: Duration) -> Result<()> {
        match self.stopped.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => bail!("interrupted; everything that was set up is removed"),
        }
    }

    /// Lets the client count, and tells how it goes. The first of the nodes runs the machine.
    fn count(&self, counter: &Counter, nodes: &[&Node]) -> Result<()> {
        let begin = Instant::now();
        let (mut before, mut since) = (counter.answers(), begin);
        while begin.elapsed() < ACT {
            self.interrupted(self.display.every())?;
            let (answers, now) = (counter.answers(), Instant::now());
            let rate = (answers - before) as f64 / (now - since).as_secs_f64();
            let lag = self
                .lag(nodes[0])
                .map_or_else(|| "-".into(), |lag| format!("{lag:.1} ms"));
            let states: Vec<_> = nodes
                .iter()
                .map(|node| format!("host {}: {}", self.name(node), node.state()))
                .collect();
            self.display.show(&format!(
                "{answers:6} answers, {rate:4.0} a second   lag {lag:>8}   {}",
                states.join("   ")
            ));
            self.logs.write()?;
            if counter.has_ended() {
                bail!("the client's connection broke");
            }
            (before, since) = (answers, now);
        }
        self.display.close();
        Ok(())
    }

    /// How far the backup's execution is behind, in milliseconds; `None`: there is no backup in sync, or no answer.
    fn lag(&self, primary: &Node) -> Option<f64> {
        let status = status(&self.pair.socket(primary.host)).ok()?;
        (status["state"] == "protected").then(|| number(&status, "lag_ms").ok())?
    }

    /// Kills `victim`, and waits for answers from `heir`.
    fn kill(&self, victim: Node, heir: &Node, counter: &Counter) -> Result<Death> {
        self.display
            .say(&format!("SIGKILL for the primary on host {}", self.name(&victim)));
        counter.take_silence();
        victim.run.kill()?;
        counter.wait_for(2, LIMIT)?;
        let silence = counter.take_silence();
        let to_live = heir
            .number("silence_ms")
            .context("the backup did not say when it went live")?;
        self.display.say(&format!(
            "host {} goes on; the client heard nothing for {} ms",
            self.name(heir),
            silence.as_millis()
        ));
        Ok(Death {
            silence,
            to_live: Duration::from_millis(to_live),
        })
    }

    /// Leaves the machine up, protected again, until a signal comes.
    fn keep(&self, live: &Node) -> Result<()> {
        let host = 1 - live.host;
        self.display.say(&format!(
            "KEEP=1: a backup joins on host {}",
            self.pair.network.hosts[host].name
        ));
        let backup = self.start_backup(host, |run| run)?;
        self.wait(|| live.wait_for_state("protected", Duration::from_secs(1)), LIMIT)?;
        self.display
            .say("KEEP=1: the pair stays up, protected; Ctrl-C ends it. Try, in another terminal:");
        for (what, command) in self.pokes(live, &backup)? {
            println!("  # {what}\n  {command}");
        }
        // The end of the wait is a signal, whatever it is reported as.
        while self.interrupted(LOOK).is_ok() {
            self.logs.write()?;
        }
        Ok(())
    }

    /// Commands to poke the pair with, each with what it does.
    fn pokes(&self, live: &Node, backup: &Node) -> Result<Vec<(String, String)>> {
        // Who was given root by sudo types the commands without it.
        let root = if std::env::var_os("SUDO_USER").is_some() {
            "sudo "
        } else {
            ""
        };
        let tool = program("lockstep-backup")?;
        let ask = |node: &Node, words: &str| {
            let run_dir = self.pair.run_dir(node.host);
            format!(
                "{root}env LOCKSTEP_RUN_DIR={} {} {words}",
                run_dir.display(),
                tool.display()
            )
        };
        let client = self.pair.network.client.name();
        let network = |words: &str| format!("{root}ip netns exec {client} {words}");
        let (here, there) = (self.name(live), self.name(backup));
        Ok(vec![
            (format!("how host {here} is"), ask(live, "status")),
            (format!("how host {there} is"), ask(backup, "status")),
            (
                "what the client counted".into(),
                network(&format!("redis-cli -h {GUEST_IP} get {KEY}")),
            ),
            (
                "see what a takeover costs".into(),
                network(&format!("ping -i 0.2 {GUEST_IP}")),
            ),
            (format!("hand the machine to host {there}"), ask(live, "switchover")),
            (
                format!("or kill its process on host {here}"),
                format!("{root}kill -9 {}", live.run.pid()),
            ),
        ])
    }

    /// Keeps what the last node tells Prometheus, and has promtool look at it where that is installed.
    fn scrape(&self, node: &Node, dir: &Path) -> Result<()> {
        let namespace = &self.pair.network.hosts[node.host].namespace;
        let answer = inside(namespace.name(), || get(METRICS.parse()?, "/metrics"))?;
        let text = body(&answer);
        let file = dir.join("metrics.txt");
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        let checked = match gate::program_in_path("promtool", "prometheus") {
            Ok(()) => {
                check_metrics(text)?;
                "promtool finds nothing wrong with it".to_owned()
            }
            Err(reason) => format!("not checked: {reason}"),
        };
        self.display.say(&format!(
            "{} has what host {} tells Prometheus; {checked}",
            file.display(),
            self.name(node)
        ));
        Ok(())
    }
}

/// The pause that the last join cost.
fn pause(node: &Node) -> Result<Duration> {
    let pause = node
        .number("pause_us")
        .context("the primary did not say how long it paused")?;
    Ok(Duration::from_micros(pause))
}
