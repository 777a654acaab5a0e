//! Hosts as operators are given them: Debian with systemd and sshd in containers, with networks of their own; and Ansible,
//! which makes of them what `deploy` says.

mod controller;
mod host;
mod packages;

use std::path::Path;

use anyhow::Result;

use crate::net::Namespace;

pub use controller::{Controller, Recap};
pub use host::Host;
pub use packages::{current_package, older_package};

/// Where the client is in the guests' network.
const CLIENT: &str = "10.77.0.1/24";
/// Where Ansible runs.
const CONTROLLER: &str = "10.78.0.1/24";

/// Two networks: one that hosts are reached by and send each other the log, and one of guests and their clients.
pub struct Site {
    /// Where Ansible runs.
    pub controller: Namespace,
    /// Where clients of guests run.
    pub client: Namespace,
    management: Namespace,
    lan: Namespace,
}

impl Site {
    /// Builds them, and the root of the hosts if it is not there.
    pub fn create() -> Result<Self> {
        host::make_root()?;
        let (management, lan) = (Namespace::empty()?, Namespace::empty()?);
        management.add_bridge()?;
        lan.add_bridge()?;
        let station = |switch: &Namespace, name, address| -> Result<Namespace> {
            let namespace = Namespace::empty()?;
            namespace.plug("uplink", switch, name)?;
            namespace.ip(&["addr", "add", address, "dev", "uplink"])?;
            Ok(namespace)
        };
        Ok(Self {
            controller: station(&management, "controller", CONTROLLER)?,
            client: station(&lan, "client", CLIENT)?,
            management,
            lan,
        })
    }

    /// A host that is off: `uplink` is its cable to the hosts' network, with these addresses, `lan` the one to the guests'.
    /// Whoever has the key whose public half is in `key` may log in.
    pub fn host(&self, name: &str, addresses: &[&str], dir: &Path, key: &Path) -> Result<Host> {
        let namespace = Namespace::empty()?;
        namespace.plug("uplink", &self.management, name)?;
        namespace.plug("lan", &self.lan, name)?;
        for address in addresses {
            namespace.ip(&["addr", "add", &format!("{address}/24"), "dev", "uplink"])?;
        }
        Host::new(name, namespace, dir, key)
    }
}
