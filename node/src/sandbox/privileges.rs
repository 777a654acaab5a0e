//! Capabilities: a node needs none. Where root starts one, it gives up what it has.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// Whether this process is root's.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Gives up all capabilities, and the way to get any. `taps`: but the one by which another user's tap device is opened,
/// where this process has it.
pub(super) fn keep_only(taps: bool) -> io::Result<()> {
    set_no_new_privs(true)?;
    let has = capabilities(None)?;
    if has.permitted.is_empty() {
        return Ok(());
    }
    let wanted = if taps {
        CapabilitySet::NET_ADMIN
    } else {
        CapabilitySet::empty()
    };
    for one in CapabilitySet::all().difference(wanted).iter() {
        // A kernel that does not know it has it in no set.
        if capability_is_in_bounding_set(one).is_ok_and(|is_in| is_in) && has.effective.contains(CapabilitySet::SETPCAP)
        {
            remove_capability_from_bounding_set(one)?;
        }
    }
    clear_ambient_capability_set()?;
    keep(has.permitted.intersection(wanted))
}

/// Gives up the capabilities that this thread has left.
pub(super) fn give_up() -> io::Result<()> {
    if capabilities(None)?.permitted.is_empty() {
        return Ok(());
    }
    keep(CapabilitySet::empty())
}

fn keep(kept: CapabilitySet) -> io::Result<()> {
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}
