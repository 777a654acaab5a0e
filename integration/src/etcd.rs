//! An etcd of one member, as a witness for tests and the demo. It ends with what started it.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::http::ask;
use crate::net::{Namespace, inside};
use crate::process::{self, bound};

/// How long etcd may take until it answers; it elects itself in a second.
const START_LIMIT: Duration = Duration::from_secs(30);
/// From one look at its health to the next.
const POLL: Duration = Duration::from_millis(20);

/// The files of a member that wants TLS from both sides.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The CA of the clients.
    pub ca: PathBuf,
    /// The member's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// What a member's data outlive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The machine's death, as in service: its answers wait for the disk.
    Machine,
    /// The process' death: nothing is synced. A test kills the process and never the machine, whose memory has what was
    /// written: it means the same, and does not fail where a disk that others use takes longer than a request may.
    Process,
}

/// A member that runs, or ran.
#[derive(Debug)]
pub struct Etcd {
    /// Where its data and its log are.
    directory: PathBuf,
    tls: Option<Tls>,
    /// For clients, for peers, and for its health, which is told without TLS.
    ports: [u16; 3],
    /// The namespace that it runs in, and its address there.
    place: Option<(String, Ipv4Addr)>,
    durability: Durability,
    /// More flags.
    flags: Vec<String>,
    child: Option<Child>,
}

impl Etcd {
    /// Starts one for a test, whose files are in `directory`, and waits until it answers.
    pub fn start(directory: &Path, tls: Option<Tls>) -> Result<Self> {
        // All three at once, so that they differ.
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0"));
        let mut ports = [0; 3];
        for (port, listener) in ports.iter_mut().zip(listeners) {
            *port = listener?.local_addr()?.port();
        }
        let mut etcd = Self {
            directory: directory.into(),
            tls,
            ports,
            place: None,
            durability: Durability::Process,
            flags: Vec::new(),
            child: None,
        };
        etcd.run()?;
        Ok(etcd)
    }

    /// Starts one without TLS in `namespace`, at this address of it.
    pub fn start_inside(
        namespace: &Namespace,
        address: Ipv4Addr,
        directory: &Path,
        durability: Durability,
    ) -> Result<Self> {
        let mut etcd = Self {
            directory: directory.into(),
            tls: None,
            // etcd's own; nobody else is in the namespace.
            ports: [2379, 2380, 2381],
            place: Some((namespace.name().into(), address)),
            durability,
            flags: Vec::new(),
            child: None,
        };
        etcd.run()?;
        Ok(etcd)
    }

    /// Starts it again after [`Etcd::kill`], with the same data on the same ports.
    pub fn run(&mut self) -> Result<()> {
        let log = self.directory.join("etcd.log");
        let output = File::options().create(true).append(true).open(&log)?;
        let [client, peer, health] = self.ports;
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let ip = self.ip();
        let client = format!("{scheme}://{ip}:{client}");
        let peer = format!("http://{ip}:{peer}");
        let mut command = match &self.place {
            None => bound("etcd"),
            Some((namespace, _)) => {
                let mut command = bound("ip");
                command.args(["netns", "exec", namespace, "etcd"]);
                command
            }
        };
        command
            .args(["--name", "witness", "--initial-cluster", &format!("witness={peer}")])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--listen-metrics-urls", &format!("http://{ip}:{health}"), "--data-dir"])
            .arg(self.data());
        if self.durability == Durability::Process {
            // Debian's has it, though 3.4 does not tell of it in its help.
            command.arg("--unsafe-no-fsync");
        }
        command.args(&self.flags);
        if let Some(tls) = &self.tls {
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&tls.ca);
            command
                .arg("--cert-file")
                .arg(&tls.cert)
                .arg("--key-file")
                .arg(&tls.key);
        }
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().context("cannot start etcd")?;
        self.child = Some(child);
        let begin = Instant::now();
        while !self.is_healthy() {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || begin.elapsed() > START_LIMIT {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                bail!(
                    "etcd does not answer ({ended:?}): {}",
                    said.lines().last().unwrap_or_default()
                );
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Starts it again with the same data, now with TLS and with these flags too.
    pub fn run_with(&mut self, tls: Tls, flags: &[&str]) -> Result<()> {
        self.kill();
        self.tls = Some(tls);
        self.flags = flags.iter().map(ToString::to_string).collect();
        self.run()
    }

    /// What it has said so far.
    pub fn said(&self) -> Result<String> {
        std::fs::read_to_string(self.directory.join("etcd.log")).context("no log of etcd")
    }

    /// Where its data are.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Its URL for clients. With TLS by the name that its certificate has: `localhost`.
    pub fn url(&self) -> String {
        match &self.tls {
            Some(_) => format!("https://localhost:{}", self.ports[0]),
            None => format!("http://{}:{}", self.ip(), self.ports[0]),
        }
    }

    fn ip(&self) -> Ipv4Addr {
        self.place.as_ref().map_or(Ipv4Addr::LOCALHOST, |(_, ip)| *ip)
    }

    /// Its address for clients.
    pub fn address(&self) -> SocketAddr {
        (self.ip(), self.ports[0]).into()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("etcd does not run")?;
        process::signal(child, signal)
    }

    /// Kills it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a request to a member without TLS: a path of its v3 API and JSON. Returns the whole answer.
    pub fn post(&self, path: &str, body: &str) -> Result<String> {
        let length = body.len();
        let request = format!("POST {path} HTTP/1.0\r\nhost: etcd\r\ncontent-length: {length}\r\n\r\n{body}");
        let ask = || ask(self.address(), &request);
        match &self.place {
            None => ask(),
            Some((namespace, _)) => inside(namespace, ask),
        }
    }

    fn is_healthy(&self) -> bool {
        let health = (self.ip(), self.ports[2]).into();
        let ask = || ask(health, "GET /health HTTP/1.0\r\nhost: etcd\r\n\r\n");
        let answer = match &self.place {
            None => ask(),
            Some((namespace, _)) => inside(namespace, ask),
        };
        answer.is_ok_and(|answer| answer.contains(r#""health":"true""#))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
