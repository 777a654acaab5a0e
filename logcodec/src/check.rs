//! What single records may hold. How they have to follow each other is checked in `continuity`.
//!
//! The writer runs these checks before it appends and the reader after it decodes. Whoever takes a record from a
//! [`crate::LogReader`] can rely on them: lengths of digests, sizes, and device indices within the machine's devices.

use lockstep_proto::model::MTUS;
use lockstep_proto::{Batch, End, Epoch, Forced, Identity, MachineConfig, SegmentHeader, Turn, VcpuState, end};

use crate::error::Violation;
use crate::limits as max;

/// What devices the machine of a log has; indices in turns are below these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Devices {
    /// Number of disks.
    pub disks: u32,
    /// Number of network cards.
    pub nics: u32,
    /// Whether it has a keyboard.
    pub keyboard: bool,
    /// Whether it has a power button.
    pub power_button: bool,
}

impl Devices {
    /// For a test or a log without a machine: any index.
    pub const ANY: Self = Self {
        disks: u32::MAX,
        nics: u32::MAX,
        keyboard: true,
        power_button: true,
    };

    /// Of a log whose machine is not known.
    pub(crate) const NONE: Self = Self {
        disks: 0,
        nics: 0,
        keyboard: false,
        power_button: false,
    };

    /// The devices of a recorded machine.
    pub fn of(identity: &Identity) -> Self {
        identity.machine.as_ref().map_or(Self::NONE, Self::of_machine)
    }

    /// The devices of a machine.
    pub fn of_machine(machine: &MachineConfig) -> Self {
        Self {
            disks: machine.disks.len() as u32,
            nics: machine.nics.len() as u32,
            keyboard: machine.has_keyboard(),
            power_button: machine.has_power_button(),
        }
    }
}

type Checked = Result<(), Violation>;

fn at_most(what: &'static str, value: usize, limit: usize) -> Checked {
    below_or_at(what, value as u64, limit as u64)
}

fn below_or_at(what: &'static str, value: u64, limit: u64) -> Checked {
    if value > limit {
        Err(Violation::TooMuch { what, value, limit })
    } else {
        Ok(())
    }
}

fn digest(what: &'static str, bytes: &[u8]) -> Checked {
    if bytes.len() != max::DIGEST_BYTES {
        let (found, expected) = (bytes.len() as u64, max::DIGEST_BYTES as u64);
        return Err(Violation::Mismatch { what, found, expected });
    }
    Ok(())
}

fn digest_or_none(what: &'static str, bytes: &[u8]) -> Checked {
    if bytes.is_empty() { Ok(()) } else { digest(what, bytes) }
}

fn below(what: &'static str, index: u32, count: u32) -> Checked {
    if index >= count {
        return Err(Violation::TooMuch {
            what,
            value: index.into(),
            limit: u64::from(count).saturating_sub(1),
        });
    }
    Ok(())
}

/// Checks an identity.
pub fn identity(identity: &Identity) -> Checked {
    let Some(machine) = &identity.machine else {
        return Err(Violation::Rule("an identity has no machine"));
    };
    at_most(
        "length of the program's name",
        identity.program.len(),
        max::MAX_TEXT_BYTES,
    )?;
    at_most(
        "length of the host class",
        identity.host_class.len(),
        max::MAX_TEXT_BYTES,
    )?;
    at_most(
        "length of the kernel's path",
        identity.kernel_path.len(),
        max::MAX_TEXT_BYTES,
    )?;
    at_most(
        "length of the kernel's build id",
        identity.kernel_build_id.len(),
        max::MAX_BUILD_ID_BYTES,
    )?;
    at_most("length of the command line", machine.cmdline.len(), max::MAX_TEXT_BYTES)?;
    at_most(
        "length of the CPU profile's name",
        machine.cpu_profile.len(),
        max::MAX_TEXT_BYTES,
    )?;
    at_most("disks", machine.disks.len(), max::MAX_DEVICES)?;
    at_most("network cards", machine.nics.len(), max::MAX_DEVICES)?;
    at_most("disk digests", identity.disk_digests.len(), max::MAX_DEVICES)?;
    if machine.memory_bytes % max::PAGE_BYTES as u64 != 0 {
        return Err(Violation::Rule("guest memory is not a multiple of 4 KiB"));
    }
    below_or_at(
        "bytes of guest memory",
        machine.memory_bytes,
        max::MAX_FRAME_NUMBER * max::PAGE_BYTES as u64,
    )?;
    for disk in &machine.disks {
        at_most("length of a disk's serial", disk.serial.len(), 20)?;
    }
    for nic in &machine.nics {
        if nic.mac.len() != 6 {
            return Err(Violation::Rule("a MAC address has not six bytes"));
        }
        if nic.mtu != 0 && !MTUS.contains(&nic.mtu) {
            return Err(Violation::Rule("a network card's MTU is none"));
        }
    }
    if machine.module_trap != 0 && !machine.may_trap_modules() {
        return Err(Violation::Rule(
            "a trap for modules that a machine of its revision does not have",
        ));
    }
    if let Some(tenure) = &identity.tenure {
        at_most(
            "length of the machine's name",
            tenure.machine.len(),
            max::MAX_TEXT_BYTES,
        )?;
        at_most("length of the node's name", tenure.node.len(), max::MAX_TEXT_BYTES)?;
    }
    digest_or_none("length of the kernel's digest", &identity.kernel_digest)?;
    digest_or_none("length of the initrd's digest", &identity.initrd_digest)?;
    for disk in &identity.disk_digests {
        digest_or_none("length of a disk's digest", disk)?;
    }
    digest_or_none("length of the start snapshot's digest", &identity.start_digest)?;
    digest("length of the digest chain at the start", &identity.start_chain)
}

/// Checks a segment header.
pub fn segment_header(header: &SegmentHeader) -> Checked {
    let Some(who) = &header.identity else {
        return Err(Violation::Rule("a segment header has no identity"));
    };
    identity(who)?;
    below_or_at("number of a segment", header.number.into(), max::MAX_SEGMENT.into())?;
    digest("length of a segment's digest chain", &header.chain)
}

/// Checks a batch and its turns.
pub fn batch(batch: &Batch, devices: Devices) -> Checked {
    digest("length of a batch's digest", &batch.digest)?;
    at_most("turns in a batch", batch.turns.len(), max::MAX_TURNS)?;
    if batch.last_stop < batch.first_stop {
        return Err(Violation::Rule("a batch ends before it begins"));
    }
    at_most("terms in a batch", batch.terms.len(), max::MAX_TERMS)?;
    for term in &batch.terms {
        at_most("length of a term's reason", term.why.len(), max::MAX_TEXT_BYTES)?;
        if !(batch.first_stop..=batch.last_stop).contains(&term.stop) {
            return Err(Violation::Rule("a term begins outside of its batch"));
        }
    }
    let mut gaps = 0u64;
    for one in &batch.turns {
        gaps += u64::from(one.gap);
        turn(one, devices)?;
    }
    below_or_at(
        "gaps in a batch, against its stops",
        gaps,
        batch.last_stop - batch.first_stop,
    )
}

/// Checks a turn.
pub fn turn(turn: &Turn, devices: Devices) -> Checked {
    below_or_at(
        "nanoseconds in a clock step",
        turn.clock.unwrap_or(0),
        max::MAX_CLOCK_STEP_NS,
    )?;
    at_most("network frames in a turn", turn.frames.len(), max::MAX_NET_FRAMES)?;
    for frame in &turn.frames {
        below("network card of a frame", frame.nic, devices.nics)?;
        at_most("bytes of a network frame", frame.data.len(), max::MAX_NET_FRAME_BYTES)?;
    }
    at_most("console bytes in a turn", turn.console.len(), max::MAX_CONSOLE_BYTES)?;
    if !turn.keyboard.is_empty() && !devices.keyboard {
        return Err(Violation::Rule("keys for a machine without a keyboard"));
    }
    if turn.power_button && !devices.power_button {
        return Err(Violation::Rule(
            "a power button is pressed that the machine does not have",
        ));
    }
    at_most("keyboard bytes in a turn", turn.keyboard.len(), max::MAX_KEYBOARD_BYTES)?;
    at_most(
        "disk completions in a turn",
        turn.disks.len(),
        max::MAX_DISK_COMPLETIONS,
    )?;
    for completion in &turn.disks {
        below("disk of a completion", completion.disk, devices.disks)?;
        below_or_at(
            "status of a disk request",
            completion.status.into(),
            max::MAX_DISK_STATUS.into(),
        )?;
    }
    at_most(
        "entropy answers in a turn",
        turn.entropy.len(),
        max::MAX_ENTROPY_ANSWERS,
    )?;
    for answer in &turn.entropy {
        at_most("bytes of an entropy answer", answer.len(), max::MAX_ENTROPY_BYTES)?;
    }
    if let Some(one) = &turn.forced {
        forced(one)?;
    }
    if let Some(one) = &turn.epoch {
        epoch(one)?;
    }
    Ok(())
}

fn forced(forced: &Forced) -> Checked {
    let Some(vcpu) = &forced.vcpu else {
        return Err(Violation::Rule("a forced turn has no vCPU state"));
    };
    vcpu_state(vcpu)?;
    at_most(
        "pages of a delta",
        forced.pages as usize,
        max::MAX_CHUNKS * max::MAX_CHUNK_PAGES,
    )
}

/// Checks the sizes in a vCPU state; whether they are KVM's is for whoever restores it.
pub fn vcpu_state(vcpu: &VcpuState) -> Checked {
    for part in [
        &vcpu.regs,
        &vcpu.sregs,
        &vcpu.xsave,
        &vcpu.xcrs,
        &vcpu.debugregs,
        &vcpu.events,
    ] {
        at_most(
            "bytes of a part of the vCPU state",
            part.len(),
            max::MAX_VCPU_PART_BYTES,
        )?;
    }
    at_most("MSRs", vcpu.msrs.len(), max::MAX_MSRS)
}

fn epoch(epoch: &Epoch) -> Checked {
    digest("length of an epoch's digest", &epoch.digest)?;
    if !epoch.settled_digest.is_empty() {
        digest("length of an epoch's settled digest", &epoch.settled_digest)?;
    }
    at_most("bytes of an epoch's parts", epoch.parts.len(), max::MAX_EPOCH_PARTS)?;
    at_most(
        "pages in an epoch's detail",
        epoch.frame_gaps.len(),
        max::MAX_EPOCH_DETAIL,
    )?;
    if epoch.frame_gaps.len() != epoch.page_hashes.len() {
        return Err(Violation::Rule("an epoch's detail has not one hash for each page"));
    }
    if !epoch.frame_gaps.is_empty() && epoch.frame_gaps.len() != epoch.pages as usize {
        return Err(Violation::Rule("an epoch's detail has not all its pages"));
    }
    if epoch.frame_gaps.iter().skip(1).any(|&gap| gap == 0) {
        return Err(Violation::Rule(
            "the pages of an epoch's detail are not in ascending order",
        ));
    }
    let last = epoch.frame_gaps.iter().fold(0u64, |sum, &gap| sum.saturating_add(gap));
    below_or_at(
        "page frame number in an epoch's detail",
        last,
        max::MAX_FRAME_NUMBER - 1,
    )
}

/// Checks an end.
pub fn end(end: &End) -> Checked {
    if matches!(end::Reason::try_from(end.reason), Err(_) | Ok(end::Reason::Unspecified)) {
        return Err(Violation::Rule("an end has no reason that is known"));
    }
    at_most("length of an end's detail", end.detail.len(), max::MAX_TEXT_BYTES)?;
    digest("length of an end's digest", &end.digest)?;
    digest_or_none("length of an end's memory digest", &end.memory_digest)
}

#[cfg(test)]
mod tests;
