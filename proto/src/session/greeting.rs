//! Whether two ends fit each other.

use super::limits::{MAX_NAME_BYTES, PROTOCOL_VERSION, bounded};
use super::{BackupIdentity, Timing};
use crate::quantity::Term;
use crate::{Hello, Welcome};

/// Whether `name` can be a node's.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME_BYTES
}

/// What both will go by, or why the backup does not want this primary, which the transport knows as `primary`.
pub(super) fn check_hello(hello: &Hello, identity: &BackupIdentity, primary: &str) -> Result<Timing, String> {
    if !(hello.version_min..=hello.version_max).contains(&PROTOCOL_VERSION) {
        return Err(format!(
            "the primary speaks protocol versions {} to {} and this program {PROTOCOL_VERSION}",
            hello.version_min, hello.version_max
        ));
    }
    if hello.node != primary {
        return Err("the primary's name is not that of its certificate".into());
    }
    if hello.node == identity.node {
        return Err(format!("both ends are called `{}`", identity.node));
    }
    if hello.machine_name != identity.machine_name {
        return Err(format!(
            "the primary runs machine `{}` and this backup stands by for `{}`",
            bounded(&hello.machine_name),
            identity.machine_name
        ));
    }
    if hello.host_class != identity.host_class {
        return Err(format!(
            "the primary's host is of class `{}` and this host of `{}`",
            bounded(&hello.host_class),
            identity.host_class
        ));
    }
    let Some(machine) = &hello.machine else {
        return Err("the primary does not say what its machine is".into());
    };
    if !identity.model_revisions.contains(&machine.model_revision) {
        return Err(format!(
            "the machine has device model revision {} and this program {} to {}",
            machine.model_revision,
            identity.model_revisions.start(),
            identity.model_revisions.end()
        ));
    }
    // Who only asks may have said nothing of them; how many there are is the machine's affair.
    for (index, (nic, here)) in machine.nics.iter().zip(&identity.nic_mtus).enumerate() {
        if nic.mtu != *here {
            return Err(format!(
                "network card {index} has mtu={} on the primary and mtu={here} on this node (0: none)",
                nic.mtu
            ));
        }
    }
    let term = Term::new(hello.term);
    if term == Term::NONE || term == Term::LAST {
        return Err(format!("{term} is not a term"));
    }
    let timing = Timing {
        heartbeat_ns: hello.heartbeat_ns,
        deadline_ns: hello.deadline_ns,
    };
    if !timing.is_sound() {
        return Err("the heartbeat and the deadline do not fit each other".into());
    }
    Ok(timing)
}

/// Why the primary does not want this backup, which the transport knows as `peer`.
pub(super) fn check_welcome(welcome: &Welcome, hello: &Hello, peer: &str) -> Result<(), String> {
    if welcome.version != PROTOCOL_VERSION {
        return Err(format!("the backup chose protocol version {}", welcome.version));
    }
    if welcome.node != peer {
        return Err("the backup's name is not that of its certificate".into());
    }
    if welcome.host_class != hello.host_class {
        return Err(format!(
            "the backup's host is of class `{}` and this host of `{}`",
            bounded(&welcome.host_class),
            hello.host_class
        ));
    }
    Ok(())
}
