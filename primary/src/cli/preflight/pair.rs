//! Certificates, arbiter and peer.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use lockstep_proto::{Hello, MachineConfig};
use lockstep_vmm::cpu::profile::Profile;
use lockstep_vmm::probe;

use super::Finding;
use crate::arbiter::{Endpoint, Spec};
use crate::cli::node::NodeArgs;
use crate::cli::promote;
use crate::link::greet::{self, Greeting};
use crate::pki;

/// A certificate that ends sooner is warned of: renewing it takes a person.
const SOON: Duration = Duration::from_secs(30 * 86_400);

/// What can be told from this host's files.
pub(super) fn check_files(node: &NodeArgs) -> Vec<Finding> {
    let mut findings = vec![match node.pair.timing() {
        Ok(timing) => Finding::pass(
            "timing",
            format!(
                "a heartbeat every {} ms, suspicion after {} ms",
                timing.heartbeat / 1_000_000,
                timing.deadline / 1_000_000
            ),
        ),
        Err(error) => Finding::fail(
            "timing",
            error.to_string(),
            "set deadline-ms to at least twice heartbeat-ms",
        ),
    }];
    findings.push(certificate(node));
    findings.push(witness(node));
    findings
}

fn certificate(node: &NodeArgs) -> Finding {
    let renew = "lockstep-primary pki renew where the CA's key is, and copy the files";
    let pair = &node.pair;
    if let Err(error) = pair.credentials() {
        return Finding::fail("certificate", format!("{error:#}"), renew);
    }
    match pki::load_identity(&pair.pki, &pair.node) {
        Err(error) => Finding::fail("certificate", error.to_string(), renew),
        Ok(identity) => match identity.not_after.duration_since(SystemTime::now()) {
            Err(_) => Finding::fail("certificate", format!("that of `{}` has ended", pair.node), renew),
            Ok(left) => {
                let days = left.as_secs() / 86_400;
                let found = format!("that of `{}` is valid for {days} more days", pair.node);
                if left < SOON {
                    Finding::warn("certificate", found, renew)
                } else {
                    Finding::pass("certificate", found)
                }
            }
        },
    }
}

/// Whether the arbiter outlives either host of the pair.
fn witness(node: &NodeArgs) -> Finding {
    match &node.pair.arbiter {
        Spec::File(directory) => Finding::warn(
            "witness",
            format!("the record is a file in {}", directory.display()),
            "use etcd on a third machine: a file is for both nodes on one host",
        ),
        Spec::Etcd(endpoints) => {
            let of_pair = |endpoint: &&Endpoint| {
                let addresses = addresses_of(endpoint);
                !addresses.is_empty() && addresses.iter().all(|address| is_of_pair(*address, node))
            };
            let here = endpoints.iter().filter(of_pair).count();
            if here * 2 >= endpoints.len() && here > 0 {
                Finding::fail(
                    "witness",
                    format!(
                        "{here} of {} members of the arbiter's cluster are on hosts of the pair: when that host dies, nobody \
                         can take over",
                        endpoints.len()
                    ),
                    "put etcd on a third machine, or name a cluster with most members elsewhere",
                )
            } else {
                Finding::pass("witness", "the arbiter does not depend on a host of the pair")
            }
        }
    }
}

fn addresses_of(endpoint: &Endpoint) -> Vec<IpAddr> {
    let found = (endpoint.host(), endpoint.port()).to_socket_addrs();
    found.map_or_else(|_| Vec::new(), |found| found.map(|address| address.ip()).collect())
}

/// Whether an address is the peer's or one of this host's, which can be bound here.
fn is_of_pair(address: IpAddr, node: &NodeArgs) -> bool {
    address == node.pair.peer.ip() || UdpSocket::bind(SocketAddr::new(address, 0)).is_ok()
}

/// What others say.
pub(super) fn check_others(node: &NodeArgs) -> Vec<Finding> {
    vec![arbiter(node), peer(node)]
}

fn arbiter(node: &NodeArgs) -> Finding {
    let remedy = "start it, and see that this host reaches it and its certificates are those that it wants";
    let record = node.pair.open_arbiter().and_then(|mut arbiter| Ok(arbiter.read()?));
    match record {
        Err(error) => Finding::fail("arbiter", format!("{error:#}"), remedy),
        Ok(None) => Finding::pass("arbiter", "it answers, and has no record of this machine yet"),
        Ok(Some(record)) => {
            let (ours, theirs) = (&node.pair.node, &node.pair.peer_name);
            let of = |name: &String| name == ours || name == theirs;
            if of(&record.owner) {
                Finding::pass("arbiter", format!("it answers: {}", promote::describe(Some(&record))))
            } else {
                Finding::fail(
                    "arbiter",
                    format!(
                        "the machine belongs to node `{}`, which is not of this pair",
                        record.owner
                    ),
                    "set node and peer-name as on the other host, or choose another name for the machine",
                )
            }
        }
    }
}

/// What this node would say as the primary.
fn hello(node: &NodeArgs) -> Result<Hello> {
    let pair = &node.pair;
    let timing = pair.timing()?;
    let profile = Profile::for_this_host().context("this host's CPU has no profile")?;
    Ok(Hello {
        node: pair.node.clone(),
        machine_name: pair.name.clone(),
        machine: Some(MachineConfig {
            cpu_profile: profile.name().into(),
            model_revision: node.boot.model_revision,
            ..MachineConfig::default()
        }),
        host_class: probe::host_class()?,
        term: 1,
        heartbeat_ns: timing.heartbeat,
        deadline_ns: timing.deadline,
        ..Hello::default()
    })
}

fn peer(node: &NodeArgs) -> Finding {
    let pair = &node.pair;
    let start = "start the other node: systemctl start lockstep@NAME";
    let (hello, credentials) = match (hello(node), pair.credentials()) {
        (Ok(hello), Ok(credentials)) => (hello, credentials),
        (Err(error), _) | (_, Err(error)) => {
            let remedy = "mend what else fails on this host";
            return Finding::warn("peer", format!("it cannot be asked: {error:#}"), remedy);
        }
    };
    match greet::greet(pair.peer, &pair.peer_name, &credentials, hello) {
        Ok(Greeting::Busy) => Finding::pass(
            "peer",
            format!("it stands by at {} for the primary that runs", pair.peer),
        ),
        Ok(Greeting::Fits { node, host_class }) => Finding::pass(
            "peer",
            format!(
                "node `{node}` stands by at {} on a host of class `{host_class}`",
                pair.peer
            ),
        ),
        Ok(Greeting::Refused(reason)) => Finding::fail(
            "peer",
            format!("it does not fit: {reason}"),
            "make both hosts and both configurations alike",
        ),
        Err(error) => match promote::answers(pair.peer) {
            Ok(true) => Finding::warn(
                "peer",
                format!("its host answers at {}, but no node does: {error:#}", pair.peer),
                "none, if that node runs the machine now; else start it",
            ),
            _ => Finding::warn("peer", format!("nobody answers at {}: {error:#}", pair.peer), start),
        },
    }
}
