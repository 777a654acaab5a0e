//! Certificates, arbiter and peer.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use lockstep_node::arbiter::{Endpoint, Login, Spec};
use lockstep_node::cli::node::NodeArgs;
use lockstep_node::cli::promote;
use lockstep_node::pki;
use lockstep_node::start::NicOption;
use lockstep_proto::{Hello, MachineConfig, NicConfig};
use lockstep_vmm::cpu::profile::Profile;
use lockstep_vmm::probe;

use super::Finding;
use crate::link::greet::{self, Greeting};

/// A certificate that ends sooner is warned of: renewing it takes a person.
const SOON: Duration = Duration::from_secs(30 * 86_400);

/// What can be told from this host's files.
pub(super) fn check_files(node: &NodeArgs) -> Vec<Finding> {
    let mut findings = vec![match node.pair.timing() {
        Ok(timing) => Finding::pass(
            "timing",
            format!(
                "a heartbeat every {} ms, suspicion after {} ms",
                timing.heartbeat_ns / 1_000_000,
                timing.deadline_ns / 1_000_000
            ),
        ),
        Err(error) => Finding::fail(
            "timing",
            error.to_string(),
            "set deadline-ms to at least twice heartbeat-ms",
        ),
    }];
    findings.push(certificate(node));
    findings.extend(node.pair.arbiter_cert.as_deref().map(arbiter_certificate));
    if let Ok(Some(login)) = node.pair.login() {
        findings.push(arbiter_password(&login));
    }
    findings.push(witness(node));
    findings
}

/// How to renew a node's own.
const RENEW: &str = "lockstep-primary pki renew where the CA's key is, and copy the files";

fn certificate(node: &NodeArgs) -> Finding {
    let pair = &node.pair;
    if let Err(error) = pair.credentials() {
        return Finding::fail("certificate", format!("{error:#}"), RENEW);
    }
    match pki::load_identity(&pair.pki, &pair.node) {
        Err(error) => Finding::fail("certificate", error.to_string(), RENEW),
        Ok(identity) => lasts(
            "certificate",
            &format!("that of `{}`", pair.node),
            identity.not_after,
            RENEW,
        ),
    }
}

/// The certificate that this node shows to the arbiter, which may be of another CA.
fn arbiter_certificate(path: &Path) -> Finding {
    let renew = "have it renewed by whoever made it, and copy it with its key";
    match last_second(path) {
        Ok(not_after) => lasts("arbiter-cert", &path.display().to_string(), not_after, renew),
        Err(error) => Finding::fail("arbiter-cert", format!("{error:#}"), renew),
    }
}

/// The password of the arbiter's user. Whether it is the right one the arbiter tells.
fn arbiter_password(login: &Login) -> Finding {
    match login.check() {
        Ok(()) => Finding::pass(
            "arbiter-password-file",
            format!(
                "{} can be read, and by its owner alone",
                login.password_file().display()
            ),
        ),
        Err(error) => Finding::fail(
            "arbiter-password-file",
            error.to_string(),
            "write the password of arbiter-user into it, give it to the user that runs the machine, and `chmod 600` it",
        ),
    }
}

/// When the first certificate of a file ends: what leads to the CA comes behind it.
fn last_second(path: &Path) -> Result<SystemTime> {
    let found = pki::certificates(path)?;
    let first = found.first().context("there is no certificate in it")?;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(first).with_context(|| format!("{} cannot be used", path.display()))?;
    let seconds = parsed.validity().not_after.timestamp().try_into().unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// How long a certificate is valid yet.
fn lasts(check: &'static str, which: &str, not_after: SystemTime, renew: &str) -> Finding {
    match not_after.duration_since(SystemTime::now()) {
        Err(_) => Finding::fail(check, format!("{which} has ended"), renew),
        Ok(left) => {
            let days = left.as_secs() / 86_400;
            let found = format!("{which} is valid for {days} more days");
            if left < SOON {
                Finding::warn(check, found, renew)
            } else {
                Finding::pass(check, found)
            }
        }
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
            let members: Vec<_> = endpoints
                .iter()
                .map(|endpoint| (endpoint.host(), addresses_of(endpoint)))
                .collect();
            members_outlive(&members, |address| is_of_pair(address, node))
        }
    }
}

/// The same, of members with their addresses; without one, a name could not be resolved.
fn members_outlive(members: &[(&str, Vec<IpAddr>)], is_of_pair: impl Fn(IpAddr) -> bool) -> Finding {
    let here = members
        .iter()
        .filter(|(_, addresses)| !addresses.is_empty() && addresses.iter().all(|address| is_of_pair(*address)))
        .count();
    let unknown: Vec<&str> = members
        .iter()
        .filter(|(_, addresses)| addresses.is_empty())
        .map(|(host, _)| *host)
        .collect();
    if here * 2 >= members.len() && here > 0 {
        Finding::fail(
            "witness",
            format!(
                "{here} of {} members of the arbiter's cluster are on hosts of the pair: when that host dies, nobody can take \
                 over",
                members.len()
            ),
            "put etcd on a third machine, or name a cluster with most members elsewhere",
        )
    } else if !unknown.is_empty() {
        Finding::warn(
            "witness",
            format!(
                "no address was found for {}: it may be on a host of the pair, or nowhere",
                unknown.join(", ")
            ),
            "see that both hosts resolve it (DNS or /etc/hosts), or name the arbiter by its addresses",
        )
    } else {
        Finding::pass("witness", "the arbiter does not depend on a host of the pair")
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
    let remedy =
        "start it, and see that this host reaches it and its certificates, user and password are those that it wants";
    let record = node.pair.open_arbiter().and_then(|mut arbiter| Ok(arbiter.read()?));
    if let Ok(record) = &record
        && let Err(error) = node.pair.kept().check(record.as_ref())
    {
        return Finding::fail(
            "arbiter",
            error.to_string(),
            "put the newer record back, or remove that file",
        );
    }
    match record {
        Err(error) => Finding::fail("arbiter", format!("{error:#}"), remedy),
        Ok(None) => Finding::pass("arbiter", "it answers, and has no record of this machine yet"),
        Ok(Some(record)) => {
            let (ours, theirs) = (&node.pair.node, &node.pair.peer_name);
            let of = |name: &String| name == ours || name == theirs;
            if of(&record.owner) {
                Finding::pass("arbiter", format!("it answers: {record}"))
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

/// What counts of a card where two nodes are compared.
fn of_mtu(nic: &NicOption) -> NicConfig {
    NicConfig {
        mtu: nic.mtu.unwrap_or(0),
        ..NicConfig::default()
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
            nics: node.devices.net.iter().map(of_mtu).collect(),
            ..MachineConfig::default()
        }),
        host_class: probe::host_class()?,
        term: 1,
        heartbeat_ns: timing.heartbeat_ns,
        deadline_ns: timing.deadline_ns,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::preflight::Outcome;

    #[test]
    fn a_certificate_that_ends_soon_is_told() {
        let now = SystemTime::now();
        let outcome = |not_after| lasts("certificate", "it", not_after, RENEW).outcome;
        assert_eq!(outcome(now + SOON + SOON), Outcome::Pass);
        assert_eq!(outcome(now + SOON / 2), Outcome::Warn);
        assert_eq!(outcome(now - SOON), Outcome::Fail);
    }

    #[test]
    fn the_certificate_for_the_arbiter_is_looked_at() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("pki");
        pki::init(&directory).unwrap();
        pki::issue(&directory, "a", pki::Validity::days(300).unwrap()).unwrap();
        pki::issue(&directory, "b", pki::Validity::days(20).unwrap()).unwrap();
        let found = |name: &str| arbiter_certificate(&directory.join(name));
        assert_eq!(found("a.pem").outcome, Outcome::Pass);
        let soon = found("b.pem");
        assert_eq!(soon.outcome, Outcome::Warn);
        assert!(soon.found.contains("b.pem is valid for 19 more days"), "{soon:?}");
        assert_eq!(found("c.pem").outcome, Outcome::Fail);
        assert_eq!(found("a.key").outcome, Outcome::Fail);
    }

    #[test]
    fn a_witness_whose_name_does_not_resolve_may_be_anywhere() {
        let one = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
        let of_pair = |address: IpAddr| address == IpAddr::from([10, 0, 0, 1]);
        let outcome = |members: &[(&str, Vec<IpAddr>)]| members_outlive(members, of_pair).outcome;
        let (here, there) = (("here", one("10.0.0.1")), ("there", one("10.0.0.9")));
        let nowhere = ("nowhere", Vec::new());
        assert_eq!(outcome(std::slice::from_ref(&there)), Outcome::Pass);
        assert_eq!(outcome(std::slice::from_ref(&here)), Outcome::Fail);
        let told = members_outlive(std::slice::from_ref(&nowhere), of_pair);
        assert_eq!(told.outcome, Outcome::Warn);
        assert!(told.found.contains("nowhere"), "{told:?}");
        assert_eq!(outcome(&[there.clone(), here.clone(), nowhere]), Outcome::Warn);
        assert_eq!(outcome(&[there.clone(), here, there]), Outcome::Pass);
    }
}
