//! `promote`: makes this node the machine's owner by force. For a machine whose owner is lost for good; what that one had
//! and this node's disk has not is lost. It works while no process of the machine runs here: the disks' locks see to it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use lockstep_proto::session::Record;

use super::arbiter::ArbiterOptions;
use super::args::parse_disk;
use super::sockets;
use crate::api::{self, ClientError};
use crate::arbiter::{Arbiter, Kept, Outcome, in_words};
use crate::devices::HostDevices;
use crate::host::size::seen_directory;
use crate::say;
use crate::start::DiskOption;

/// How often the other host is called.
const CALLS: u32 = 5;
/// How long each call waits for an answer.
const CALL: Duration = Duration::from_millis(300);
/// A QUIC packet of a version that nobody speaks: whoever listens answers with those that it does (RFC 9000, 6.1).
const STRANGE_VERSION: u32 = 0x0a1a_2a3a;
/// The least size of such a packet.
const CALL_BYTES: usize = 1200;

/// Whom to promote, and the operator's word for what no program can know.
#[derive(Args)]
pub struct PromoteOptions {
    /// The machine.
    #[arg(value_name = "NAME", requires = "arbiter")]
    name: String,
    /// This node's name.
    #[arg(long, value_name = "NODE")]
    node: String,
    #[command(flatten)]
    arbiter: ArbiterOptions,
    /// Where the other node listens: nothing is done if its host answers there.
    #[arg(long, value_name = "IP:PORT")]
    peer: Option<SocketAddr>,
    /// The machine's disks on this host, as `run` has them; their marks as a backup's are removed.
    #[arg(long, value_name = "FILE[,ro]", value_parser = parse_disk)]
    disk: Vec<DiskOption>,
    /// You know that what the other host has, and this node's disk has not, will be lost.
    #[arg(long)]
    force: bool,
    /// You have made sure that the other host is off, and stays off until it is told to stand by.
    #[arg(long)]
    peer_is_powered_off: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Rewrites the record and makes the disks bootable.
pub fn run(options: &PromoteOptions) -> Result<ExitCode> {
    if !(options.force && options.peer_is_powered_off) {
        bail!(
            "promote takes the machine away from its owner. It needs --force, because whatever the owner acknowledged and \
             this node's disk does not have is lost; and --peer-is-powered-off, because an owner that still runs and does \
             not see the arbiter goes on beside the new one until it has to ask. Nothing was changed"
        );
    }
    match api::client::status(&sockets::of(&options.name)) {
        Err(ClientError::Missing(_) | ClientError::Dead(_)) => {}
        Ok(report) => bail!(
            "the machine's process runs on this host and is `{}`; end it first. A backup that is in sync needs no force: it \
             goes on by itself once the arbiter answers",
            report.words()
        ),
        Err(error) => return Err(error).context("cannot tell whether the machine's process runs on this host"),
    }
    if let Some(peer) = options.peer
        && answers(peer)?
    {
        bail!("the other host answers at {peer}: it is not powered off. Nothing was changed");
    }
    // Locks the images: no process of this node uses them.
    let mut devices = HostDevices::open(&options.disk, &[])?;
    let mut arbiter = options.arbiter.open(&options.name)?;
    let kept = Kept::new(&seen_directory(), &options.name, &options.node);
    let (old, new) = take(arbiter.as_mut(), &kept, &options.node)?;
    let before = in_words(old.as_ref());
    tracing::warn!("the record was rewritten by force: {new} (before: {before})");
    devices
        .promote(&format!(
            "{} of machine {} became its owner by force in term {}, after {before}\n",
            options.node, options.name, new.term
        ))
        .context("the record names this node now, but a disk is still marked as a backup's; remove its mark by hand")?;
    if options.json {
        say!("{}", serde_json::json!({"term": new.term.get(), "owner": new.owner}));
    } else {
        say!(
            "node `{}` owns machine `{}` in term {} (before: {before}). Start it: lockstep-backup run --role auto",
            new.owner,
            options.name,
            new.term
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes `node` the owner. Returns the record before and after.
fn take(arbiter: &mut dyn Arbiter, kept: &Kept, node: &str) -> Result<(Option<Record>, Record)> {
    let old = arbiter.read()?;
    kept.check(old.as_ref())?;
    if let Some(record) = old.as_ref() {
        ensure!(
            record.owner != node,
            "node `{node}` is the machine's owner already (term {}): start it, lockstep-backup run --role auto",
            record.term
        );
    }
    let new = old.clone().unwrap_or_default().alone(node);
    match arbiter.compare_and_set(old.as_ref(), &new)? {
        Outcome::Done => {
            kept.keep(&new);
            Ok((old, new))
        }
        Outcome::Changed(now) => bail!(
            "the record was changed meanwhile (now: {}): somebody lives. Nothing was changed",
            in_words(now.as_ref())
        ),
    }
}

/// Whether a host answers at this address: with QUIC, or that nobody listens there.
pub fn answers(peer: SocketAddr) -> Result<bool> {
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).context("cannot make a socket to call the other host")?;
    socket.set_read_timeout(Some(CALL))?;
    socket
        .connect(peer)
        .with_context(|| format!("cannot call the other host at {peer}"))?;
    let mut call = vec![0; CALL_BYTES];
    // Long header; version; two connection numbers of eight bytes.
    call[0] = 0xc0;
    call[1..5].copy_from_slice(&STRANGE_VERSION.to_be_bytes());
    call[5] = 8;
    call[14] = 8;
    for _ in 0..CALLS {
        // What keeps a call from leaving tells nothing about the other host; a refusal from an earlier call does.
        let heard = socket.send(&call).and_then(|_| socket.recv(&mut [0; CALL_BYTES]));
        match heard {
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(true),
            Err(error) => tracing::debug!("no answer from {peer}: {error}"),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use lockstep_proto::quantity::Term;

    use super::*;
    use crate::arbiter::{Spec, open};

    #[test]
    fn the_record_is_taken_from_a_dead_owner_and_from_nobody_else() {
        let home = tempfile::tempdir().unwrap();
        let mut arbiter = open(&Spec::File(home.path().into()), None, None, "m").unwrap();
        let theirs = Record {
            term: Term::new(7),
            owner: "a".into(),
            peer: None,
        };
        arbiter.compare_and_set(None, &theirs).unwrap();
        let kept = Kept::new(&home.path().join("seen"), "m", "b");
        let (old, new) = take(arbiter.as_mut(), &kept, "b").unwrap();
        assert_eq!(old, Some(theirs));
        assert_eq!((new.term, new.owner.as_str(), &new.peer), (Term::new(8), "b", &None));
        let again = take(arbiter.as_mut(), &kept, "b").unwrap_err().to_string();
        assert!(again.contains("already"), "{again}");
        assert_eq!(arbiter.read().unwrap(), Some(new));
    }

    #[test]
    fn a_host_that_is_up_answers_though_nobody_listens() {
        let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(answers(free).unwrap());
        // One that swallows what comes is silent.
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(!answers(silent.local_addr().unwrap()).unwrap());
    }
}
