//! The network of a pair: each host has a bridge with the guest's tap device and a cable to the switch.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::net::{Namespace, TAP};

/// Bits of the network that all of them are in.
const PREFIX: u8 = 24;

/// The witness' address.
pub const WITNESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);

/// Namespaces joined by a switch. Dropping it removes all of them.
pub struct Network {
    /// The hosts `a` and `b`.
    pub hosts: [Host; 2],
    /// Where clients run.
    pub client: Namespace,
    /// Where a witness runs, at [`WITNESS`].
    pub witness: Namespace,
    _switch: Namespace,
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
        add_bridge(&switch)?;
        let host = |name, ip| -> Result<Host> {
            let namespace = Namespace::empty()?;
            add_bridge(&namespace)?;
            namespace.add_tap()?;
            namespace.ip(&["link", "set", TAP, "master", "br0"])?;
            plug(&namespace, &switch, name)?;
            namespace.ip(&["link", "set", "uplink", "master", "br0"])?;
            namespace.ip(&["addr", "add", &format!("{ip}/{PREFIX}"), "dev", "br0"])?;
            Ok(Host { name, ip, namespace })
        };
        let hosts = [host("a", "10.77.0.11")?, host("b", "10.77.0.12")?];
        let station = |name, ip| -> Result<Namespace> {
            let namespace = Namespace::empty()?;
            plug(&namespace, &switch, name)?;
            namespace.ip(&["addr", "add", &format!("{ip}/{PREFIX}"), "dev", "uplink"])?;
            Ok(namespace)
        };
        Ok(Self {
            hosts,
            client: station("client", Ipv4Addr::new(10, 77, 0, 1))?,
            witness: station("witness", WITNESS)?,
            _switch: switch,
        })
    }

    /// Cuts a host's cable, or mends it.
    pub fn set_cable(&self, host: usize, plugged: bool) -> Result<()> {
        let state = if plugged { "up" } else { "down" };
        self.hosts[host].namespace.ip(&["link", "set", "uplink", state])
    }
}

fn add_bridge(namespace: &Namespace) -> Result<()> {
    // No spanning tree: a port forwards as soon as it is up.
    namespace.ip(&[
        "link",
        "add",
        "br0",
        "type",
        "bridge",
        "forward_delay",
        "0",
        "mcast_snooping",
        "0",
    ])?;
    namespace.ip(&["link", "set", "br0", "addrgenmode", "none"])?;
    namespace.ip(&["link", "set", "br0", "up"])
}

/// A cable from `uplink` in `namespace` to the switch.
fn plug(namespace: &Namespace, switch: &Namespace, name: &str) -> Result<()> {
    let port = format!("to-{name}");
    switch.ip(&[
        "link",
        "add",
        &port,
        "type",
        "veth",
        "peer",
        "name",
        "uplink",
        "netns",
        namespace.name(),
    ])?;
    for (end, device) in [(switch, port.as_str()), (namespace, "uplink")] {
        end.ip(&["link", "set", device, "addrgenmode", "none"])?;
        end.ip(&["link", "set", device, "up"])?;
    }
    switch.ip(&["link", "set", &port, "master", "br0"])
}
