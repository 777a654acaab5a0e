//! The network of a pair: each host has a bridge with the guest's tap device and a cable to the switch.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::net::{BRIDGE, Namespace, TAP};
use crate::process::{check, feed};

/// Bits of the network that all of them are in.
const PREFIX: u8 = 24;
/// The end of a cable in a namespace.
const UPLINK: &str = "uplink";

/// EtherType of what a new host says of a machine's address.
const RARP: u16 = 0x8035;

/// The witness' address.
pub const WITNESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);

/// Namespaces joined by a switch. Dropping it removes all of them.
pub struct Network {
    /// The hosts `a` and `b`.
    pub hosts: [Host; 2],
    /// Where clients run.
    pub client: Namespace,
    /// Where a witness runs, at `WITNESS`.
    pub witness: Namespace,
    switch: Namespace,
}

/// A machine in the network that others may stop hearing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// One of the two hosts.
    Host(usize),
    /// Where the witness runs.
    Witness,
}

/// A host of the pair.
pub struct Host {
    /// Its name, as in its certificate.
    pub name: &'static str,
    /// Its address.
    pub ip: &'static str,
    /// Where it runs.
    pub namespace: Namespace,
}

impl Network {
    /// Builds it.
    pub fn create() -> Result<Self> {
        let switch = Namespace::empty()?;
        switch.add_bridge()?;
        let host = |name, ip| -> Result<Host> {
            let namespace = Namespace::empty()?;
            namespace.add_bridge()?;
            add_tap(&namespace)?;
            namespace.plug(UPLINK, &switch, name)?;
            namespace.ip(&["link", "set", UPLINK, "master", BRIDGE])?;
            namespace.ip(&["addr", "add", &format!("{ip}/{PREFIX}"), "dev", BRIDGE])?;
            Ok(Host { name, ip, namespace })
        };
        let hosts = [host("a", "10.77.0.11")?, host("b", "10.77.0.12")?];
        let station = |name, ip| -> Result<Namespace> {
            let namespace = Namespace::empty()?;
            namespace.plug(UPLINK, &switch, name)?;
            namespace.ip(&["addr", "add", &format!("{ip}/{PREFIX}"), "dev", UPLINK])?;
            Ok(namespace)
        };
        Ok(Self {
            hosts,
            client: station("client", Ipv4Addr::new(10, 77, 0, 1))?,
            witness: station("witness", WITNESS)?,
            switch,
        })
    }

    /// Cuts a host's cable, or mends it.
    pub fn set_cable(&self, host: usize, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        self.hosts[host].namespace.ip(&["link", "set", UPLINK, state])
    }

    /// Makes the guest's tap device on a host again.
    pub fn make_tap(&self, host: usize) -> Result<()> {
        add_tap(&self.hosts[host].namespace)
    }

    /// From now on these, and only these, do not hear each other. The guest and its clients are not cut off.
    pub fn part(&self, cuts: &[(Place, Place)]) -> Result<()> {
        for place in [Place::Host(0), Place::Host(1), Place::Witness] {
            let others = cuts.iter().filter_map(|&(one, other)| match place {
                _ if place == one => Some(other),
                _ if place == other => Some(one),
                _ => None,
            });
            let rules: Vec<String> = others
                .map(|other| format!("ip saddr {} drop", self.address(other)))
                .collect();
            self.rule(place, "cuts", &rules)?;
        }
        Ok(())
    }

    /// From now on so many of a hundred packets between the hosts are lost, in each direction.
    pub fn lose(&self, percent: u8) -> Result<()> {
        for host in 0..self.hosts.len() {
            // What leaves in one piece for several packets would be lost as one.
            let uplink = &self.hosts[host].namespace;
            uplink.ip(&["link", "set", UPLINK, "gso_max_segs", "1"])?;
            let rule = format!("meta l4proto udp numgen random mod 100 < {percent} counter drop");
            self.rule(Place::Host(host), "loss", &[rule])?;
        }
        Ok(())
    }

    /// Packets between the hosts that were lost since [`Network::lose`].
    pub fn lost(&self) -> Result<u64> {
        let mut sum = 0;
        for host in &self.hosts {
            let table = check(host.namespace.command("nft").args(["list", "table", "inet", "loss"]))?;
            sum += counted(&table)?;
        }
        Ok(sum)
    }

    /// Begins to count what tells the network where a machine is now.
    pub fn count_announcements(&self) -> Result<()> {
        let rule = |host: &Host| format!("{} ether type {RARP:#x} counter", comes_from(host));
        let rules = self.hosts.each_ref().map(rule).join("\n");
        let script = format!(
            "table bridge announcements {{\nchain come {{\ntype filter hook prerouting priority 0\n{rules}\n}}\n}}\n"
        );
        feed(self.switch.command("nft").args(["-f", "-"]), &script)
    }

    /// Announcements that a host has sent since [`Network::count_announcements`].
    pub fn announcements(&self, host: usize) -> Result<u64> {
        let table = check(
            self.switch
                .command("nft")
                .args(["list", "table", "bridge", "announcements"]),
        )?;
        let from = comes_from(&self.hosts[host]);
        let rule = table.lines().find(|line| line.contains(&from));
        counted(rule.with_context(|| format!("`{from}` is not in {table}"))?)
    }

    /// Frames that a host's program has sent for the guest so far.
    pub fn frames(&self, host: usize) -> Result<u64> {
        self.tap_counter(host, "rx_packets")
    }

    /// Bytes of frames that came for the guest on a host so far.
    pub fn bytes_in(&self, host: usize) -> Result<u64> {
        self.tap_counter(host, "tx_bytes")
    }

    /// What the host counts at the guest's tap device; its sending is the guest's receiving.
    fn tap_counter(&self, host: usize, name: &str) -> Result<u64> {
        let namespace = &self.hosts[host].namespace;
        let text = check(
            namespace
                .command("cat")
                .arg(format!("/sys/class/net/{TAP}/statistics/{name}")),
        )?;
        text.trim().parse().with_context(|| format!("{text:?} is no number"))
    }

    /// Replaces the rules for what comes in at a place.
    fn rule(&self, place: Place, table: &str, rules: &[String]) -> Result<()> {
        let namespace = match place {
            Place::Host(host) => &self.hosts[host].namespace,
            Place::Witness => &self.witness,
        };
        let rules = rules.join("\n");
        let script = format!(
            "table inet {table}\ndelete table inet {table}\n\
             table inet {table} {{\nchain input {{\ntype filter hook input priority 0\n{rules}\n}}\n}}\n"
        );
        feed(namespace.command("nft").args(["-f", "-"]), &script)
    }

    fn address(&self, place: Place) -> String {
        match place {
            Place::Host(host) => self.hosts[host].ip.into(),
            Place::Witness => WITNESS.to_string(),
        }
    }
}

/// The guest's tap device, in its host's bridge.
fn add_tap(namespace: &Namespace) -> Result<()> {
    namespace.add_tap()?;
    namespace.ip(&["link", "set", TAP, "master", BRIDGE])
}

/// What fits all that comes to the switch from a host.
fn comes_from(host: &Host) -> String {
    format!("iifname \"to-{}\"", host.name)
}

/// The packets of the first counter in what nft lists.
fn counted(listed: &str) -> Result<u64> {
    let counter = listed.split("counter packets ").nth(1).unwrap_or_default();
    let packets = counter.split(' ').next().unwrap_or_default();
    packets.parse().with_context(|| format!("no counter in {listed}"))
}
